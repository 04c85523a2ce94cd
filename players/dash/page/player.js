// The one page of all policies: an unmodified dash.js, what it does told to the driver, and the level of each chunk asked for or watched.
//
// Before each request the decision is awaited. With `gate` it is the schedule controller's timer that waits: dash.js sends nothing
// until the answer is there, and the page never blocks. With `sync` the rule itself asks, in a synchronous request. Under dash.js's
// own rules nothing is asked, and the level they choose is told.

const config = await (await fetch("config.json")).json();
const video = document.querySelector("video");
const player = dashjs.MediaPlayer().create();
const events = dashjs.MediaPlayer.events;

const chunks = [];      // appended ones, in order
const stalls = [];
const decisions = [];
const asked = [];       // by index: promise of the driver's answer
const levels = [];      // by index: the level to fetch
const firstAttempt = []; // by index: when the first of its requests left, ms
let downloaded = null;  // the chunk that is not appended yet
let inFlight = null;
let requests = 0;
let firstFrameMs = null;
let lineMs = null;      // playback runs on the line position = (now - lineMs) / 1000, until it runs dry
let ended = false;

const HICCUP_S = 0.5; // with so much media left it was not the network that made playback wait

const now = () => performance.now();
const isMedia = (request) => request.type === "MediaSegment";
const average = () => { const kbps = player.getAverageThroughput("video"); return kbps > 0 ? kbps : null; };

function bufferS() {
  const ranges = video.buffered;
  return ranges.length ? Math.max(ranges.end(ranges.length - 1) - video.currentTime, 0) : 0;
}

// --- what is told ---------------------------------------------------------------------------------------------------------------

function state() {
  return {
    now_ms: now(), buffer_s: bufferS(), position_s: video.currentTime, first_frame_ms: firstFrameMs, average_kbps: average(),
    chunks, stalls, decisions,
  };
}

async function post(path, message) {
  const response = await fetch(path, { method: "POST", body: JSON.stringify(message) });
  if (!response.ok) throw new Error(`${path}: status ${response.status}, ${await response.text()}`);
  return response.json();
}

function postSync(path, message) {
  const request = new XMLHttpRequest();
  request.open("POST", path, false);
  request.send(JSON.stringify(message));
  if (request.status !== 200) throw new Error(`${path}: status ${request.status}, ${request.responseText}`);
  return JSON.parse(request.responseText);
}

function fail(what, reason = "browser_error") {
  if (ended) return;
  ended = true;
  console.error(what);
  post("failed", { reason, what: String(what).slice(0, 500) });
}

window.facts = () => ({ loading: inFlight !== null, loaded_bytes: inFlight?.bytesLoaded || 0, requests });
window.addEventListener("error", (event) => fail(event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
video.addEventListener("error", () => fail(`video: ${video.error?.message}`));

// --- requests and appends -------------------------------------------------------------------------------------------------------

player.on(events.FRAGMENT_LOADING_STARTED, ({ request }) => {
  if (!isMedia(request)) return;
  inFlight = request;
  requests += 1;
  firstAttempt[request.index] ??= now() + Math.max((request.delayLoadingTime || 0) - Date.now(), 0);
});

player.on(events.FRAGMENT_LOADING_ABANDONED, () => { inFlight = null; });

player.on(events.FRAGMENT_LOADING_COMPLETED, ({ request, error }) => {
  if (!isMedia(request) || error) return;
  inFlight = null;
  const timing = request.resourceTimingValues;
  if (!timing) return fail(`chunk ${request.index} came without resource timing`);
  const abandoned = firstAttempt[request.index] < timing.startTime - 100; // an earlier request for it was given up
  downloaded = {
    index: request.index, level: request.representation.absoluteIndex, size_bytes: timing.encodedBodySize,
    request_ms: abandoned ? firstAttempt[request.index] : timing.startTime, first_byte_ms: timing.responseStart, end_ms: timing.responseEnd,
  };
});

// The schedule controller is told to go on once a chunk is in the source buffer.
function noteAppend() {
  const ranges = video.buffered;
  if (!downloaded || !ranges.length || ranges.end(ranges.length - 1) < (downloaded.index + 0.5) * config.chunk_s) return;
  chunks.push({ ...downloaded, appended_ms: now(), buffer_s: bufferS(), waited_ms: 0 });
  downloaded = null;
  if (chunks.length === config.chunks) finish();
}

// The next request is due: what held it until now, if the chunk before filled the buffer, is that chunk's pause.
function noteDue() {
  const last = chunks.at(-1);
  if (last && last.buffer_s >= config.buffer_cap_s) last.waited_ms = now() - last.end_ms;
}

// --- playback -------------------------------------------------------------------------------------------------------------------

video.addEventListener("playing", () => {
  lineMs = now() - 1000 * video.currentTime;
  firstFrameMs ??= lineMs;
  const stall = stalls.at(-1);
  if (stall && stall.end_ms === null) stall.end_ms = lineMs + 1000 * stall.position;
  finish();
});

video.addEventListener("waiting", () => {
  if (firstFrameMs === null || stalls.at(-1)?.end_ms === null) return; // start-up is no stall
  const position = video.currentTime, startMs = lineMs + 1000 * position;
  const heldS = chunks.filter((chunk) => chunk.appended_ms <= startMs).length * config.chunk_s - position;
  if (heldS < HICCUP_S) stalls.push({ start_ms: startMs, end_ms: null, position });
});

// The trial is over when its last chunk is appended and what that append starts (playback, or the end of a stall) has started.
function finish() {
  if (ended || chunks.length < config.chunks || firstFrameMs === null || stalls.at(-1)?.end_ms === null) return;
  ended = true;
  post("end", { state: state() });
}

// --- decisions ------------------------------------------------------------------------------------------------------------------

function taken(index, level, askedMs) {
  levels[index] = level;
  decisions.push({ index, level, asked_ms: askedMs, waited_ms: now() - askedMs });
}

async function ask(index) {
  noteDue();
  const askedMs = now();
  const { level } = await post("decide", { index, state: state() });
  taken(index, level, askedMs);
}

function askSync(index) {
  noteDue();
  const askedMs = now();
  taken(index, postSync("decide", { index, state: state() }).level, askedMs);
}

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const full = (schedule) => player.getDashMetrics().getCurrentBufferLevel("video") + config.chunk_s >= schedule.getBufferTarget();

// Resolves when chunk `index` may be asked for and its level is known.
async function decided(schedule, index, current) {
  if (index === 0 || index >= config.chunks) return;
  while (full(schedule) && current()) await sleep(1000 * config.poll_s);
  if (current()) await (asked[index] ??= ask(index));
}

function Gate() {
  const schedule = this.parent;
  const start = schedule.startScheduleTimer; // saved now: what is returned below is written over them
  const clear = schedule.clearScheduleTimer;
  let ticket = 0;
  return {
    startScheduleTimer(delayMs) {
      const mine = ++ticket;
      clear();
      noteAppend();
      if (config.decides !== "controller" || config.waits !== "gate") return start(delayMs);
      decided(schedule, chunks.length, () => mine === ticket).then(() => { if (mine === ticket) start(delayMs); }, (error) => fail(error));
    },
    clearScheduleTimer() {
      ticket += 1;
      clear();
    },
  };
}

function ControllerRule() {
  const context = this.context;
  const SwitchRequest = dashjs.FactoryMaker.getClassFactoryByName("SwitchRequest");
  return {
    getSwitchRequest(rules) {
      const index = chunks.length;
      const request = SwitchRequest(context).create();
      try {
        if (index > 0 && levels[index] === undefined) askSync(index);
        const choices = rules.getAbrController().getPossibleVoRepresentationsFilteredBySettings(rules.getMediaInfo(), true);
        request.representation = choices[index > 0 ? levels[index] : config.first_level];
        request.priority = SwitchRequest.PRIORITY.STRONG;
      } catch (error) {
        fail(error); // dash.js swallows what a rule throws
      }
      return request;
    },
    getClassName() { return "ControllerRule"; },
    reset() {},
  };
}
ControllerRule.__dashjs_factory_name = "ControllerRule";

// dash.js's own decision, timed; the level is the one of the representation that is current afterwards.
function Timed() {
  const controller = this.parent;
  const check = controller.checkPlaybackQuality;
  return {
    checkPlaybackQuality(type, streamId) {
      const index = chunks.length;
      if (index === 0 || levels[index] !== undefined) return check(type, streamId);
      noteDue();
      const askedMs = now();
      const changed = check(type, streamId);
      const waitedMs = now() - askedMs;
      taken(index, player.getCurrentRepresentationForType("video").absoluteIndex, askedMs);
      decisions.at(-1).waited_ms = waitedMs;
      post("tell", { state: state() });
      return changed;
    },
  };
}

// --- settings -------------------------------------------------------------------------------------------------------------------

const own = { bola: ["bolaRule"], throughput: ["throughputRule"], dynamic: ["bolaRule", "throughputRule"] }[config.decides];
const helpers = ["insufficientBufferRule", "switchHistoryRule", "abandonRequestsRule"]; // on by default, beside any rule
const all = ["throughputRule", "bolaRule", ...helpers, "droppedFramesRule", "l2ARule", "loLPRule"];
const active = own ? [...own, ...helpers] : [];
const rules = Object.fromEntries(all.map((rule) => [rule, { active: active.includes(rule) }]));
const targetS = config.buffer_cap_s + config.chunk_s; // dash.js asks while level + chunk < target

player.extend("ScheduleController", Gate, true);
if (own) player.extend("AbrController", Timed, true);
player.updateSettings({
  streaming: {
    cacheInitSegments: true,
    fragmentRequestTimeout: 0,
    scheduling: { defaultTimeout: 1000 * config.poll_s },
    retryAttempts: { MediaSegment: config.retries },
    retryIntervals: { MediaSegment: 1000 * config.retry_s },
    lastBitrateCachingInfo: { enabled: false },
    lastMediaSettingsCachingInfo: { enabled: false },
    buffer: {
      fastSwitchEnabled: false,
      bufferTimeDefault: targetS, bufferTimeAtTopQuality: targetS, bufferTimeAtTopQualityLongForm: targetS,
    },
    abr: { initialBitrate: { video: config.first_bitrate_kbps }, limitBitrateByPortal: false, autoSwitchBitrate: { video: true }, rules },
  },
});
if (!own) player.addABRCustomRule("qualitySwitchRules", "ControllerRule", dashjs.FactoryMaker.getClassFactory(ControllerRule));
player.on(events.ERROR, ({ error }) => {
  const status = error.data?.response?.status; // of a download that dash.js gave up; 0: there was no answer
  const reason = status === undefined ? "browser_error" : status ? "origin_error" : "origin_unreachable";
  fail(`dash.js: ${error.message ?? error} (code ${error.code}, status ${status})`, reason);
});
player.initialize(video, config.mpd_url, true);
