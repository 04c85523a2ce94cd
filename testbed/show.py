"""`--show`: a page on loopback on which the lanes are watched while they play: picture of a browser, trace, buffer, decisions.

`Show` stands between the recorder and the terminal's view and passes everything on. The page asks for the state twice a second; what it
costs is one JSON text and, where a browser plays, a small picture.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from testbed.abr import PreparedPlaybacks
from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.lane import picture_of
from testbed.live import LiveView, View
from testbed.records import AnyTrialRow, ChunkRow, DecisionRow, PlaybackEndRow, Row, StallRow
from testbed.results import trace_row

TEMPLATES = Path(__file__).with_name("templates")
FILES = {"": ("show.html", "text/html"), "show.js": ("show.js", "text/javascript"), "report.css": ("report.css", "text/css")}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
}
START_S = 10.0
MOST_NOTES = 8


@dataclass
class _Shown:
    """What a lane plays, or has played last."""

    lane: int
    trial_id: str
    policy: str
    trace: str
    began_s: float
    chunks: list[ChunkRow] = field(default_factory=list)
    decisions: list[DecisionRow] = field(default_factory=list)
    stalls: list[StallRow] = field(default_factory=list)
    ended: PlaybackEndRow | None = None
    result: AnyTrialRow | None = None

    def take(self, row: Row) -> None:
        """Follow the trial by one row."""
        match row:
            case ChunkRow():
                self.chunks.append(row)
            case DecisionRow():
                self.decisions.append(row)
            case StallRow():
                self.stalls.append(row)
            case PlaybackEndRow():
                self.ended = row


class Show(View):
    """A view of a run that also keeps what the page shows, before the one on the terminal."""

    def __init__(self, view: LiveView, prepared: PreparedPlaybacks, pictures: Path) -> None:
        self._view, self._pictures = view, pictures
        self._cards = {card.name: {"label": card.label, "colour": card.colour} for card in prepared.policies}
        self._traces = {trial.trial_id: trial.trace for trial in prepared.trials}
        self._offset_s = prepared.trials[0].offset_s if prepared.trials else 0.0
        self._bitrates_bps, self._chunk_s = prepared.video.bitrates_bps, prepared.video.chunk_s
        self._lanes: dict[int, _Shown] = {}
        self._by_trial: dict[str, _Shown] = {}
        self._notes: list[str] = []
        self._stage = "playing"
        self._lock = threading.Lock()

    def trial_started(self, trial_id: str, policy: str, trace: str, lane: int) -> None:
        """A trial begins in a lane."""
        shown = _Shown(lane, trial_id, policy, trace, now_s())
        with self._lock:
            if before := self._lanes.get(lane):
                self._by_trial.pop(before.trial_id, None)
            self._lanes[lane] = self._by_trial[trial_id] = shown
            picture_of(self._pictures, lane).unlink(missing_ok=True)
        self._view.trial_started(trial_id, policy, trace, lane)

    def row(self, row: Row) -> None:
        """A row of a trial that goes on."""
        with self._lock:
            if shown := self._by_trial.get(row.trial_id):
                shown.take(row)
        self._view.row(row)

    def trial_ended(self, row: AnyTrialRow, again: bool = False) -> None:
        """A trial is over."""
        with self._lock:
            if shown := self._by_trial.get(row.trial_id):
                shown.result = row
        self._view.trial_ended(row, again)

    def note(self, text: str) -> None:
        """A sentence for the user."""
        with self._lock:
            self._notes = [*self._notes, text][-MOST_NOTES:]
        self._view.note(text)

    def stage(self, what: str, total: int, of: str) -> None:
        """What goes on after the trials."""
        with self._lock:
            self._stage = what
        self._view.stage(what, total, of)

    def advance(self) -> None:
        """One more of the stage's things is done."""
        self._view.advance()

    def state(self) -> bytes:
        """All that the page shows, as JSON."""
        with self._lock:
            lanes = [self._lane(shown) for _, shown in sorted(self._lanes.items())]
            return msgspec.json.encode(
                {
                    "stage": self._stage,
                    "ended": self._view.ended,
                    "total": self._view.total_trials,
                    "invalid": self._view.invalid,
                    "chunks": self._view.chunks,
                    "chunk_s": self._chunk_s,
                    "bitrates_bps": self._bitrates_bps,
                    "offset_s": self._offset_s,
                    "notes": self._notes,
                    "lanes": lanes,
                }
            )

    def _lane(self, shown: _Shown) -> dict[str, Any]:
        return {
            "lane": shown.lane,
            "trial_id": shown.trial_id,
            "policy": shown.policy,
            **self._cards[shown.policy],
            "trace": shown.trace,
            "playing_s": now_s() - shown.began_s,
            "picture": picture_of(self._pictures, shown.lane).is_file(),
            "chunks": shown.chunks,
            "decisions": shown.decisions,
            "stalls": shown.stalls,
            "ended": shown.ended,
            "result": shown.result,
        }

    def application(self) -> web.Application:
        """The page, its state, traces and pictures."""
        app = web.Application()
        for path, (name, kind) in FILES.items():
            app.router.add_get(f"/{path}", _file(TEMPLATES / name, kind))

        async def state(request: web.Request) -> web.Response:
            return web.Response(body=self.state(), content_type="application/json", headers=HEADERS)

        async def trace(request: web.Request) -> web.Response:
            planned_id = request.query.get("trial", "").partition("r")[0]  # a trial played again bears `r1` behind its id
            if not (found := self._traces.get(planned_id)):
                raise web.HTTPNotFound(text="no such trial in this run")
            row = trace_row(found)
            return web.json_response({"edges_s": row.edges_s, "rates_bps": row.rates_bps}, headers=HEADERS)

        async def lane_picture(request: web.Request) -> web.Response:
            try:
                body = picture_of(self._pictures, int(request.match_info["lane"])).read_bytes()
            except FileNotFoundError:
                raise web.HTTPNotFound(text="no picture yet") from None
            return web.Response(body=body, content_type="image/jpeg", headers=HEADERS)

        app.router.add_get("/state.json", state)
        app.router.add_get("/trace.json", trace)
        app.router.add_get("/lanes/{lane:[0-9]+}.jpg", lane_picture)
        return app


def _file(path: Path, kind: str) -> Any:
    async def send(request: web.Request) -> web.Response:
        return web.Response(body=path.read_bytes(), content_type=kind, headers=HEADERS)

    return send


@contextmanager
def served(show: Show) -> Iterator[str]:
    """The page on a free port of 127.0.0.1, in a thread of its own; yields its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    told: list[str] = []
    stop = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(show.application(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            told.append(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            started.set()
            await stop.wait()
        finally:
            await runner.cleanup()
            started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="show", daemon=True)
    thread.start()
    try:
        if not started.wait(START_S) or not told:
            raise TestbedError("the page of --show can't be served on 127.0.0.1")
        yield told[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
