"""Experience for scheduling: sessions in the simulator, of which some windows of decisions are labelled by look-ahead.

A label is a list of candidate decisions with what each would cost (`testbed.sim.cjs_ahead`), so a student learns how much worse one is than
another, and not only which one somebody took. The look-ahead knows when running tasks will end; what is learnt is the mean over that,
since the student never sees it. Between labelled windows the rule decides, which costs nothing.

A file holds no observation: the simulator repeats a session from its seed and the decisions (`replay`). Sessions are those of
`controllers.learning.cjs_sessions`, which no evaluation uses.
"""

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from controllers.api import CjsAction, CjsObservation
from controllers.cjs.srpt_cap import NUMBERS
from controllers.learning.cjs_sessions import CjsJob, draw_session, workloads
from testbed.errors import UserError
from testbed.processes import in_processes
from testbed.sim.cjs import STARVED
from testbed.sim.cjs_ahead import Candidates, LookAhead
from testbed.sim.cjs_compiled import CompiledCjs
from traces.tpch import load_profiles

HEADER, FORMAT = "netllm", 1
NOISE = 0.15
"""Share of decisions that the behaviour `noisy` draws from the candidates."""
BEHAVIOURS = ("ahead", "noisy", "ahead", "rule")
"""Who decides in a labelled window, in turn: the cheapest candidate, the rule with noise, the rule."""


RULE_ONLY = "rule only"
"""The rule decides, with noise, and is the only candidate."""


class Student(Protocol):
    """Decides for sessions that advance together (`netllm.cjs.reader.CjsReader`)."""

    def decide(self, observations: Sequence[CjsObservation]) -> list[CjsAction]:
        """One decision a session."""
        ...

    def keep(self, places: Sequence[int]) -> None:
        """From now on there are only the sessions at these places."""
        ...


@dataclass(frozen=True)
class CjsCollectSettings:
    """What to collect."""

    sessions: int = 120
    """Workloads."""
    rule_only: float = 0.0
    """Share of sessions that are labelled with the rule's own decisions alone, without look-ahead: a hundred times as quick."""
    seed: int = 1
    """Of everything random."""
    windows: int = 14
    """Labelled windows a session, at most; as many as fit."""
    window: int = 64
    """Decisions in each."""
    conserving: float = 0.25
    """Share of sessions under work-conserving rules; the others are under the published ones."""
    usual: float = 0.45
    """Share of sessions of 50 executors and 200 jobs."""
    small: float = 0.25
    """Share of sessions of 8 to 16 executors with a backlog of few jobs; what is left varies (`controllers.learning.cjs_sessions`)."""


@dataclass(frozen=True)
class CjsEpisode:
    """A session up to its last labelled window: decisions (N, 2) as stage row and executors, and labels of some of them."""

    job: CjsJob
    actions: np.ndarray
    starts: tuple[int, ...]
    """First decision of each labelled window."""
    labels: tuple[Candidates, ...]
    """Of each decision in the windows, in order."""
    window: int


def jobs(settings: CjsCollectSettings, dagger_round: int = 0) -> list[CjsJob]:
    """Sessions to play, all drawn from the seed: those collected first, or those of a round of DAgger (1, 2, ...)."""
    rng = np.random.default_rng([settings.seed, 11, *([dagger_round] if dagger_round else [])])
    seeds = workloads("collected", settings.seed, dagger_round, settings.sessions)
    shares = settings.usual, settings.small, settings.conserving
    imitated = round(settings.rule_only * settings.sessions)
    turns = [RULE_ONLY] * imitated + [BEHAVIOURS[i % len(BEHAVIOURS)] for i in range(settings.sessions - imitated)]
    return [draw_session(rng, seed, *shares, behaviour) for seed, behaviour in zip(seeds, turns, strict=True)]


def look_ahead() -> LookAhead:
    """With the rule of `controllers.cjs.srpt_cap`."""
    return LookAhead(NUMBERS)


def window_starts(job: CjsJob, settings: CjsCollectSettings, ahead: LookAhead) -> tuple[int, ...]:
    """Where windows begin: one anywhere in each of equal parts of the session, as long as the rule takes."""
    simulator = job.simulator()
    while not simulator.ended:
        simulator.step(CjsAction(*ahead.rule(simulator)))
    parts = max(min(settings.windows, simulator.decisions // settings.window), 1)
    room = simulator.decisions // parts - settings.window
    rng = np.random.default_rng([job.seed, 12])
    return tuple(part * (simulator.decisions // parts) + int(rng.integers(max(room, 0) + 1)) for part in range(parts))


def play(batch: Sequence[CjsJob], settings: CjsCollectSettings, student: Student | None = None, processes: int = 1) -> Iterator[CjsEpisode]:
    """Play all jobs and label their windows; a `student` decides for all that still run at once, and everywhere."""
    if student is not None:
        yield from _play_together(batch, settings, student)
    elif processes == 1:
        ahead = look_ahead()
        for job in batch:
            yield _play(job, settings, ahead)
    else:
        yield from _in_order(in_processes(partial(_play, settings=settings), dict(enumerate(batch)), processes))


def _in_order(numbered: Iterable[tuple[int, CjsEpisode]]) -> Iterator[CjsEpisode]:
    """As they come, but none before those of lower numbers."""
    early, due = dict[int, CjsEpisode](), 0
    for number, episode in numbered:
        early[number] = episode
        while due in early:
            yield early.pop(due)
            due += 1


def _play(job: CjsJob, settings: CjsCollectSettings, ahead: LookAhead | None = None) -> CjsEpisode:
    ahead = ahead or look_ahead()
    starts, rng = window_starts(job, settings, ahead), np.random.default_rng([job.seed, 13])
    simulator, actions, labels = job.simulator(), list[tuple[int, int]](), list[Candidates]()
    while not simulator.ended and len(actions) < starts[-1] + settings.window:
        action = ahead.rule(simulator)
        if _within(len(actions), starts, settings.window):
            if job.behaviour == RULE_ONLY:
                labels.append(_only(action, simulator.observation))
                action = _noisy(action, simulator.observation, rng)
            else:
                labels.append(ahead.candidates(simulator))
                action = _chosen(job.behaviour, labels[-1], rng)
        actions.append(action)
        simulator.step(CjsAction(*action))
    return CjsEpisode(job, np.array(actions, np.int64), starts, tuple(labels), settings.window)


def _within(step: int, starts: Sequence[int], window: int) -> bool:
    return any(start <= step < start + window for start in starts)


def _only(action: tuple[int, int], seen: CjsObservation) -> Candidates:
    """The rule's decision, cut to what the stage can use, as the only candidate."""
    stage, executors = action
    return Candidates(np.array([stage]), np.array([min(executors, int(seen.demand[stage]))]), np.zeros(1))


def _noisy(action: tuple[int, int], seen: CjsObservation, rng: np.random.Generator) -> tuple[int, int]:
    """Sometimes any stage and any number instead."""
    if rng.random() >= NOISE:
        return action
    return int(rng.choice(np.flatnonzero(seen.schedulable))), int(rng.integers(1, seen.committable + 1))


def _chosen(behaviour: str, found: Candidates, rng: np.random.Generator) -> tuple[int, int]:
    place = 0
    if behaviour == "ahead":
        place = int(np.argmin(found.cost_s))
    elif behaviour == "noisy" and rng.random() < NOISE:
        place = int(rng.integers(len(found.stage)))
    return int(found.stage[place]), int(found.executors[place])


def _play_together(batch: Sequence[CjsJob], settings: CjsCollectSettings, student: Student) -> list[CjsEpisode]:
    ahead = look_ahead()
    starts = [window_starts(job, settings, ahead) for job in batch]
    simulators = [job.simulator() for job in batch]
    actions: list[list[tuple[int, int]]] = [[] for _ in batch]
    labels: list[list[Candidates]] = [[] for _ in batch]

    def watch(number: int, simulator: CompiledCjs, action: CjsAction) -> bool:
        if _within(len(actions[number]), starts[number], settings.window):
            labels[number].append(ahead.candidates(simulator))
        actions[number].append((action.stage, action.executors))
        return len(actions[number]) < starts[number][-1] + settings.window

    play_together(simulators, student, watch)
    return [
        CjsEpisode(replace(job, behaviour="student"), np.array(actions[i], np.int64), starts[i], tuple(labels[i]), settings.window)
        for i, job in enumerate(batch)
    ]


def play_together(
    simulators: Sequence[CompiledCjs], student: Student, watch: Callable[[int, CompiledCjs, CjsAction], bool] | None = None
) -> None:
    """Play sessions in step until all have ended, or until `watch` (number, simulator, decision) says of one that it is enough."""
    running = list(range(len(simulators)))
    while running:
        actions = student.decide([simulators[number].observation for number in running])
        places = []
        for place, (number, action) in enumerate(zip(running, actions, strict=True)):
            goes_on = watch is None or watch(number, simulators[number], action)
            simulators[number].step(action)
            if goes_on and not simulators[number].ended:
                places.append(place)
        if len(places) < len(running):
            running = [running[place] for place in places]
            student.keep(places)
    if any(simulator.ended == STARVED for simulator in simulators):
        raise RuntimeError("a session starved, though the student never declines")


def replay(episode: CjsEpisode) -> Iterator[tuple[int, CjsObservation]]:
    """Number and observation of each decision of an episode, played again."""
    simulator = episode.job.simulator()
    for step, (stage, executors) in enumerate(episode.actions.tolist()):
        yield step, simulator.observation
        simulator.step(CjsAction(stage, executors))


def header(settings: CjsCollectSettings, **more: Any) -> dict[str, Any]:
    """How an experience file was made."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "polars")}
    facts = {"format": FORMAT, "task": "cjs", "settings": asdict(settings), "rule": list(NUMBERS), "versions": versions}
    return facts | {"profiles_tasks": int(load_profiles().tasks.sum()), **more}


def write(out: Path, episodes: Sequence[CjsEpisode], facts: dict[str, Any]) -> None:
    """One row an episode; written beside the target and renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    pl.DataFrame([_row(each) for each in episodes], schema=SCHEMA).write_parquet(scratch, metadata={HEADER: json.dumps(facts)})
    os.replace(scratch, out)


SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "seed": pl.Int64,
    "jobs": pl.Int32,
    "interarrival_s": pl.Float64,
    "executors": pl.Int32,
    "semantics": pl.String,
    "behaviour": pl.String,
    "window": pl.Int32,
    "starts": pl.List(pl.Int32),
    "stage": pl.List(pl.Int32),
    "given": pl.List(pl.Int32),
    "tried": pl.List(pl.Int32),
    "tried_stage": pl.List(pl.Int32),
    "tried_executors": pl.List(pl.Int32),
    "tried_cost_s": pl.List(pl.Float64),
}


def _row(episode: CjsEpisode) -> dict[str, Any]:
    labels = episode.labels
    return asdict(episode.job) | {
        "window": episode.window,
        "starts": list(episode.starts),
        "stage": episode.actions[:, 0].tolist(),
        "given": episode.actions[:, 1].tolist(),
        "tried": [len(each.stage) for each in labels],
        "tried_stage": [value for each in labels for value in each.stage.tolist()],
        "tried_executors": [value for each in labels for value in each.executors.tolist()],
        "tried_cost_s": [value for each in labels for value in each.cost_s.tolist()],
    }


def read_header(path: Path) -> dict[str, Any]:
    """The header of an experience file. Raises `UserError` when it is none."""
    try:
        facts: dict[str, Any] = json.loads(pl.read_parquet_metadata(path)[HEADER])
    except (OSError, KeyError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: is no experience file ({error!r}), wanted one written by scripts/adapt cjs") from error
    if (facts.get("format"), facts.get("task")) != (FORMAT, "cjs"):
        raise UserError(f"{path}: has format {facts.get('format')!r} and task {facts.get('task')!r}, wanted {FORMAT} and cjs")
    return facts


def read(path: Path) -> list[CjsEpisode]:
    """The episodes of an experience file."""
    read_header(path)
    return [_from_row(row) for row in pl.read_parquet(path).iter_rows(named=True)]


def _from_row(row: dict[str, Any]) -> CjsEpisode:
    ends = np.cumsum(row["tried"])[:-1]
    columns = (np.split(np.array(row[name]), ends) for name in ("tried_stage", "tried_executors", "tried_cost_s"))
    labels = tuple(Candidates(*each) for each in zip(*columns, strict=True))
    names = ("seed", "jobs", "interarrival_s", "executors", "semantics", "behaviour")
    actions = np.stack([row["stage"], row["given"]], axis=1).astype(np.int64)
    return CjsEpisode(CjsJob(**{name: row[name] for name in names}), actions, tuple(row["starts"]), labels, row["window"])
