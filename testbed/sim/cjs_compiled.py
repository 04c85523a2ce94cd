"""The compiled scheduling simulator: as `testbed.sim.cjs.CjsSimulator`, start by start the same, many times faster.

Its first use on a machine compiles for some seconds; what is compiled is kept (`testbed.sim.compiled`).
"""

import numpy as np

from controllers.api import CjsAction, CjsObservation, CjsSession
from testbed.metrics import ScheduleSummary, summarise_schedule
from testbed.sim.cjs import COMPLETE, STARVED, Semantics, TaskStart
from testbed.sim.cjs_board import (
    ACTIVE,
    BUSY,
    FIRST,
    NEXT_JOB,
    NOTHING,
    NOW,
    OF_JOB,
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
    COMPLETED,
    make_board,
)
from testbed.sim.cjs_draws import uniform
from testbed.sim.cjs_machine import OUT_OF_EVENTS, OVER, advance, committable, decide, demand
from testbed.sim.compiled import compiled
from testbed.units import s_from_ms
from traces.tpch import Profiles, load_profiles
from traces.workload import Workload


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
        profiles = profiles or load_profiles()
        self.workload, self.session, self.semantics = workload, session, semantics
        self.ended, self.decisions = "", 0
        self._board = make_board(workload, session, semantics == "conserving", profiles, logged)
        self._mean_s = s_from_ms(profiles.mean_ms)[self._board.stages[:, 11]]
        self._rows = np.zeros(0, np.int64)
        self._go_on()

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
        rows, columns, flags, jobs, edges = look(self._board)
        self._rows = rows
        source = int(self._board.pools[self._board.numbers[SOURCE], POOL_JOB])
        at = np.searchsorted(jobs[0], source) if source != NOTHING else len(jobs[0])
        return CjsObservation(
            session=self.session,
            now_s=self.now_s,
            committable=int(committable(self._board)),
            source_job=int(at) if at < len(jobs[0]) and jobs[0][at] == source else -1,
            job_id=jobs[0],
            job_age_s=s_from_ms(self._board.clock[NOW] - self._board.arrival_ms[jobs[0]]),
            job_first=jobs[2],
            supply=jobs[1],
            stage_id=columns[0],
            stage_job=columns[1],
            unstarted=columns[2],
            running=columns[3],
            demand=columns[4],
            mean_task_s=self._mean_s[rows],
            last_task_s=s_from_ms(self._board.last_ms[rows]),
            runnable=flags[0],
            schedulable=flags[1],
            edges=edges,
        )

    def step(self, action: CjsAction) -> None:
        """Take a decision and go on to the next one, or to the end. Raises `ValueError` for one that can't be meant."""
        if self.ended:
            raise ValueError(f"a decision was given, but the session has ended: {self.ended}")
        stage = NOTHING
        if action.stage != NOTHING:
            stage = self._stage(action)
        self.decisions += 1
        decide(self._board, stage, action.executors)
        self._go_on()

    @property
    def log(self) -> list[TaskStart]:
        """All task starts, in order."""
        lines = self._board.log[: self._board.numbers[STARTS]]
        return [TaskStart(float(s_from_ms(at)), int(e), int(j), int(s), int(t), float(s_from_ms(d))) for at, e, j, s, t, d in lines]

    @property
    def summary(self) -> ScheduleSummary:
        """How it went so far."""
        arrived = int(self._board.numbers[NEXT_JOB])
        arrived_s = [job.arrival_s for job in self.workload.jobs[:arrived]]
        done_s = [None if done == np.inf else done for done in s_from_ms(self._board.done_ms[:arrived]).tolist()]
        return summarise_schedule(arrived_s, done_s, float(s_from_ms(self._board.clock[BUSY])), self.session.executors, self.now_s)

    def _stage(self, action: CjsAction) -> int:
        rows = look(self._board)[0] if not len(self._rows) else self._rows
        if not 0 <= action.stage < len(rows):
            raise ValueError(f"stage row {action.stage} was chosen, wanted -1 to {len(rows) - 1}")
        stage, most = int(rows[action.stage]), int(committable(self._board))
        if not self._board.stages[stage, OFFERED]:
            raise ValueError(f"stage row {action.stage} was chosen, wanted one that is schedulable")
        if not 1 <= action.executors <= most:
            raise ValueError(f"{action.executors} executors were given, wanted 1 to {most}")
        return stage

    def _go_on(self) -> None:
        self._rows = np.zeros(0, np.int64)
        result = advance(self._board)
        self.ended = {OVER: COMPLETE, OUT_OF_EVENTS: STARVED}.get(result, "")


@compiled
def look(b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The arrays of an observation: stages' numbers, columns (5, S), flags (2, S), jobs' columns (3, J + 1) cut to size, edges (E, 2)."""
    jobs = b.numbers[ACTIVE]
    most = 0
    for i in range(jobs):
        most += b.jobs[b.active[i], STOP] - b.jobs[b.active[i], FIRST]
    numbers, columns, flags = np.empty(most, np.int64), np.empty((5, most), np.int64), np.empty((2, most), np.bool_)
    job_ids, supplies, job_first = np.empty(jobs, np.int64), np.empty(jobs, np.int64), np.zeros(jobs + 1, np.int64)
    row_of = np.empty(b.jobs[b.active[jobs - 1], STOP] - b.jobs[b.active[0], FIRST], np.int64)
    base, rows, count = b.jobs[b.active[0], FIRST], 0, 0
    for i in range(jobs):
        job = b.active[i]
        job_ids[i], supplies[i] = job, b.jobs[job, SUPPLY]
        for stage in range(b.jobs[job, FIRST], b.jobs[job, STOP]):
            if b.stages[stage, COMPLETED] == b.stages[stage, TASKS]:
                continue
            numbers[rows], row_of[stage - base] = stage, rows
            columns[0, rows], columns[1, rows] = stage - b.jobs[job, FIRST], i
            columns[2, rows], columns[3, rows], columns[4, rows] = b.stages[stage, UNSTARTED], b.stages[stage, RUNNING], demand(b, stage)
            flags[0, rows], flags[1, rows] = b.stages[stage, OPEN_PARENTS] == 0, b.stages[stage, OFFERED] != 0
            rows += 1
            count += b.children_first[stage + 1] - b.children_first[stage]
        job_first[i + 1] = rows
    edges, at = np.empty((count, 2), np.int64), 0
    for row in range(rows):
        stage = numbers[row]
        for k in range(b.children_first[stage], b.children_first[stage + 1]):
            edges[at, 0], edges[at, 1] = row, row_of[b.children[k] - base]
            at += 1
    return numbers[:rows], columns[:, :rows], flags[:, :rows], (job_ids, supplies, job_first), edges
