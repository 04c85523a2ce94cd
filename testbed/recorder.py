"""Takes the rows of all trials as they come, and gives each emulated trial its twin in the simulator."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.abr import PathFacts, session, trial_row
from testbed.live import LiveView
from testbed.prepared import Prepared, job
from testbed.records import ChunkRow, PlaybackEndRow, Row, SimulatedRow
from testbed.results import ResultFolder
from testbed.simulation import simulate
from testbed.trial import Trial


class Recorder:
    """Takes rows from all lanes, writes them through to the result folder and closes each trial."""

    def __init__(self, prepared: Prepared, folder: ResultFolder, view: LiveView) -> None:
        self._prepared, self._folder, self._view = prepared, folder, view
        self._trials = {trial.trial_id: trial for trial in prepared.trials}
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self.closed = 0
        """Trials that are over."""
        self.played: dict[str, tuple[int, ...]] = {}
        """Levels that each emulated trial chose, of those that played to the end."""

    def started(self, trial: Trial, lane: int) -> None:
        """A trial begins in a lane."""
        self._view.trial_started(trial.trial_id, trial.policy, trial.trace.name, lane)

    def row(self, row: Row) -> None:
        """A row of a trial; in simulation the playback's end closes the trial."""
        self._rows[row.trial_id].append(row)
        self._folder.append(row)
        self._view.row(row)
        if isinstance(row, PlaybackEndRow) and self._prepared.experiment.simulate:
            self.close(row.trial_id, PathFacts())

    def extend(self, rows: Iterable[Any]) -> None:
        """Link counters of a trial, by the thousand."""
        self._folder.extend(rows)

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self._view.note(text)

    def log(self, text: str) -> None:
        """What a player said on its standard error: why decisions fell back, above all."""
        if text:
            with (self._folder.path / "players.log").open("a", encoding="utf-8") as log:
                log.write(text)

    def request(self, line: bytes) -> None:
        """A line of an origin's log (`players.config.OriginRequest`)."""
        with (self._folder.path / "requests.jsonl").open("ab") as log:
            log.write(line)

    def close(self, trial_id: str, path: PathFacts) -> None:
        """A trial is over: judge it and write its row."""
        trial = self._trials[trial_id]
        playback = session(trial, self._prepared.video, self._prepared.experiment)
        mode = "simulation" if self._prepared.experiment.simulate else "emulation"
        rows = self._rows.pop(trial_id, [])
        row = trial_row(trial, playback, rows, path, mode)
        self._folder.append(row)
        self._view.trial_ended(row)
        self.closed += 1
        if row.chunks == self._prepared.experiment.chunks:
            self.played[trial_id] = tuple(chunk.level for chunk in rows if isinstance(chunk, ChunkRow))


def twins(prepared: Prepared, played: Mapping[str, tuple[int, ...]]) -> list[SimulatedRow]:
    """The simulated twin of each emulated trial in `played` (trial to levels): once under its policy, once with the same levels.

    When the two scores of one trial differ from the emulated one, the second tells why: if the simulator agrees as long as it plays the
    same levels, path and player agree, and it was the decisions that parted.
    """
    trials = [trial for trial in prepared.trials if trial.trial_id in played]
    decided = _simulated([job(prepared, trial) for trial in trials])
    replayed = _simulated([job(prepared, trial, played[trial.trial_id]) for trial in trials])
    return [
        SimulatedRow(
            trial_id=trial.trial_id,
            qoe=_mean_qoe(decided[trial.trial_id]),
            replayed_qoe=_mean_qoe(replayed[trial.trial_id]),
            parts_at_chunk=_first_difference([chunk.level for chunk in decided[trial.trial_id]], played[trial.trial_id]),
        )
        for trial in trials
        if decided[trial.trial_id]
    ]


def _simulated(work: list[Any]) -> dict[str, list[ChunkRow]]:
    chunks: dict[str, list[ChunkRow]] = defaultdict(list)
    simulate(work, lambda row: chunks[row.trial_id].append(row) if isinstance(row, ChunkRow) else None)
    return chunks


def _mean_qoe(chunks: list[ChunkRow]) -> float:
    rated = [chunk.qoe for chunk in chunks if chunk.index > 0]
    return sum(rated) / len(rated)


def _first_difference(simulated: list[int], played: tuple[int, ...]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(simulated, played, strict=True)) if a != b), None)
