"""Takes the rows of all trials as they come, and gives each emulated trial its twin in the simulator."""

import bisect
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from players.dash.stock import STOCK
from testbed.abr import PreparedPlaybacks, job
from testbed.live import View
from testbed.prepared import Prepared
from testbed.pressure import NO_STRAIN, Strain, strain
from testbed.records import ChunkRow, HostRow, Row, ScheduleEndRow, SimulatedRow
from testbed.results import ResultFolder
from testbed.simulation import simulate
from testbed.verdict import PathFacts, only_its_link_failed


@dataclass(frozen=True)
class Played:
    """A trial that was played to the end, and the level of each of its chunks, if it has any."""

    trial: Any
    levels: tuple[int, ...]


class Recorder:
    """Takes rows from all lanes, writes them through to the result folder and closes each trial."""

    def __init__(self, prepared: Prepared, folder: ResultFolder, view: View) -> None:
        self._prepared, self._folder, self._view = prepared, folder, view
        self._attempts = {trial.trial_id: _Attempt(trial, trial.trial_id) for trial in prepared.trials}
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._host: list[HostRow] = []
        self._lock = threading.Lock()
        self.closed = 0
        """Trials that are over and won't be played again."""
        self.played: dict[str, Played] = {}
        """The attempts that count, of those that played to the end."""

    def started(self, trial: Any, lane: int) -> None:
        """A trial begins in a lane."""
        self._view.trial_started(trial.trial_id, trial.policy, trial.name, lane)

    def row(self, row: Row) -> None:
        """A row of a trial; in simulation the end closes the trial."""
        self._rows[row.trial_id].append(row)
        self._folder.append(row)
        self._view.row(row)
        if isinstance(row, self._prepared.closing) and self._prepared.experiment.simulate:
            self.close(row.trial_id, PathFacts())

    def host(self, row: HostRow) -> None:
        """A moment of the host."""
        self._host.append(row)
        self._folder.append(row)

    def extend(self, rows: Iterable[Any]) -> None:
        """Link counters of a trial, by the thousand."""
        self._folder.extend(rows)

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self._view.note(text)

    def kept_folder(self) -> Path:
        """Where browsers keep what they showed and said."""
        folder = self._folder.path / "browser"
        folder.mkdir(exist_ok=True)
        return folder

    def log(self, text: str) -> None:
        """What a player said on its standard error: why decisions fell back, above all."""
        if text:
            with (self._folder.path / "players.log").open("a", encoding="utf-8") as log:
                log.write(text)

    def request(self, line: bytes) -> None:
        """A line of an origin's log (`players.config.OriginRequest`)."""
        with (self._folder.path / "requests.jsonl").open("ab") as log:
            log.write(line)

    def close(self, trial_id: str, path: PathFacts) -> Any:
        """A trial is over: judge it and write its row. Returns what to play again at the end of the run, if only its link failed.

        What an attempt left stays in the events; the last attempt counts.
        """
        attempt, rows = self._attempts[trial_id], self._rows.pop(trial_id, [])
        trial, experiment = attempt.trial, self._prepared.experiment
        row = self._prepared.row(trial, rows, path, attempt.number, self._strain(path))
        self._folder.append(row)
        again = attempt.next() if attempt.number <= experiment.repeats and only_its_link_failed(row, path) else None
        self._view.trial_ended(row, again is not None)
        if again:
            self._attempts[again.trial.trial_id] = again
            return again.trial
        if row.end_reason == "complete":
            self.played[trial_id] = Played(trial, tuple(chunk.level for chunk in rows if isinstance(chunk, ChunkRow)))
        with self._lock:
            self.closed += 1
        return None

    def _strain(self, path: PathFacts) -> Strain:
        if path.began_at_s is None or path.ended_at_s is None:
            return NO_STRAIN
        first = bisect.bisect_left(self._host, path.began_at_s, key=lambda row: row.at_s)
        return strain(self._host[first:], path.began_at_s, path.ended_at_s)


@dataclass(frozen=True)
class _Attempt:
    """A trial, its number among the attempts of the trial that was planned, and that one's id."""

    trial: Any
    planned_id: str
    number: int = 1

    def next(self) -> "_Attempt":
        """The same once more, under an id of its own: `t0003`, then `t0003r1`."""
        trial = dataclasses.replace(self.trial, trial_id=f"{self.planned_id}r{self.number}")
        return _Attempt(trial, self.planned_id, self.number + 1)


def twins(prepared: PreparedPlaybacks, played: Mapping[str, Played]) -> list[SimulatedRow]:
    """The simulated twin of each emulated trial in `played` (by its id): once under its policy, once with the same levels.

    When the two scores of one trial differ from the emulated one, the second tells why: if the simulator agrees as long as it plays the
    same levels, path and player agree, and it was the decisions that parted. Rules of the browser's own have no twin but the second.
    """
    decided = _simulated([job(prepared, one.trial) for one in played.values() if one.trial.policy not in STOCK])
    replayed = _simulated([job(prepared, one.trial, one.levels) for one in played.values()])
    return [
        SimulatedRow(
            trial_id=trial_id,
            qoe=_mean_qoe(decided[trial_id]) if decided[trial_id] else None,
            replayed_qoe=_mean_qoe(replayed[trial_id]),
            parts_at_chunk=_first_difference([chunk.level for chunk in decided[trial_id]], one.levels) if decided[trial_id] else None,
        )
        for trial_id, one in played.items()
        if decided[trial_id] or one.trial.policy in STOCK
    ]


def schedule_twins(prepared: Prepared, played: Mapping[str, Played]) -> list[SimulatedRow]:
    """The simulated twin of each schedule in `played`, under its policy."""
    found: list[SimulatedRow] = []

    def take(row: Row) -> None:
        if isinstance(row, ScheduleEndRow) and row.end_reason == "complete":
            found.append(SimulatedRow(trial_id=row.trial_id, avg_jct_s=row.avg_jct_s))

    simulate([prepared.job(one.trial) for one in played.values()], take)
    return found


def _simulated(work: list[Any]) -> dict[str, list[ChunkRow]]:
    chunks: dict[str, list[ChunkRow]] = defaultdict(list)
    simulate(work, lambda row: chunks[row.trial_id].append(row) if isinstance(row, ChunkRow) else None)
    return chunks


def _mean_qoe(chunks: list[ChunkRow]) -> float:
    rated = [chunk.qoe for chunk in chunks if chunk.index > 0]
    return sum(rated) / len(rated)


def _first_difference(simulated: list[int], played: tuple[int, ...]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(simulated, played, strict=True)) if a != b), None)
