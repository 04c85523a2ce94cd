"""Shortest remaining time first, each job on a number of executors that fits its work."""

from dataclasses import dataclass
from math import exp, log

import numpy as np

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy

# A rule of twelve numbers, from an evolutionary search (CMA-ES) in the published simulator over workloads of 50 executors, 200 jobs
# (seeds 101-110), 10 executors, 20 jobs and 30 executors, 200 jobs, then rounded; no seed of the published results was used.
WORK = 1.6
"""How much shorter jobs come first: score falls by this per unit of ln(work)."""
STAY, STAY_PER_WORK = 1.3, -0.25
"""Bonus of the job that releases the executors, since moving takes time; less for larger jobs."""
NOT_YET, NOT_YET_AT_SOURCE = 0.5, 0.3
"""Penalty when only stages are left whose parents still run."""
CAP, CAP_PER_WORK, CAP_PER_JOBS = 3.2, 0.5, -0.65
"""ln of a job's cap at 50 executors: more for more work, less when many jobs are active."""
ABOVE_CAP, ABOVE_CAP_AT_ALL = 9.0, 0.5
"""Penalty per cap beyond the cap, and once."""
PATH, STAGE_WORK, PATH_PER_TASK = 1.8, -1.2, 1.3 / 20
"""Among a job's stages: long critical paths first, little work first; a path counts a stage's tasks in waves of 20."""
CAP_EXECUTORS = 50
WORK_UNIT_S = 100.0
LEAST_WORK = 0.02
LEAST_S = 1e-4
NUMBERS = (
    *(WORK, STAY, STAY_PER_WORK, NOT_YET, NOT_YET_AT_SOURCE, CAP, CAP_PER_WORK, CAP_PER_JOBS),
    *(ABOVE_CAP, ABOVE_CAP_AT_ALL, PATH, STAGE_WORK, PATH_PER_TASK, CAP_EXECUTORS, WORK_UNIT_S, LEAST_WORK, LEAST_S),
)
"""For the compiled form of the rule (`testbed.sim.cjs_rule`)."""


@dataclass(slots=True)
class _Bidder:
    """A job that can use executors."""

    job: int
    log_work: float
    cap: float
    executors: int
    """That it has, and is given here."""
    demand: int
    """That its schedulable stages have left."""
    runnable_demand: int
    is_source: bool

    def score(self) -> float:
        """How much it should have the next executor."""
        score = -WORK * self.log_work
        if self.is_source:
            score += STAY + STAY_PER_WORK * self.log_work
        if self.runnable_demand <= 0:
            score -= NOT_YET_AT_SOURCE if self.is_source else NOT_YET
        above = self.executors + 1 - self.cap
        return score - (ABOVE_CAP * above / self.cap + ABOVE_CAP_AT_ALL if above > 0 else 0.0)

    def take(self) -> None:
        """The next executor is its."""
        self.executors += 1
        self.demand -= 1
        self.runnable_demand -= 1


class SrptCap(CjsPolicy):
    """The strongest rule we know for the published simulator: shortest remaining work first, a cap by work, and no clinging to executors.

    Executors on offer are dealt out one by one, each to the job with the highest score; then the first job served takes what it was dealt
    to the best of its stages, and the rest is asked again. Work counts mean recorded durations; the last task's would be noisier, and in
    the published simulator a leak. Never declines while a stage can be chosen, so that no executor starves.
    """

    label = "SRPT with caps"
    colour = "#2ca02c"
    citation = "this project; cf. Schrage, A Proof of the Optimality of the Shortest Remaining Processing Time Discipline, 1968"

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The best stage of the job that the first executor is dealt to, and as many as it is dealt."""
        bidders = _bidders(observation)
        if not bidders:
            return DECLINE
        first, dealt = None, 0
        for _ in range(observation.committable):
            able = [bidder for bidder in bidders if bidder.demand > 0]
            if not able:
                break
            best = max(able, key=_Bidder.score)
            best.take()
            first = first or best
            dealt += best is first
        assert first is not None  # each bidder has demand
        return CjsAction(_best_stage(observation, first.job), dealt)


def _bidders(observation: CjsObservation) -> list[_Bidder]:
    on_offer = observation.schedulable
    demand = np.bincount(observation.stage_job, observation.demand * on_offer, observation.jobs).astype(int).tolist()
    can_run = np.bincount(observation.stage_job, observation.demand * (on_offer & observation.runnable), observation.jobs)
    work_s = np.bincount(observation.stage_job, observation.mean_task_s * observation.unstarted, observation.jobs)
    supply, runnable_demand, found = observation.supply.tolist(), can_run.astype(int).tolist(), []
    for job, work in enumerate((work_s / WORK_UNIT_S).tolist()):
        if demand[job] > 0:
            log_work, is_source = log(max(work, LEAST_WORK)), job == observation.source_job
            has = supply[job] - observation.committable * is_source
            found.append(_Bidder(job, log_work, _cap(observation, log_work), has, demand[job], runnable_demand[job], is_source))
    return found


def _cap(observation: CjsObservation, log_work: float) -> float:
    """Executors that a job is worth."""
    executors = observation.session.executors
    cap = exp(CAP + CAP_PER_WORK * log_work + CAP_PER_JOBS * log(observation.jobs)) * executors / CAP_EXECUTORS
    return min(max(cap, 1.0), float(executors))


def _best_stage(observation: CjsObservation, job: int) -> int:
    """Row of the job's stage to serve: runnable before not yet runnable, then by critical path and work."""
    path_s = _paths_s(observation, job)
    start = int(observation.job_first[job])
    rows = [start + int(i) for i in np.flatnonzero(observation.schedulable[start : start + len(path_s)])]

    def rank(row: int) -> tuple[bool, float]:
        work_s = float(observation.unstarted[row] * observation.mean_task_s[row])
        return bool(observation.runnable[row]), PATH * log(max(path_s[row - start], LEAST_S)) + STAGE_WORK * log(max(work_s, LEAST_S))

    return max(rows, key=rank)


def _paths_s(observation: CjsObservation, job: int) -> list[float]:
    """Critical path that each of the job's stages begins, tasks counted in waves; children stand below their parents."""
    start, stop = int(observation.job_first[job]), int(observation.job_first[job + 1])
    own_s = observation.mean_task_s[start:stop] * (1 + PATH_PER_TASK * observation.unstarted[start:stop])
    path_s: list[float] = own_s.tolist()
    edges = observation.edges[(observation.edges[:, 0] >= start) & (observation.edges[:, 0] < stop)] - start
    below_s = [0.0] * len(path_s)
    for parent, child in sorted(edges.tolist(), reverse=True):
        below_s[parent] = max(below_s[parent], below_s[child] + path_s[child])
    return [own + below for own, below in zip(path_s, below_s, strict=True)]
