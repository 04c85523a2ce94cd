"""What a running experiment shows on the terminal: a live table with one line a lane, or quiet lines where there is no terminal."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from testbed.clock import now_s
from testbed.records import AnyTrialRow, ChunkRow, DecisionRow, JobRow, Row, ScheduleDecisionRow
from testbed.records_vp import PredictionRow, SegmentRow
from testbed.units import ms_from_s

_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 24
"""Chunks whose levels are shown."""
_QUIET_LINES = 20
"""About so many trials get a line each where there is no terminal."""
_REFRESH_HZ = 4


@dataclass
class _LaneState:
    """The trial that a lane plays now."""

    trial_id: str
    policy: str
    trace: str
    chunks: int = 0
    buffer_s: float = 0.0
    qoe_sum: float = 0.0
    fallbacks: int = 0
    decision_ms: float | None = None
    levels: deque[int] = field(default_factory=lambda: deque(maxlen=_SPARKS))
    jct_sum_s: float = 0.0

    def take(self, row: Row) -> None:
        """Follow the trial by one row."""
        if isinstance(row, ChunkRow):
            self.chunks = row.index + 1
            self.buffer_s = row.buffer_s
            self.levels.append(row.level)
            self.qoe_sum += row.qoe if row.index else 0.0
        elif isinstance(row, SegmentRow):
            self.chunks = row.index + 1
            self.buffer_s = max(row.start_s - row.end_s, 0.0)
            self.levels.append(max(int(level, 16) for level in row.levels))
            self.qoe_sum += row.qoe if row.index else 0.0
        elif isinstance(row, JobRow) and row.jct_s is not None:
            self.chunks += 1
            self.jct_sum_s += row.jct_s
        elif isinstance(row, DecisionRow | ScheduleDecisionRow | PredictionRow):
            self.decision_ms = ms_from_s(row.latency_s)
            self.fallbacks += row.source != "policy"

    @property
    def qoe(self) -> float | None:
        """Mean of the chunks so far; the first is not rated."""
        return self.qoe_sum / (self.chunks - 1) if self.chunks > 1 else None


class View(Protocol):
    """What is told of a run while it goes on. `LiveView` says it on the terminal; `testbed.show.Show` stands before that."""

    def trial_started(self, trial_id: str, policy: str, trace: str, lane: int) -> None:
        """A trial begins in a lane."""

    def row(self, row: Row) -> None:
        """A row of a trial that goes on."""

    def trial_ended(self, row: AnyTrialRow, again: bool = False) -> None:
        """A trial is over; or it will be played `again`, because only its link failed."""

    def stage(self, what: str, total: int, of: str) -> None:
        """What goes on after the trials: `what` of `total` things, each told by `advance`."""

    def advance(self) -> None:
        """One more of the stage's things is done."""

    def note(self, text: str) -> None:
        """A sentence for the user."""


class LiveView(View):
    """`with LiveView(total_trials, chunks) as view:` and hand it the rows as they come, from any thread. `step` is the row that is counted.

    Rows of trials that were not announced (simulated ones) only move the progress. `clock` gives seconds; tests hand in their own.
    """

    def __init__(
        self, total_trials: int, chunks: int, console: Console | None = None, clock: Callable[[], float] = now_s, step: type = ChunkRow
    ) -> None:
        self._schedules = step is JobRow
        metrics: dict[type, str] = {JobRow: "JCT", PredictionRow: "MAE"}
        self._metric = metrics.get(step, "QoE")
        self.total_trials = total_trials
        self.chunks = chunks
        self.console = console or Console()
        self.ended = 0
        self.invalid = 0
        self.repeated = 0
        self._clock = clock
        self._started_s = clock()
        self._lanes: dict[int, _LaneState] = {}
        self._by_trial: dict[str, _LaneState] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._stage: tuple[str, int, str] | None = None  # what is done, how many, of what
        self._stage_done = 0

    def __enter__(self) -> "LiveView":
        self._started_s = self._clock()
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.renderable, refresh_per_second=_REFRESH_HZ, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def trial_started(self, trial_id: str, policy: str, trace: str, lane: int) -> None:
        """A trial begins in a lane."""
        state = _LaneState(trial_id, policy, trace)
        with self._lock:
            if (before := self._lanes.get(lane)) is not None:
                self._by_trial.pop(before.trial_id, None)
            self._lanes[lane] = state
            self._by_trial[trial_id] = state

    def row(self, row: Row) -> None:
        """A row of a trial that goes on."""
        with self._lock:
            if (state := self._by_trial.get(row.trial_id)) is not None:
                state.take(row)

    def trial_ended(self, row: AnyTrialRow, again: bool = False) -> None:
        """A trial is over; or it will be played `again`, because only its link failed."""
        with self._lock:
            self.ended += not again
            self.invalid += not row.valid and not again
            self.repeated += again
            self._by_trial.pop(row.trial_id, None)
            for lane in [lane for lane, state in self._lanes.items() if state.trial_id == row.trial_id]:
                del self._lanes[lane]
        every = max(self.total_trials // _QUIET_LINES, 1)
        if not row.valid:
            verdict = "its link failed, to be played again" if again else "invalid"
            self.note(f"{self._counted()} {row.policy} on {row.trace}: {verdict}: {row.invalid_reason}")
        elif self._live is None and (self.ended % every == 0 or self.ended == self.total_trials):
            value = "" if row.value is None else f"{self._metric} {row.value:.2f}, "
            self.note(f"{self._counted()} {row.policy} on {row.trace}: {value}{row.fallbacks} fallbacks")

    def stage(self, what: str, total: int, of: str) -> None:
        """What goes on after the trials: `what` of `total` things, each told by `advance`."""
        with self._lock:
            self._stage, self._stage_done = (what, total, of), 0
        if self._live is None:
            self.note(f"{what} of {total} {of}{'' if total == 1 else 's'}")

    def advance(self) -> None:
        """One more of the stage's things is done."""
        with self._lock:
            self._stage_done += 1

    def note(self, text: str) -> None:
        """A sentence for the user, above the table."""
        self.console.print(Text(text), soft_wrap=True)

    def renderable(self) -> RenderableType:
        """The table and the progress as they are now."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("lane", justify="right")
        table.add_column("policy", no_wrap=True)
        table.add_column("trace", no_wrap=True, overflow="ellipsis", max_width=32)
        table.add_column("jobs" if self._schedules else "chunk", justify="right", no_wrap=True)
        if not self._schedules:
            table.add_column("levels", no_wrap=True, min_width=_SPARKS)
        for name in ("JCT",) if self._schedules else ("buffer", "QoE"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("fallbacks", "decision"):
            table.add_column(name, justify="right", no_wrap=True)
        with self._lock:
            for lane, state in sorted(self._lanes.items()):
                table.add_row(str(lane), *self._cells(state))
            progress = self._progress()
            any_lane = bool(self._lanes)
        return Group(table, progress) if any_lane else progress

    def _cells(self, state: _LaneState) -> tuple[str | Text, ...]:
        late = f"[yellow]{state.fallbacks}[/]" if state.fallbacks else "0"
        decision = "" if state.decision_ms is None else f"{state.decision_ms:.1f} ms"
        if self._schedules:
            jct = f"{state.jct_sum_s / state.chunks:.1f} s" if state.chunks else ""
            return escape(state.policy), Text(state.trace), f"{state.chunks}/{self.chunks}", jct, late, decision
        return (
            escape(state.policy),
            Text(state.trace),
            f"{state.chunks}/{self.chunks}",
            "".join(_BARS[min(level, len(_BARS) - 1)] for level in state.levels),
            f"{state.buffer_s:.1f} s",
            "" if state.qoe is None else f"{state.qoe:.2f}",
            late,
            decision,
        )

    def _progress(self) -> Table:
        if self._stage:
            return self._stage_progress(*self._stage)
        done = self.share_done()
        line = Table.grid(padding=(0, 1))
        invalid = f", [red]{self.invalid} invalid[/]" if self.invalid else ""
        repeated = f", [yellow]{self.repeated} played again[/]" if self.repeated else ""
        counted = f"{self.ended} of {self.total_trials} trials{invalid}{repeated}"
        line.add_row(ProgressBar(total=1.0, completed=done, width=30), counted, self._left(done))
        return line

    def _stage_progress(self, what: str, total: int, of: str) -> Table:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(total, 1), completed=self._stage_done, width=30)
        line.add_row(bar, f"{what}: {self._stage_done} of {total} {of}{'' if total == 1 else 's'}")
        return line

    def share_done(self) -> float:
        """How much of the work is done, 0 to 1, counting chunks of running trials."""
        running = sum(state.chunks / self.chunks for state in self._lanes.values())
        return min((self.ended + running) / max(self.total_trials, 1), 1.0)

    def _left(self, done: float) -> str:
        elapsed_s = self._clock() - self._started_s
        if done < 0.01 or done >= 1:
            return ""
        minutes, seconds = divmod(round(elapsed_s * (1 - done) / done), 60)
        return f"about {minutes}:{seconds:02d} left"

    def _counted(self) -> str:
        return f"[{self.ended}/{self.total_trials}]"
