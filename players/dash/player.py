"""The dash.js player: one playback in a headless Chromium, with the rows of the headless player. `python -m players.dash.player`.

The page and what it says stay on loopback, in the client's own network namespace; the decisions go over the control link to the same
service, with the same deadline and the same local rule; over the emulated link the browser fetches the MPD, one initialisation segment
and the chunks, and nothing else. The end is a fact: the page's word, the browser's death, or its silence.

| end_reason | meaning |
| --- | --- |
| `complete` | the last chunk is in the buffer |
| `browser_crashed` | the browser or its page ended by itself |
| `browser_stuck` | it did not start in `start_s`, or did not answer within `answer_s` |
| `browser_error` | the page or dash.js met an error; the detail is its message |
| `stalled_too_long`, `origin_unreachable`, `origin_error`, `interrupted` | as in `players.headless` |
"""

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
from aiohttp import web

from controllers.api import AbrSession
from controllers.client import DecisionClient, DecisionFailed
from players.config import PlayerConfig
from players.dash.devtools import FULL_PACE, Browser, BrowserCrashed, BrowserStuck, chromium, take_priority
from players.dash.ledger import Ledger
from players.dash.messages import Ask, DashConfig, Facts, Failed, Level, PageConfig, PageState, Tell
from players.fetch import OriginClient, PlaybackEnded
from players.headless import Emit, no_playback, session_of
from players.process import CLOSE_DEADLINE_S, open_early, run
from players.throughput import local_level
from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.units import kbps_from_bps

PAGE = Path(__file__).with_name("page")
WATCH_EVERY_S = 0.5
PICTURE_EVERY_S = 0.25
MAX_MESSAGE_BYTES = 4 << 20
WINDOW = (640, 360)
NICE = -10
"""A client has a machine of its own: its browser and this driver must not wait for a processor behind a controller that computes."""

T = TypeVar("T")


class Playback:
    """One playback of `session`, seen from the server that the page talks to. `ended` holds how it ended."""

    def __init__(self, config: DashConfig, session: AbrSession, controller: DecisionClient | None, emit: Emit, log: IO[bytes]) -> None:
        self._config, self._session, self._controller, self._emit, self._log = config, session, controller, emit, log
        self.ledger = Ledger(session)
        self.ended: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def application(self) -> web.Application:
        """The page, its configuration, and what it may say."""
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        for name, path in (("", PAGE / "index.html"), ("player.js", PAGE / "player.js"), ("dash.js", Path(self._config.library))):
            app.router.add_get(f"/{name}", _file(path))
        app.router.add_get("/config.json", self._page_config)
        for name, handler in (("decide", self._decide), ("tell", self._tell), ("end", self._end), ("failed", self._failed)):
            app.router.add_post(f"/{name}", handler)
        return app

    def end(self, reason: str, detail: str = "") -> None:
        """The playback is over; the first word counts."""
        if not self.ended.done():
            self.ended.set_result((reason, detail))

    async def _page_config(self, request: web.Request) -> web.Response:
        player, video = self._config.player, self._session.video
        return _json(
            PageConfig(
                mpd_url=f"{player.origin_url}/{video.name}/manifest.mpd?chunks={self._session.chunks}&session={player.trial_id}",
                decides=self._config.decides,
                waits=self._config.waits,
                chunks=self._session.chunks,
                chunk_s=video.chunk_s,
                buffer_cap_s=player.buffer_cap_s,
                poll_s=player.poll_s,
                first_level=player.first_level,
                first_bitrate_kbps=kbps_from_bps(video.bitrates_bps[player.first_level]),
                retries=player.retries,
                retry_s=player.retry_s,
            )
        )

    async def _decide(self, request: web.Request) -> web.Response:
        message = msgspec.json.decode(await request.read(), type=Ask)
        self._heard("decide", message.state)
        assert self._controller
        policy_s, reason = None, ""
        try:
            answer = await self._controller.decide(self.ledger.history(), message.state.buffer_s, self._config.player.deadline_s)
            level, policy_s = answer.level, answer.policy_s
        except DecisionFailed as failed:
            reason = failed.reason
            level = local_level(self._session.video, self.ledger.estimate().average_bps, message.state.buffer_s)
            sys.stderr.write(f"{self._config.player.trial_id}: chunk {message.index}: {failed.reason}: {failed.message}\n")
        self.ledger.answered(message.index, policy_s, reason)
        return _json(Level(level=level))

    async def _tell(self, request: web.Request) -> web.Response:
        self._heard("tell", msgspec.json.decode(await request.read(), type=Tell).state)
        return web.json_response({})

    async def _end(self, request: web.Request) -> web.Response:
        self._heard("end", msgspec.json.decode(await request.read(), type=Tell).state)
        self.end("complete")
        return web.json_response({})

    async def _failed(self, request: web.Request) -> web.Response:
        message = msgspec.json.decode(await request.read(), type=Failed)
        self.end(message.reason, message.what)
        return web.json_response({})

    def _heard(self, what: str, state: PageState) -> None:
        self.ledger.heard(state, now_s())
        average_bps = self.ledger.estimate().average_bps
        here_kbps = None if average_bps is None else kbps_from_bps(average_bps)
        line = {"message": what, "throughput_kbps": {"dashjs": state.average_kbps, "here": here_kbps}, "state": state}
        self._log.write(msgspec.json.encode(line) + b"\n")
        for row in self.ledger.rows():
            self._emit(row)

    def finish(self, reason: str, detail: str) -> None:
        """Write the rows that are left, and the last one."""
        for row in self.ledger.rows(ended=True):
            self._emit(row)
        self._emit(self.ledger.end(reason, detail))


class Watch:
    """The browser, in a thread of its own: started, asked for facts every now and then, its console kept, its picture taken."""

    def __init__(self, config: DashConfig) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="browser")
        self._closing = contextlib.ExitStack()
        self._browser: Browser | None = None
        self._progress: tuple[Facts | None, float] = (None, now_s())
        self._keep = Path(config.keep)

    async def call(self, work: Callable[[], T]) -> T:
        """Do `work` in the browser's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def open(self, url: str) -> None:
        """Start the browser and load the page. Raises `BrowserStuck`, `BrowserCrashed` or `UserError`."""
        errors = self._closing.enter_context(self._path("chromium.log").open("wb"))
        self._browser = self._closing.enter_context(chromium(*WINDOW, FULL_PACE, errors, self._config.start_s, NICE))
        self._browser.open(url, WINDOW)
        self._browser.patience_s = self._config.answer_s + self._config.player.deadline_s  # `sync` blocks the page for so long
        if self._config.picture:
            self._browser.call("Page.startScreencast", format="jpeg", quality=70, maxWidth=WINDOW[0], maxHeight=WINDOW[1])

    def look(self) -> None:
        """Ask the page for facts. Raises `PlaybackEnded` when a request made no progress for too long, `BrowserGone` when it's gone."""
        assert self._browser
        seen = msgspec.convert(self._browser.evaluate("window.facts ? facts() : null"), Facts | None)
        self._sort_events()
        before, since_s = self._progress
        if seen is None or not seen.loading or seen != before:
            self._progress = (seen, now_s())
        elif now_s() - since_s > self._config.player.no_progress_s:
            raise PlaybackEnded("stalled_too_long", f"no byte for {self._config.player.no_progress_s} s")

    def _sort_events(self) -> None:
        """Console lines to their file, the newest picture to its own."""
        assert self._browser
        events, self._browser.events = self._browser.events, []
        lines = [line for event in events if (line := _console_line(event))]
        if lines:
            with self._path("console.jsonl").open("a", encoding="utf-8") as console:
                console.writelines(lines)
        frames = [event["params"] for event in events if event.get("method") == "Page.screencastFrame"]
        if frames and self._config.picture:
            _replace(Path(self._config.picture), base64.b64decode(frames[-1]["data"]))
        for frame in frames:
            self._browser.call("Page.screencastFrameAck", sessionId=frame["sessionId"])

    def screenshot(self) -> None:
        """Keep what the page shows, if it can still be had."""
        with contextlib.suppress(TestbedError, RuntimeError):
            if self._browser:
                data = self._browser.call("Page.captureScreenshot", format="png")["data"]
                self._path("png").write_bytes(base64.b64decode(data))
                self._sort_events()

    def close(self) -> None:
        """End the browser with all its processes."""
        self._closing.close()

    def _path(self, kind: str) -> Path:
        return self._keep / f"{self._config.player.trial_id}.{kind}"


def _console_line(event: dict[str, Any]) -> str:
    """A line of the kept console; empty for what is none."""
    what = {"Runtime.consoleAPICalled": "console", "Runtime.exceptionThrown": "exception", "Log.entryAdded": "log"}.get(
        event.get("method", "")
    )
    return json.dumps({"what": what, **event["params"]}) + "\n" if what else ""


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _file(path: Path) -> Callable[[web.Request], Any]:
    kinds = {".html": "text/html", ".js": "text/javascript"}

    async def send(request: web.Request) -> web.Response:
        return web.Response(body=path.read_bytes(), content_type=kinds[path.suffix], headers={"Cache-Control": "no-store"})

    return send


def _json(message: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), content_type="application/json")


@contextlib.asynccontextmanager
async def _served(app: web.Application) -> AsyncIterator[str]:
    """The application on loopback, on a free port; yields its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def play(config: DashConfig, emit: Emit) -> None:
    """One playback, from the manifest to the last row. Cancelling it interrupts the playback; the last row is written nevertheless."""
    async with contextlib.AsyncExitStack() as closing:
        playback: Playback | None = None
        reason, detail = "complete", ""
        log = closing.enter_context((Path(config.keep) / f"{config.player.trial_id}.page.jsonl").open("wb"))
        try:
            session = await _session(config.player)
            controller = None
            if config.decides == "controller":
                controller = DecisionClient(config.player.controller_url, session, config.player.policy, config.player.seed)
                closing.push_async_callback(controller.close, CLOSE_DEADLINE_S)
                await open_early(controller, config.player)
            playback = Playback(config, session, controller, emit, log)
            url = await closing.enter_async_context(_served(playback.application()))
            reason, detail = await _watched(config, playback, url)
        except PlaybackEnded as ended:
            reason, detail = ended.reason, ended.detail
        except asyncio.CancelledError:
            reason, detail = "interrupted", "told to stop"
        if playback:
            playback.finish(reason, detail)
        else:
            emit(no_playback(config.player.trial_id, reason, detail))


async def _session(config: PlayerConfig) -> AbrSession:
    """From the origin's manifest, as in the headless player."""
    origin = OriginClient(config)
    try:
        return session_of(config, await origin.manifest())
    finally:
        await origin.close()


async def _watched(config: DashConfig, playback: Playback, url: str) -> tuple[str, str]:
    """Play in a browser that is watched; returns how it ended, the browser gone with all its processes."""
    watch = Watch(config)
    try:
        await watch.call(lambda: watch.open(url))
        every_s = PICTURE_EVERY_S if config.picture else WATCH_EVERY_S
        while not playback.ended.done():
            await watch.call(watch.look)
            await asyncio.wait([playback.ended], timeout=every_s)
        await watch.call(watch.screenshot)
    except BrowserStuck as gone:
        playback.end("browser_stuck", str(gone))
    except BrowserCrashed as gone:
        playback.end("browser_crashed", str(gone))
    finally:
        await asyncio.shield(watch.call(watch.close))
    return playback.ended.result()


if __name__ == "__main__":
    take_priority(NICE)
    sys.exit(run(DashConfig, play))
