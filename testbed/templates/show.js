// The live page: asks for the state twice a second and draws each lane. A click on a lane (or Enter) opens it, with its last decisions.
(() => {
  "use strict";
  const EVERY_MS = 500, W = 520, TOP = 96, GAP = 16, LOW = 44, LEFT = 34, MOST_STEPS = 2000;
  const lanes = document.getElementById("lanes");
  const cards = new Map();   // lane -> elements
  const traces = new Map();  // trial -> {edges_s, rates_bps}, or null while it is fetched
  let openLane = null;

  const mbps = (bps) => bps / 1e6;
  const svgNode = (name, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  };

  function makeCard(lane) {
    const root = document.createElement("section");
    root.className = "card lane";
    root.tabIndex = 0;
    root.dataset.lane = lane;
    root.setAttribute("role", "button");
    root.innerHTML = '<header><h2><span class="key"></span><span class="name"></span></h2><span class="tag"></span><span class="facts"></span><span class="trace"></span></header>' +
      '<div class="body"><img alt="what the browser shows" hidden><svg role="img"></svg></div><div class="detail" hidden></div>';
    const find = (selector) => root.querySelector(selector);
    const card = { root, title: find(".name"), tag: find(".tag"), facts: find(".facts"), trace: find(".trace"), img: find("img"),
      svg: find("svg"), detail: find(".detail"), busy: false };
    const toggle = () => { openLane = openLane === lane ? null : lane; update(); };
    root.addEventListener("click", toggle);
    root.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
    lanes.append(root);
    cards.set(lane, card);
    return card;
  }

  function traceOf(trial) {
    if (!traces.has(trial)) {
      traces.set(trial, null);
      fetch(`trace.json?trial=${trial}`).then((answer) => answer.json()).then((trace) => traces.set(trial, trace));
    }
    return traces.get(trial);
  }

  // Capacity over session time: [start, end, rate] from `offset_s` in the trace to `end_s` of the session; the trace begins anew at its end.
  function capacity(trace, offset, end) {
    const steps = [], first = trace.edges_s[0], span = trace.edges_s.at(-1) - first;
    if (trace.rates_bps.length * end / span > MOST_STEPS) return means(trace, offset, end);
    for (let turn = -(offset % span); turn < end; turn += span) {
      for (let i = 0; i < trace.rates_bps.length; i += 1) {
        const a = turn + trace.edges_s[i] - first, b = turn + trace.edges_s[i + 1] - first;
        if (b > 0 && a < end) steps.push([Math.max(a, 0), Math.min(b, end), trace.rates_bps[i]]);
      }
    }
    return steps;
  }

  // The same as means, one a pixel, where there were more steps than can be seen: a short period, often repeated.
  function means(trace, offset, end) {
    const edges = trace.edges_s.map((edge) => edge - trace.edges_s[0]), rates = trace.rates_bps, passed = [0];
    rates.forEach((rate, i) => passed.push(passed[i] + rate * (edges[i + 1] - edges[i])));
    const by = (at) => {
      const turns = Math.floor(at / edges.at(-1)), rest = at - turns * edges.at(-1);
      let low = 0, high = rates.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (edges[middle] <= rest) low = middle; else high = middle - 1;
      }
      return turns * passed.at(-1) + passed[low] + rates[low] * (rest - edges[low]);
    };
    const start = offset % edges.at(-1), wide = end / W;
    return Array.from({ length: W }, (_, k) => [k * wide, (k + 1) * wide, (by(start + (k + 1) * wide) - by(start + k * wide)) / wide]);
  }

  function draw(card, lane, state) {
    const svg = card.svg, end = Math.max(60, (lane.chunks.at(-1)?.end_s ?? 0) + 4);
    const trace = traceOf(lane.trial_id), steps = trace ? capacity(trace, state.offset_s, end) : [];
    const rates = [...steps.map((step) => step[2]), ...lane.chunks.map((chunk) => chunk.bitrate_bps)];
    const top = Math.min(1.1 * mbps(Math.max(state.bitrates_bps[1], ...rates)), 1.25 * mbps(state.bitrates_bps.at(-1)));
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${W} ${TOP + GAP + LOW + 14}`);
    svg.setAttribute("aria-label", `${lane.label}: ${lane.chunks.length} of ${state.chunks} chunks`);
    const x = (s) => LEFT + (W - LEFT) * s / end, y = (rate) => TOP * (1 - Math.min(rate / top, 1));
    const most = Math.max(20, ...lane.chunks.map((chunk) => chunk.buffer_s)), z = (s) => TOP + GAP + LOW * (1 - s / most);
    for (const [a, b, rate] of steps) {
      svgNode("rect", { x: x(a), width: Math.max(x(b) - x(a), 0.2), y: y(mbps(rate)), height: TOP - y(mbps(rate)), fill: "var(--capacity)" }, svg);
    }
    for (const stall of lane.stalls) {
      svgNode("rect", { class: "l-stall", x: x(stall.start_s), width: Math.max(x(stall.end_s) - x(stall.start_s), 1), y: 0,
        height: TOP + GAP + LOW, fill: "var(--stall)" }, svg);
    }
    for (const chunk of lane.chunks) {
      svgNode("line", { class: "l-chunk", x1: x(chunk.request_s), x2: Math.max(x(chunk.end_s), x(chunk.request_s) + 2), y1: y(mbps(chunk.bitrate_bps)),
        y2: y(mbps(chunk.bitrate_bps)), stroke: lane.colour, "stroke-width": 3, "stroke-linecap": "round" }, svg);
    }
    for (const decision of lane.decisions) {
      svgNode("circle", { class: "l-decision", cx: x(decision.at_s), cy: TOP + 7, r: 2.2,
        fill: decision.source === "policy" ? lane.colour : "var(--bad)" }, svg);
    }
    const points = lane.chunks.map((chunk) => `${x(chunk.end_s)},${z(chunk.buffer_s)}`).join(" ");
    svgNode("polyline", { class: "l-buffer", points, fill: "none", stroke: "var(--ink)", "stroke-width": 1.6 }, svg);
    const label = (text, at, anchor, place) => { svgNode("text", { x: place, y: at, "text-anchor": anchor }, svg).textContent = text; };
    label(top.toFixed(1), 9, "end", LEFT - 5);
    label("Mb/s", 21, "end", LEFT - 5);
    label("buffer", z(most) + 9, "end", LEFT - 5);
    label(`${most.toFixed(0)} s`, z(most) + 21, "end", LEFT - 5);
    label("0", TOP + GAP + LOW + 12, "start", LEFT);
    label(`${end.toFixed(0)} s`, TOP + GAP + LOW + 12, "end", W);
  }

  function detail(card, lane) {
    card.detail.hidden = false;
    const rows = lane.decisions.slice(-12).reverse().map((decision) => {
      const chunk = lane.chunks[decision.chunk_index];
      return [decision.chunk_index, decision.at_s.toFixed(1), decision.level, (1000 * decision.latency_s).toFixed(1),
        decision.source === "policy" ? "policy" : `fallback: ${decision.reason}`,
        chunk ? chunk.download_s.toFixed(2) : "", chunk ? chunk.buffer_s.toFixed(1) : "", chunk ? chunk.rebuffer_s.toFixed(2) : ""];
    });
    const table = document.createElement("table");
    const heads = ["chunk", "decided at, s", "level", "decision, ms", "by", "download, s", "buffer, s", "stall, s"];
    const cells = (tag, values) => {
      const row = document.createElement("tr");
      for (const value of values) row.append(Object.assign(document.createElement(tag), { textContent: value }));
      return row;
    };
    table.append(cells("th", heads), ...rows.map((row) => cells("td", row)));
    card.detail.replaceChildren(table);
  }

  function paint(card, lane, state) {
    const last = lane.chunks.at(-1), rated = lane.chunks.slice(1);
    const qoe = rated.length ? rated.reduce((sum, chunk) => sum + chunk.qoe, 0) / rated.length : null;
    card.root.classList.toggle("open", openLane === lane.lane);
    card.root.classList.toggle("over", lane.result !== null);
    card.root.setAttribute("aria-expanded", openLane === lane.lane);
    card.title.textContent = lane.label;
    card.root.style.setProperty("--c", lane.colour);
    const tag = lane.result ? (lane.result.valid ? "done" : `invalid: ${lane.result.invalid_reason}`) : `lane ${lane.lane}`;
    card.tag.textContent = tag;
    card.tag.classList.toggle("bad", lane.result !== null && !lane.result.valid);
    card.facts.textContent = `${lane.chunks.length}/${state.chunks} chunks` + (last ? `, level ${last.level}, buffer ${last.buffer_s.toFixed(1)} s` : "") +
      (qoe === null ? "" : `, QoE ${qoe.toFixed(2)}`);
    card.trace.textContent = lane.trace;
    card.img.hidden = !lane.picture;
    if (lane.picture && !card.busy && !lane.result) {
      card.busy = true;
      card.img.onload = card.img.onerror = () => { card.busy = false; };
      card.img.src = `lanes/${lane.lane}.jpg?at=${Date.now()}`;
    }
    draw(card, lane, state);
    if (openLane === lane.lane) detail(card, lane); else card.detail.hidden = true;
  }

  let state = null;
  function update() {
    if (!state) return;
    document.getElementById("progress").textContent =
      `${state.stage}: ${state.ended} of ${state.total} trials done` + (state.invalid ? `, ${state.invalid} invalid` : "");
    document.getElementById("done").style.width = `${100 * state.ended / Math.max(state.total, 1)}%`;
    const notes = document.getElementById("notes");
    notes.hidden = !state.notes.length;
    notes.replaceChildren(...state.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    for (const lane of state.lanes) paint(cards.get(lane.lane) ?? makeCard(lane.lane), lane, state);
  }

  async function follow() {
    try {
      state = await (await fetch("state.json")).json();
    } catch {
      document.getElementById("over").hidden = false;
      document.getElementById("progress").textContent = "ended";
      return;
    }
    update();
    setTimeout(follow, EVERY_MS);
  }
  follow();
})();
