"""`events.jsonl`: one JSON line per event, flushed as it happens, from which everything derived is rebuilt. Also the tables made of it."""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import polars as pl

from testbed.errors import UserError
from testbed.records import (
    AnyTrialRow,
    ChunkRow,
    DecisionRow,
    EndRow,
    Event,
    ExecutorRow,
    HostRow,
    JobRow,
    LatenessRow,
    LinkRow,
    OptimumRow,
    PlaybackEndRow,
    RunHeader,
    ScheduleBeginRow,
    ScheduleDecisionRow,
    ScheduleEndRow,
    ScheduleRow,
    SimulatedRow,
    StallRow,
    TaskRow,
    TraceRow,
    TransferRow,
    TrialRow,
)
from testbed.records_vp import HeadRow, PredictionRow, SegmentRow, ViewingEndRow, ViewingRow

EVENTS_FILE = "events.jsonl"
TABLES: dict[str, type[msgspec.Struct]] = {
    "trials": TrialRow,
    "chunks": ChunkRow,
    "decisions": DecisionRow,
    "links": LinkRow,
    "stalls": StallRow,
    "host": HostRow,
}
"""Table name (`NAME.parquet`) to its row."""
SCHEDULE_TABLES: dict[str, type[msgspec.Struct]] = {
    "trials": ScheduleRow,
    "jobs": JobRow,
    "tasks": TaskRow,
    "decisions": ScheduleDecisionRow,
    "executors": ExecutorRow,
    "transfers": TransferRow,
    "links": LinkRow,
    "host": HostRow,
}
"""The same of a run that schedules."""
VIEWING_TABLES: dict[str, type[msgspec.Struct]] = {
    "trials": ViewingRow,
    "segments": SegmentRow,
    "heads": HeadRow,
    "decisions": PredictionRow,
    "links": LinkRow,
    "host": HostRow,
}
"""The same of a run that predicts viewports."""
TABLES_BY_TASK = {"abr": TABLES, "cjs": SCHEDULE_TABLES, "vp": VIEWING_TABLES}
_IN_NO_TABLE = {
    RunHeader, EndRow, TraceRow, LatenessRow, SimulatedRow, OptimumRow, PlaybackEndRow, ScheduleBeginRow, ScheduleEndRow, ViewingEndRow,
}  # fmt: skip
_DTYPES: dict[type, type[pl.DataType]] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
_BATCH_ROWS = 50_000
"""Rows held as structs before they become columns: a long run has millions of link rows."""


@dataclass(frozen=True)
class Run:
    """A whole run as read from its events."""

    header: RunHeader
    trials: tuple[AnyTrialRow, ...]
    tables: dict[str, pl.DataFrame]
    """By the names of the task's tables; typed even when empty."""
    traces: dict[str, TraceRow] = field(default_factory=dict)
    """By the trace's sha256."""
    lateness: tuple[LatenessRow, ...] = ()
    optima: dict[tuple[str, float], OptimumRow] = field(default_factory=dict)
    """By the trace's sha256 and the offset, seconds; also those that could not be computed."""
    end: EndRow | None = None
    """None when the run was killed or is still going on."""
    truncated: bool = False
    """The last line was cut off, as a kill in the middle of a write leaves it."""

    @property
    def playbacks(self) -> tuple[TrialRow, ...]:
        """Those trials that are playbacks: all of them in a run of task `abr`."""
        return tuple(trial for trial in self.trials if isinstance(trial, TrialRow))

    @property
    def unfinished(self) -> int:
        """Trials that have rows but did not end."""
        seen = {t for name in self.tables if name not in ("trials", "host") for t in self.tables[name]["trial_id"].unique()}
        return len(seen - {t.trial_id for t in self.trials})


def schema(row: type[msgspec.Struct]) -> dict[str, pl.DataType]:
    """Column names and types of a row struct: optional fields are nullable columns, structs within it struct columns."""
    hints = typing.get_type_hints(row)
    return {name: _dtype(_bare(hints[name])) for name in row.__struct_fields__}


def _bare(hint: object) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return typing.cast(type, hint)


def _dtype(kind: type) -> pl.DataType:
    return pl.Struct(schema(kind)) if issubclass(kind, msgspec.Struct) else _DTYPES[kind]()


def read_run(folder: Path) -> Run:
    """Read `events.jsonl` of a result folder. A folder without one, or a line that is no event (but the last), is a `UserError`."""
    path = folder / EVENTS_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a result folder: it has no {EVENTS_FILE}, wanted a folder that a run left")
    reader = _Reader(path)
    for event in reader.events():
        reader.take(event)
    return reader.run()


class _Reader:
    """Sorts events into tables, batch by batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: RunHeader | None = None
        self.end: EndRow | None = None
        self.trials: list[AnyTrialRow] = []
        self.traces: dict[str, TraceRow] = {}
        self.lateness: list[LatenessRow] = []
        self.twins: dict[str, SimulatedRow] = {}
        self.optima: dict[tuple[str, float], OptimumRow] = {}
        self.truncated = False
        self._lay_out(TABLES)

    def _lay_out(self, tables: dict[str, type[msgspec.Struct]]) -> None:
        self._tables = tables
        self._names = {row: name for name, row in tables.items()}
        self._fitting = _IN_NO_TABLE | set(self._names)
        self._rows: dict[str, list[msgspec.Struct]] = {name: [] for name in tables}
        self._frames: dict[str, list[pl.DataFrame]] = {name: [] for name in tables}

    def events(self) -> Iterator[Event]:
        """Every event in order; a last line that is cut off ends the run there."""
        decoder = msgspec.json.Decoder(Event)
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    event = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    if number > 1 and not line.endswith(b"\n"):
                        self.truncated = True
                        return
                    raise UserError(f"{self.path}, line {number}: {error}, wanted one event of a run as JSON") from None
                if (number == 1) != isinstance(event, RunHeader):
                    raise UserError(f"{self.path}, line {number}: {type(event).__name__}, wanted the header on line 1 and nowhere else")
                if isinstance(event, RunHeader) and event.task not in TABLES_BY_TASK:
                    raise UserError(f"{self.path}, line 1: task is {event.task!r:.100}, wanted one of {', '.join(TABLES_BY_TASK)}")
                if type(event) not in self._fitting:
                    raise UserError(f"{self.path}, line {number}: {type(event).__name__}, wanted no row of another task than the header's")
                yield event

    def take(self, event: Event) -> None:
        """File one event."""
        match event:
            case RunHeader():
                self.header = event
                self._lay_out(TABLES_BY_TASK[event.task])
            case EndRow():
                self.end = event
            case TraceRow():
                self.traces[event.sha256] = event
            case LatenessRow():
                self.lateness.append(event)
            case SimulatedRow():
                self.twins[event.trial_id] = event
            case OptimumRow():
                self.optima[event.trace_sha256, event.offset_s] = event
            case TrialRow() | ScheduleRow() | ViewingRow():
                self.trials.append(event)
            case PlaybackEndRow() | ScheduleBeginRow() | ScheduleEndRow() | ViewingEndRow():
                pass  # the trial's row holds it
            case _:
                name = self._names[type(event)]
                self._rows[name].append(event)
                if len(self._rows[name]) >= _BATCH_ROWS:
                    self._flush(name)

    def _flush(self, name: str) -> None:
        self._frames[name].append(frame(self._rows[name], self._tables[name]))
        self._rows[name] = []

    def run(self) -> Run:
        """The run read so far."""
        if self.header is None:
            raise UserError(f"{self.path} is empty, wanted a header line")
        trials = [self._with_optimum(self._with_twin(trial)) for trial in self.trials]
        self._rows["trials"] = list(trials)
        for name in self._tables:
            self._flush(name)
        tables = {name: pl.concat(frames) for name, frames in self._frames.items()}
        return Run(self.header, tuple(trials), tables, self.traces, tuple(self.lateness), self.optima, self.end, self.truncated)

    def _with_twin(self, trial: AnyTrialRow) -> AnyTrialRow:
        twin = self.twins.get(trial.trial_id)
        if twin is None or isinstance(trial, ViewingRow):
            return trial
        if isinstance(trial, ScheduleRow):
            return msgspec.structs.replace(trial, simulated_jct_s=twin.avg_jct_s)
        return msgspec.structs.replace(trial, simulated_qoe=twin.qoe, replayed_qoe=twin.replayed_qoe, parts_at_chunk=twin.parts_at_chunk)

    def _with_optimum(self, trial: AnyTrialRow) -> AnyTrialRow:
        optimum = self.optima.get((trial.trace_sha256, trial.offset_s))
        return trial if optimum is None or not isinstance(trial, TrialRow) else msgspec.structs.replace(trial, optimum_qoe=optimum.qoe)


def frame(rows: list[msgspec.Struct], row: type[msgspec.Struct]) -> pl.DataFrame:
    """Rows as a typed table, also when there are none."""
    columns = {name: [_plain(getattr(r, name)) for r in rows] for name in row.__struct_fields__}
    return pl.DataFrame(columns, schema=schema(row), strict=False)


def _plain(value: object) -> object:
    return msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else value
