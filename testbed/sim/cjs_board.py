"""The tables of the compiled scheduling simulator: the engine's state as arrays, one row an executor, stage, job or pool.

Stages are numbered over all jobs of the workload. Pools: 0 is common, then one a job, then one a stage. Times are in milliseconds.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.api import CjsSession
from testbed.units import ms_from_s
from traces.durations import WARM_UP_MS, FrozenDurations, level_span
from traces.tpch import KINDS, Profiles
from traces.workload import Workload

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns of `executors`
POOL, AT_JOB, WARM, TASK, BOUND, ORDER = range(6)
# Columns of `stages`
OF_JOB, TASKS, UNSTARTED, RUNNING, COMPLETED, MOVING, COMMITTED, WAITING, OPEN_PARENTS, SELECTED, OFFERED, PROFILE, FIRST_TASK = range(13)
# Columns of `jobs`
FIRST, STOP, ACTIVE_STAGES, UNSATURATED, ATTACHED, SUPPLY = range(6)
# Columns of `pools`
MEMBERS, PROMISED, POOL_JOB, POOL_STAGE = range(4)
# Columns of `promises`
FROM_POOL, TO_STAGE, COUNT = range(3)
# Places in `numbers`
SOURCE, ASKING, PROMISES, ACTIVE, NEXT_JOB, FORESEEN, LEFT, OFFERS, CONSERVING, FROZEN, STARTS, WORD = range(12)
# Places in `clock`
NOW, BUSY, MOVING_DELAY, WARM_UP = range(4)
NOTHING = -1
WORDS = 624
"""Of the Mersenne twister's state."""


class Board(NamedTuple):
    """Everything, changed in place by the compiled functions."""

    executors: Integers
    """(executors, 6)"""
    when_ms: Floats
    """(executors,): when it finishes its task or arrives; infinite when neither."""
    started_ms: Floats
    """(executors,): when its task started."""
    stages: Integers
    """(stages, 13)"""
    last_ms: Floats
    """(stages,): what `last_task_s` shows."""
    jobs: Integers
    """(jobs, 6)"""
    arrival_ms: Floats
    done_ms: Floats
    """(jobs,): infinite until it is done."""
    pools: Integers
    """(pools, 4)"""
    promises: Integers
    """(executors, 3): the first `numbers[PROMISES]` are outstanding commitments, oldest first."""
    active: Integers
    """(jobs,): the first `numbers[ACTIVE]` are active jobs, by arrival."""
    offers: Integers
    """(jobs + 1,): pools still to be offered."""
    parents_first: Integers
    """(stages + 1,): where a stage's parents begin in `parents`."""
    parents: Integers
    children_first: Integers
    children: Integers
    numbers: Integers
    clock: Floats
    spans: Integers
    """(executors + 1, 2): recorded levels around a number of executors."""
    start: Integers
    count: Integers
    cold: Integers
    durations_ms: NDArray[np.uint16]
    """Of the profiles; the ordered ones when durations are frozen."""
    uniforms: Floats
    """(tasks, kinds, 2) when durations are frozen, else empty."""
    words: NDArray[np.uint32]
    """(624,): the Mersenne twister behind published durations."""
    log: Floats
    """(tasks, 6) when task starts are logged, else empty."""


def make_board(workload: Workload, session: CjsSession, conserving: bool, profiles: Profiles, logged: bool) -> Board:
    """The tables before the first event."""
    stages, jobs = _stages(workload, profiles), len(workload.jobs)
    count = len(stages)
    pools = np.full((1 + jobs + count, 4), 0, np.int64)
    pools[:, POOL_JOB:] = NOTHING
    pools[1:, POOL_JOB] = np.concatenate([np.arange(jobs), stages[:, OF_JOB]])
    pools[1 + jobs :, POOL_STAGE] = np.arange(count)
    pools[0, MEMBERS] = session.executors
    executors = np.full((session.executors, 6), NOTHING, np.int64)
    executors[:, POOL] = 0
    numbers = np.zeros(12, np.int64)
    numbers[[SOURCE, LEFT, FORESEEN, CONSERVING, FROZEN]] = NOTHING, jobs, jobs, conserving, conserving
    version, state, _ = random.Random(workload.seed).getstate()
    numbers[WORD] = state[WORDS]
    assert version == 3, "of Python's Mersenne twister"
    parents, children = (_flat([getattr(s, name) for j in workload.jobs for s in j.stages], stages, workload) for name in _LINKS)
    frozen = FrozenDurations(workload, profiles, workload.seed) if conserving else None
    return Board(
        executors=executors,
        when_ms=np.full(session.executors, np.inf),
        started_ms=np.zeros(session.executors),
        stages=stages,
        last_ms=profiles.mean_ms[stages[:, PROFILE]],
        jobs=_jobs(workload),
        arrival_ms=np.array([ms_from_s(job.arrival_s) for job in workload.jobs]),
        done_ms=np.full(jobs, np.inf),
        pools=pools,
        promises=np.zeros((session.executors, 3), np.int64),
        active=np.zeros(jobs, np.int64),
        offers=np.zeros(jobs + 1, np.int64),
        parents_first=parents[0],
        parents=parents[1],
        children_first=children[0],
        children=children[1],
        numbers=numbers,
        clock=np.array([0.0, 0.0, ms_from_s(session.moving_delay_s), WARM_UP_MS]),
        spans=np.array([level_span(attached) for attached in range(session.executors + 1)], np.int64),
        start=profiles.start,
        count=profiles.count,
        cold=profiles.cold,
        durations_ms=profiles.ordered_ms if conserving else profiles.durations_ms,
        uniforms=_uniforms(workload, frozen),
        words=np.array(state[:WORDS], np.uint32),
        log=np.zeros((workload.tasks if logged else 0, 6)),
    )


_LINKS = ("parents", "children")


def _stages(workload: Workload, profiles: Profiles) -> Integers:
    counts = [len(job.stages) for job in workload.jobs]
    table = np.zeros((sum(counts), 13), np.int64)
    table[:, OF_JOB] = np.repeat(np.arange(len(counts)), counts)
    table[:, TASKS] = table[:, UNSTARTED] = [stage.tasks for job in workload.jobs for stage in job.stages]
    table[:, OPEN_PARENTS] = [len(stage.parents) for job in workload.jobs for stage in job.stages]
    table[:, PROFILE] = np.concatenate([np.arange(*_span(profiles, job.template)) for job in workload.jobs])
    table[:, FIRST_TASK] = np.cumsum(table[:, TASKS]) - table[:, TASKS]
    return table


def _span(profiles: Profiles, template: int) -> tuple[int, int]:
    numbers = profiles.stages_of(template)
    return numbers.start, numbers.stop


def _jobs(workload: Workload) -> Integers:
    counts = np.array([len(job.stages) for job in workload.jobs])
    table = np.zeros((len(counts), 6), np.int64)
    table[:, STOP] = np.cumsum(counts)
    table[:, FIRST] = table[:, STOP] - counts
    table[:, ACTIVE_STAGES] = table[:, UNSATURATED] = counts
    return table


def _flat(links: Sequence[tuple[int, ...]], stages: Integers, workload: Workload) -> tuple[Integers, Integers]:
    """Numbers within the job, as numbers over all jobs, end to end, and where each stage's begin."""
    first = np.concatenate([[0], np.cumsum([len(each) for each in links])]).astype(np.int64)
    base = _jobs(workload)[stages[:, OF_JOB], FIRST].tolist()
    return first, np.array([at + number for at, each in zip(base, links, strict=True) for number in each], np.int64)


def _uniforms(workload: Workload, frozen: FrozenDurations | None) -> Floats:
    if frozen is None:
        return np.zeros((0, len(KINDS), 2))
    return np.concatenate([frozen.uniforms(job.number, stage) for job in workload.jobs for stage in range(len(job.stages))])
