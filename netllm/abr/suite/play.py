"""Plays policies on settings: a language model decides for all traces in step, others one session after the other, some processes at once.

Whatever is finished is kept at once (`cells`). A deterministic policy is played once; one that drew random numbers (its `rng` has moved)
is played again with the other sampling seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from controllers.loader import raised
from netllm.abr.suite.cells import CELL, Cell, CellStore
from netllm.abr.suite.contenders import NETLLM, SIMULATION, Contender
from netllm.abr.suite.settings import Setting, prepare
from netllm.identity import CHECKOUT, hash_tree
from testbed.clock import thread_cpu_s
from testbed.errors import UserError
from testbed.metrics import SessionSummary, summarise
from testbed.processes import in_processes
from testbed.sim.abr import OPTIMUM_GRID_S, AbrSimulator, run_session
from testbed.sim.kept import kept_optimum
from traces.trace import Trace

OPTIMUM = "optimum"
EXACT = (*SIMULATION, "testbed/sim/batch.py", "testbed/sim/optimum.py")
"""Sources that decide what the optimum is."""
BatchDecide = Callable[[Sequence[AbrObservation]], Sequence[int]]
"""Levels for sessions that are all at the same chunk."""


@dataclass(frozen=True)
class Task:
    """A cell to be played: `member` of `contender` (None: the optimum) on a setting with a sampling seed."""

    setting: Setting
    quick: bool
    contender: Contender | None
    member: int
    seed: int

    @property
    def policy(self) -> str:
        """For people and file names."""
        if self.contender is None:
            return OPTIMUM
        return f"{self.contender.name}.{self.member}" if len(self.contender.members) > 1 else self.contender.name

    @property
    def together(self) -> bool:
        """Whether a language model decides, for all traces in step."""
        return self.contender is not None and self.contender.kind == NETLLM

    def path(self, store: CellStore) -> Path:
        """Where its cell is kept."""
        played = prepare(self.setting, self.quick).identity
        if self.contender is None:
            return store.path(self.setting.name, OPTIMUM, self.seed, (played, OPTIMUM, str(OPTIMUM_GRID_S), hash_tree(EXACT)))
        member = self.contender.members[self.member]
        return store.path(self.setting.name, Path(member.reference.target).stem, self.seed, (played, member.identity))


def play_all(
    store: CellStore,
    settings: Sequence[Setting],
    contenders: Sequence[Contender],
    quick: bool,
    samples: int,
    processes: int,
    batch: int,
    told: Callable[[Task, int, int], None],
) -> dict[tuple[str, str, int, int], Cell]:
    """Every cell, by setting, policy, member and seed; `told` hears of each that is done: the task, how many are done, how many there are.

    Raises `UserError` when a policy fails; what was done before is kept.
    """
    first = [
        Task(setting, quick, contender, member, 0)
        for setting in settings
        for contender in (None, *contenders)
        for member in range(len(contender.members) if contender else 1)
    ]
    cells: dict[tuple[str, str, int, int], Cell] = {}
    done, total = 0, len(first)
    for tasks in (first, None):
        tasks = tasks if tasks is not None else _further(first, cells, samples)
        total = max(total, done + len(tasks))
        for task, cell in _played(store, tasks, processes, batch):
            cells[task.setting.name, task.contender.name if task.contender else OPTIMUM, task.member, task.seed] = cell
            done += 1
            told(task, done, total)
    return cells


def _further(first: Sequence[Task], cells: dict[tuple[str, str, int, int], Cell], samples: int) -> list[Task]:
    """The other sampling seeds of what turned out to draw random numbers."""
    return [
        Task(task.setting, task.quick, task.contender, task.member, seed)
        for task in first
        if task.contender and cells[task.setting.name, task.contender.name, task.member, 0].random
        for seed in range(1, samples)
    ]


def _played(store: CellStore, tasks: Sequence[Task], processes: int, batch: int) -> Iterator[tuple[Task, Cell]]:
    """Each task with its cell: those kept first, then the quick ones, then language models, which use this process's threads.

    Tasks of one cell (a policy that is also a member of a family) are played once.
    """
    missing: dict[Path, list[Task]] = {}
    for task in tasks:
        path = task.path(store)
        kept = None if path in missing else store.read(path)
        if kept is not None:
            yield task, kept
        else:
            missing.setdefault(path, []).append(task)
    for path, cell in _missing_played({path: same[0] for path, same in missing.items()}, processes, batch):
        store.write(path, cell)
        for task in missing[path]:
            yield task, cell


def _missing_played(tasks: Mapping[Path, Task], processes: int, batch: int) -> Iterator[tuple[Path, Cell]]:
    alone = {path: task for path, task in tasks.items() if not task.together}
    if processes > 1:
        yield from in_processes(play, alone, processes)
    else:
        for path, task in alone.items():
            yield path, play(task)
    for path, task in tasks.items():
        if task.together:
            yield path, _play_together(task, batch)


def play(task: Task) -> Cell:
    """The sessions of a policy, or the optimum, one after the other."""
    began_s, prepared = thread_cpu_s(), prepare(task.setting, task.quick)
    if task.contender is None:
        known = [optimum_of(each.trace, prepared.session, each.offset_s) for each in prepared.playbacks]
        blank = (float("nan"),) * (len(CELL) - 1)
        return Cell(tuple((value, *blank) for value in known), seconds=thread_cpu_s() - began_s)
    policy = task.contender.members[task.member].make()
    sessions, random = [], False
    for number, each in enumerate(prepared.playbacks):
        seed = task.seed * 1_000_003 + number  # another stream for each trace, the same for each policy
        try:
            chunks = run_session(each.trace, prepared.session, policy, seed, each.offset_s)
        except UserError as error:
            return Cell((), refused=_sentence(error), seconds=thread_cpu_s() - began_s)
        except Exception as error:  # whatever a user's policy may raise
            where = f"on setting {task.setting.name}, trace {each.trace.name}"
            raise UserError(f"policy {task.policy!r} failed {where}: it {raised(error)}") from error
        random = random or _moved(policy, seed)
        sessions.append(_columns(summarise(chunks, prepared.session.video)))
    return Cell(tuple(sessions), random, seconds=thread_cpu_s() - began_s)


def optimum_of(trace: Trace, session: AbrSession, offset_s: float) -> float:
    """Mean QoE per chunk of the offline optimum."""
    return kept_optimum(trace, session, offset_s).qoe


def _moved(policy: AbrPolicy, seed: int) -> bool:
    """Whether the policy took anything from the generator that `reset` gave it."""
    given = getattr(policy, "rng", None)  # a user's `reset` may not have called ours
    return given is not None and bool(given.bit_generator.state != np.random.default_rng(seed).bit_generator.state)


def _columns(summary: SessionSummary) -> tuple[float, ...]:
    return tuple(getattr(summary, name) for name in CELL)


def _play_together(task: Task, batch: int) -> Cell:
    from netllm.tasks.abr import AbrTask, student_of  # torch takes seconds: only who measures a language model pays

    assert task.contender is not None
    began_s, prepared = thread_cpu_s(), prepare(task.setting, task.quick)
    model = task.contender.members[task.member].model()
    if not isinstance(model.task, AbrTask):
        raise UserError(f"policy {task.policy!r}: its adapter is for task {model.task.name}, wanted abr")
    played: list[SessionSummary] = []
    for start in range(0, len(prepared.playbacks), batch):
        part = prepared.playbacks[start : start + batch]
        try:
            decide = student_of(model, model.task)
            played += run_together([each.trace for each in part], prepared.session, decide, [each.offset_s for each in part])
        except UserError as error:
            return Cell((), refused=_sentence(error), seconds=thread_cpu_s() - began_s)
    return Cell(tuple(map(_columns, played)), seconds=thread_cpu_s() - began_s)


def run_together(
    traces: Sequence[Trace], session: AbrSession, decide: BatchDecide, offsets_s: Sequence[float] | None = None
) -> list[SessionSummary]:
    """One session per trace, all in step, without noise, each from its offset (seconds, default 0)."""
    sims = [AbrSimulator(trace, session, offset_s) for trace, offset_s in zip(traces, offsets_s or [0.0] * len(traces), strict=True)]
    levels: Sequence[int] = [session.first_level] * len(sims)
    while True:
        for sim, level in zip(sims, levels, strict=True):
            sim.step(level)
        if sims[0].done:
            return [summarise(sim.history, session.video) for sim in sims]
        levels = decide([sim.observation for sim in sims])


def _sentence(error: UserError) -> str:
    return " ".join(str(error).split()).replace(f"{CHECKOUT}/", "")
