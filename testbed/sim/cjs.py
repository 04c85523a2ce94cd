"""The simulator twin of cluster job scheduling: the engine of `testbed.cluster` on a virtual clock, with recorded task durations.

| semantics | `published` (spark-sched-sim in NetLLM's fork) | `conserving` (closer to a real cluster) |
| --- | --- | --- |
| rules of the engine | `PUBLISHED` | `CONSERVING` (`testbed.cluster.engine.Rules`) |
| durations | from one stream, in the order in which tasks start | frozen for each (job, stage, task, kind) |
| `last_task_s` | of the task that started last (a leak) | of the task that completed last |

Alike in both: executors are slots without difference, moving to another job takes `session.moving_delay_s`, decisions take no time, nothing
fails. What happens at the same instant happens in the order in which it was foreseen. A session ends `complete`, or `starved` when
nothing will happen any more though jobs are left: a policy declined executors that are never offered again.

Times are in whole recorded milliseconds inside, so that what falls together stays together; in seconds outside.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal, Protocol

from controllers.api import CjsAction, CjsObservation, CjsPolicy, CjsSession
from testbed.cluster.engine import CONSERVING, PUBLISHED, Engine
from testbed.cluster.events import (
    DECLINE,
    AskDecision,
    DecisionGiven,
    Event,
    ExecutorArrived,
    Instruction,
    JobArrived,
    JobDone,
    MoveExecutor,
    StartTask,
    TaskFinished,
)
from testbed.cluster.observe import active_stages, observe
from testbed.metrics import ScheduleSummary, summarise_schedule
from testbed.units import ms_from_s, s_from_ms
from traces.durations import Durations, FrozenDurations, StreamDurations, WordStream
from traces.tpch import Profiles
from traces.tpch_own import profiles_named
from traces.workload import Workload

Semantics = Literal["published", "conserving"]
COMPLETE, STARVED = "complete", "starved"


class Simulator(Protocol):
    """What plays a workload: the one here, and the compiled one (`testbed.sim.cjs_compiled`)."""

    ended: str
    """Empty while a decision is awaited, then why the session ended."""
    decisions: int
    """Given so far."""

    @property
    def observation(self) -> CjsObservation:
        """What a policy is told now."""

    def step(self, action: CjsAction) -> None:
        """Take a decision and go on to the next one, or to the end."""

    @property
    def summary(self) -> ScheduleSummary:
        """How it went so far."""


@dataclass(frozen=True)
class TaskStart:
    """A line of the log."""

    at_s: float
    executor: int
    job: int
    stage: int
    task: int
    duration_s: float


class CjsSimulator:
    """One workload on the virtual clock, in plain Python. `durations` default to those that belong to the semantics."""

    def __init__(
        self,
        workload: Workload,
        session: CjsSession,
        semantics: Semantics = "published",
        durations: Durations | None = None,
        profiles: Profiles | None = None,
    ) -> None:
        self.workload, self.session, self.semantics = workload, session, semantics
        self.engine = Engine(session.executors, PUBLISHED if semantics == "published" else CONSERVING)
        self.ended, self.decisions, self.now_ms = "", 0, 0.0
        self.log: list[TaskStart] | None = None
        """Task starts, when set to a list."""
        self._durations = durations or default_durations(workload, semantics, profiles or profiles_named(workload.name))
        self._started_s: dict[tuple[int, int], float] | None = {} if semantics == "published" else None
        self._busy_ms, self._left = 0.0, len(workload.jobs)
        self._queue: list[tuple[float, int, Event]] = []
        self._foreseen = 0
        for job in workload.jobs:
            self._foresee(ms_from_s(job.arrival_s), JobArrived(job))
        self._go_on([])

    @property
    def now_s(self) -> float:
        """The virtual clock."""
        return s_from_ms(self.now_ms)

    @property
    def observation(self) -> CjsObservation:
        """What a policy is told now."""
        return observe(self.engine, self.session, self.now_s, self._started_s)

    def step(self, action: CjsAction) -> None:
        """Take a decision and go on to the next one, or to the end. Raises `ValueError` for one that can't be meant."""
        if self.ended:
            raise ValueError(f"a decision was given, but the session has ended: {self.ended}")
        self.decisions += 1
        self._go_on(self.engine.handle(self._decision(action), self.now_s))

    @property
    def summary(self) -> ScheduleSummary:
        """How it went so far."""
        jobs = list(self.engine.jobs.values())
        arrived_s, done_s = [job.arrived_s for job in jobs], [job.done_s for job in jobs]
        return summarise_schedule(arrived_s, done_s, s_from_ms(self._busy_ms), self.session.executors, self.now_s)

    def _decision(self, action: CjsAction) -> DecisionGiven:
        if action.stage == -1:
            return DECLINE
        rows = active_stages(self.engine)
        if not 0 <= action.stage < len(rows):
            raise ValueError(f"stage row {action.stage} was chosen, wanted -1 to {len(rows) - 1}")
        return DecisionGiven(rows[action.stage].job, rows[action.stage].number, action.executors)

    def _go_on(self, instructions: list[Instruction]) -> None:
        """Carry instructions out, and let happen what was foreseen, until a decision is awaited or the session has ended."""
        while not self._carry_out(instructions):
            if not self._left:
                self.ended = COMPLETE
                return
            if not self._queue:
                self.ended = STARVED
                return
            self.now_ms, _, event = heappop(self._queue)
            instructions = self.engine.handle(event, self.now_s)

    def _carry_out(self, instructions: list[Instruction]) -> bool:
        """Whether a decision is awaited."""
        asked = False
        for instruction in instructions:
            if isinstance(instruction, StartTask):
                self._start(instruction)
            elif isinstance(instruction, MoveExecutor):
                self._foresee(self.now_ms + ms_from_s(self.session.moving_delay_s), ExecutorArrived(instruction.executor))
            elif isinstance(instruction, AskDecision):
                asked = True
            elif isinstance(instruction, JobDone):
                self._left -= 1
        return asked

    def _start(self, task: StartTask) -> None:
        duration_ms = self._durations.draw_ms(task.job, task.stage, task.task, task.kind, task.attached)
        self._busy_ms += duration_ms
        if self._started_s is not None:
            self._started_s[task.job, task.stage] = s_from_ms(duration_ms)
        if self.log is not None:
            self.log.append(TaskStart(self.now_s, task.executor, task.job, task.stage, task.task, s_from_ms(duration_ms)))
        self._foresee(self.now_ms + duration_ms, TaskFinished(task.executor))

    def _foresee(self, at_ms: float, event: Event) -> None:
        heappush(self._queue, (at_ms, self._foreseen, event))
        self._foreseen += 1


def default_durations(workload: Workload, semantics: Semantics, profiles: Profiles) -> Durations:
    """The published stream, or frozen ones."""
    if semantics == "published":
        return StreamDurations(workload, profiles, WordStream(workload.seed))
    return FrozenDurations(workload, profiles)


def play(simulator: Simulator, policy: CjsPolicy, session: CjsSession, seed: int) -> ScheduleSummary:
    """Play to the end with `policy`, reset with `seed`."""
    policy.reset(session, seed)
    while not simulator.ended:
        simulator.step(policy.decide(simulator.observation))
    return simulator.summary
