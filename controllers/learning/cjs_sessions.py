"""Scheduling sessions to learn on: clusters and workloads of many sizes, apart from all that is evaluated.

Workloads have seeds from `FIRST_SEED` on, which no evaluation and no published result uses; who learns from which is told by
`workloads`, and validation has seeds of its own. Clusters of `LEFT_OUT` executors are never learnt on, nor are more than 200 jobs: those
settings stay unseen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from controllers.api import CjsSession
from testbed.errors import UserError
from testbed.sim.cjs import Semantics
from testbed.sim.cjs_compiled import CompiledCjs
from traces.workload import INTERARRIVAL_S, JOBS, draw_workload

FIRST_SEED = 1_000_000
"""Of training."""
TRAINING_SEEDS, WORKLOADS = 50, 10_000
"""Training seeds there are, and workloads that each has of each kind."""
LANE, LANES = 400, 25
"""Workloads that a lane of Decima's training has, and how many lanes there may be."""
_KIND = TRAINING_SEEDS * WORKLOADS
VALIDATION_SEED = FIRST_SEED + 2 * _KIND
_ROUNDS_SEED = VALIDATION_SEED + 2 * _KIND
EXECUTORS = (8, 60)
USUAL_EXECUTORS = 50
SMALL_EXECUTORS, SMALL_JOBS = 16, 30
"""Small clusters have at most so many, the others at least so many executors; a small one's backlog has at most so many jobs."""
LEFT_OUT = (25, 35)
LOAD = (0.6, 1.15)
WORK_S = 700.0
"""Executor time that a job takes on average (24 to 37 busy executors at 25 s between arrivals, docs/cjs.md): turns load into arrivals."""


def workloads(kind: Literal["collected", "decima"], seed: int, part: int = 0, count: int = WORKLOADS) -> range:
    """Seeds of the workloads to learn from with training seed `seed`; those of any two trainings, and of validation, are disjoint.

    `collected`: part 0 is collected first, part n by the student in round n, `count` of each. `decima`: part n is lane n.
    """
    if not 0 <= seed < TRAINING_SEEDS:
        raise UserError(f"training seed {seed} has no workloads to learn from, wanted 0 to {TRAINING_SEEDS - 1}")
    if not 0 < count <= WORKLOADS:
        raise UserError(f"{count} workloads are wanted of training seed {seed}, which has {WORKLOADS}")
    if kind == "decima":
        if not 0 <= part < LANES:
            raise UserError(
                f"lane {part} of training seed {seed} has no workloads to learn from, wanted at most {LANES} sessions side by side"
            )
        first = FIRST_SEED + _KIND + WORKLOADS * seed + LANE * part
        return range(first, first + LANE)
    first = (_ROUNDS_SEED + _KIND * (part - 1) if part else FIRST_SEED) + WORKLOADS * seed
    return range(first, first + count)


@dataclass(frozen=True)
class CjsJob:
    """A session to be played."""

    seed: int
    jobs: int
    interarrival_s: float
    executors: int
    semantics: Semantics = "published"
    behaviour: str = "rule"
    """Who decides, where that is told."""

    @property
    def session(self) -> CjsSession:
        """The cluster."""
        return CjsSession(f"train-{self.seed}", self.executors)

    def simulator(self) -> CompiledCjs:
        """At its beginning."""
        return CompiledCjs(draw_workload(self.jobs, self.interarrival_s, self.seed), self.session, self.semantics)


def draw_session(
    rng: np.random.Generator, seed: int, usual: float, small: float, conserving: float = 0.0, behaviour: str = "rule"
) -> CjsJob:
    """A session: with chance `usual` of 50 executors and 200 jobs, with chance `small` of 8 to 16 executors and a backlog of 15 to 30 jobs,
    both 25 s apart; else of 16 to 60 executors, 60 to 200 jobs and a load of 0.6 to 1.15. `conserving` is the chance of work-conserving
    rules.
    """
    semantics: Semantics = "conserving" if rng.random() < conserving else "published"
    kind = rng.random()
    if kind < usual:
        return CjsJob(seed, JOBS, INTERARRIVAL_S, USUAL_EXECUTORS, semantics, behaviour)
    if kind < usual + small:
        return CjsJob(
            seed,
            int(rng.integers(15, SMALL_JOBS + 1)),
            INTERARRIVAL_S,
            int(rng.integers(EXECUTORS[0], SMALL_EXECUTORS + 1)),
            semantics,
            behaviour,
        )
    executors = LEFT_OUT[0]
    while LEFT_OUT[0] <= executors <= LEFT_OUT[1]:
        executors = round(float(np.exp(rng.uniform(np.log(SMALL_EXECUTORS), np.log(EXECUTORS[1])))))
    interarrival_s = WORK_S / (rng.uniform(*LOAD) * executors)
    return CjsJob(seed, int(rng.integers(60, JOBS + 1)), interarrival_s, executors, semantics, behaviour)


VALIDATION = ((10, 20, 8), (50, 80, 6), (20, 50, 4))
"""Executors, jobs and number of validation sessions of each kind."""


def validation_sessions(kinds: tuple[tuple[int, int, int], ...] = VALIDATION, first: int = 0) -> list[CjsJob]:
    """Sessions to choose a model on, from the workload number `first` on: published rules, 25 s between arrivals."""
    numbered = [(executors, jobs) for executors, jobs, count in kinds for _ in range(count)]
    return [CjsJob(VALIDATION_SEED + first + i, jobs, INTERARRIVAL_S, executors) for i, (executors, jobs) in enumerate(numbered)]
