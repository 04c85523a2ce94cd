"""The compiled scheduling simulator: as `testbed.sim.cjs.CjsSimulator`, start by start the same, many times faster.

Its first use on a machine compiles for some seconds; what is compiled is kept (`testbed.sim.compiled`).
"""

import numpy as np
from numpy.typing import NDArray

from controllers.api import CjsAction, CjsObservation, CjsSession
from testbed.metrics import ScheduleSummary, summarise_schedule
from testbed.sim.cjs import COMPLETE, STARVED, Semantics, TaskStart
from testbed.sim.cjs_board import (
    ACTIVE,
    ARRIVAL_MS,
    BUSY,
    CHILDREN,
    CHILDREN_END,
    COMPLETED,
    DONE_MS,
    FIRST,
    LAST_MS,
    MEAN_MS,
    NEXT_JOB,
    NOTHING,
    NOW,
    OFFERED,
    OPEN_PARENTS,
    POOL_JOB,
    RUNNING,
    SOURCE,
    STARTS,
    STOP,
    SUPPLY,
    TASKS,
    UNSTARTED,
    make_board,
    unpacked,
)
from testbed.sim.cjs_draws import uniform
from testbed.sim.cjs_machine import ASKED, OUT_OF_EVENTS, OVER, advance, committable, decide, demand
from testbed.sim.compiled import compiled
from testbed.units import s_from_ms
from traces.tpch import Profiles
from traces.tpch_own import profiles_named
from traces.workload import Workload

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
_Seen = tuple[int, int, int, Integers, tuple[Integers, Floats, Integers], tuple[Integers, NDArray[np.bool_], Floats], Integers]
"""What `turn` returns."""


class CompiledCjs:
    """One workload on the virtual clock, compiled. With `logged` it keeps all task starts, for `log`."""

    def __init__(
        self,
        workload: Workload,
        session: CjsSession,
        semantics: Semantics = "published",
        profiles: Profiles | None = None,
        logged: bool = False,
    ) -> None:
        self.workload, self.session, self.semantics = workload, session, semantics
        self.ended, self.decisions = "", 0
        profiles = profiles or profiles_named(workload.name)
        #: The tables, for compiled functions beside this class.
        self.packed, self._board = make_board(workload, session, semantics == "conserving", profiles, logged)
        self._turn(False, NOTHING, 0)

    @property
    def stage_numbers(self) -> Integers:
        """Number of each stage of the observation in the tables, (S,), rising."""
        return self._seen[3]

    @property
    def now_s(self) -> float:
        """The virtual clock."""
        return float(s_from_ms(self._board.clock[NOW]))

    def random(self) -> float:
        """The next uniform number of the stream that published durations come from: policies of the published code share it."""
        return float(uniform(self._board))

    @property
    def observation(self) -> CjsObservation:
        """What a policy is told now."""
        if self.ended:
            raise ValueError(f"there is nothing to observe, the session has ended: {self.ended}")
        _, committable, source_job, _, (jobs, ages_ms, job_first), (columns, flags, durations_ms), edges = self._seen
        durations_s = s_from_ms(durations_ms)
        return CjsObservation(
            session=self.session,
            now_s=self.now_s,
            committable=committable,
            source_job=source_job,
            job_id=jobs[0],
            job_age_s=s_from_ms(ages_ms),
            job_first=job_first,
            supply=jobs[1],
            stage_id=columns[0],
            stage_job=columns[1],
            unstarted=columns[2],
            running=columns[3],
            demand=columns[4],
            mean_task_s=durations_s[0],
            last_task_s=durations_s[1],
            runnable=flags[0],
            schedulable=flags[1],
            edges=edges,
        )

    def step(self, action: CjsAction) -> None:
        """Take a decision and go on to the next one, or to the end. Raises `ValueError` for one that can't be meant."""
        if self.ended:
            raise ValueError(f"a decision was given, but the session has ended: {self.ended}")
        stage = NOTHING if action.stage == NOTHING else self._stage(action)
        self.decisions += 1
        self._turn(True, stage, action.executors)

    @property
    def log(self) -> list[TaskStart]:
        """All task starts, in order."""
        lines = self._board.log[: self._board.numbers[STARTS]].tolist()
        return [TaskStart(s_from_ms(at), int(e), int(j), int(s), int(t), s_from_ms(d)) for at, e, j, s, t, d in lines]

    @property
    def in_system_s(self) -> float:
        """Time that all jobs together have spent in the system so far: less work than `summary`, for who asks at every decision."""
        arrived = int(self._board.numbers[NEXT_JOB])
        times_ms = self._board.job_reals[:arrived]
        spent_ms = np.minimum(times_ms[:, DONE_MS], self._board.clock[NOW]) - times_ms[:, ARRIVAL_MS]
        return float(s_from_ms(spent_ms.sum()))

    @property
    def summary(self) -> ScheduleSummary:
        """How it went so far."""
        arrived = int(self._board.numbers[NEXT_JOB])
        arrived_s = s_from_ms(self._board.job_reals[:arrived, ARRIVAL_MS]).tolist()
        done_s = [None if done == np.inf else done for done in s_from_ms(self._board.job_reals[:arrived, DONE_MS]).tolist()]
        return summarise_schedule(arrived_s, done_s, float(s_from_ms(self._board.clock[BUSY])), self.session.executors, self.now_s)

    def _stage(self, action: CjsAction) -> int:
        """The stage that an action means, if that is possible."""
        most, numbers, flags = self._seen[1], self._seen[3], self._seen[5][1]
        if not 0 <= action.stage < len(numbers):
            raise ValueError(f"stage row {action.stage} was chosen, wanted -1 to {len(numbers) - 1}")
        if not flags[1, action.stage]:
            raise ValueError(f"stage row {action.stage} was chosen, wanted one that is schedulable")
        if not 1 <= action.executors <= most:
            raise ValueError(f"{action.executors} executors were given, wanted 1 to {most}")
        return int(numbers[action.stage])

    def _turn(self, decided: bool, stage: int, executors: int) -> None:
        self._seen: _Seen = turn(self.packed, decided, stage, executors)
        self.ended = {OVER: COMPLETE, OUT_OF_EVENTS: STARVED}.get(self._seen[0], "")


_unpacked = compiled(unpacked)


@compiled
def turn(packed, decided, stage, executors):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Take a decision (unless this is the beginning), go on, and look: all in one call, since a call costs as much as the looking."""
    b = _unpacked(packed)
    if decided:
        decide(b, stage, executors)
    result = advance(b)
    count = b.numbers[ACTIVE] if result == ASKED else 0
    source, source_job = b.numbers[SOURCE], -1
    jobs, ages_ms, job_first = np.empty((2, count), np.int64), np.empty(count), np.zeros(count + 1, np.int64)
    stages = 0
    for i in range(count):
        job = b.active[i]
        jobs[0, i], jobs[1, i], ages_ms[i] = job, b.jobs[job, SUPPLY], b.clock[NOW] - b.job_reals[job, ARRIVAL_MS]
        if b.pools[source, POOL_JOB] == job:
            source_job = i
        for each in range(b.jobs[job, FIRST], b.jobs[job, STOP]):
            stages += b.stages[each, COMPLETED] < b.stages[each, TASKS]
        job_first[i + 1] = stages
    numbers, of_stages = look_at_stages(b, jobs[0], stages)
    return result, committable(b), source_job, numbers, (jobs, ages_ms, job_first), of_stages, look_at_edges(b, numbers)


@compiled
def look_at_stages(b, jobs, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Numbers of the stages that are not complete, (S,), and their columns (5, S), flags (2, S) and durations (2, S)."""
    numbers, row = np.empty(count, np.int64), 0
    columns, flags, durations_ms = np.empty((5, count), np.int64), np.empty((2, count), np.bool_), np.empty((2, count))
    for i in range(len(jobs)):
        first = b.jobs[jobs[i], FIRST]
        for stage in range(first, b.jobs[jobs[i], STOP]):
            if b.stages[stage, COMPLETED] < b.stages[stage, TASKS]:
                numbers[row] = stage
                columns[0, row], columns[1, row] = stage - first, i
                columns[2, row], columns[3, row] = b.stages[stage, UNSTARTED], b.stages[stage, RUNNING]
                columns[4, row] = demand(b, stage)
                flags[0, row], flags[1, row] = b.stages[stage, OPEN_PARENTS] == 0, b.stages[stage, OFFERED] != 0
                durations_ms[0, row], durations_ms[1, row] = b.stage_reals[stage, MEAN_MS], b.stage_reals[stage, LAST_MS]
                row += 1
    return numbers, (columns, flags, durations_ms)


@compiled
def look_at_edges(b, numbers):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Rows of parents and children, (E, 2): a child of a stage that is not complete is not complete either."""
    count = 0
    for row in range(len(numbers)):
        count += b.stages[numbers[row], CHILDREN_END] - b.stages[numbers[row], CHILDREN]
    edges, at = np.empty((count, 2), np.int64), 0
    for row in range(len(numbers)):
        for i in range(b.stages[numbers[row], CHILDREN], b.stages[numbers[row], CHILDREN_END]):
            child = row + 1
            while numbers[child] != b.links[i]:
                child += 1
            edges[at, 0], edges[at, 1] = row, child
            at += 1
    return edges
