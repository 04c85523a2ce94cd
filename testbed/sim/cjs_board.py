"""The tables of the compiled scheduling simulator: the engine's state as arrays, one row an executor, stage, job or pool.

Stages are numbered over all jobs of the workload. Pools: 0 is common, then one a job, then one a stage. Times are in milliseconds.

All tables of integers lie in one array, all of floats in another: handing an array over to compiled code takes longer than starting a task.
"""

import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.api import CjsSession
from testbed.errors import TestbedError
from testbed.units import ms_from_s
from traces.durations import WARM_UP_MS, frozen_uniforms, level_span
from traces.tpch import KINDS, Profiles
from traces.workload import Workload

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns of `executors`
POOL, AT_JOB, WARM, TASK, BOUND, ORDER = range(6)
# Columns of `stages`
OF_JOB, TASKS, UNSTARTED, RUNNING, COMPLETED, MOVING, COMMITTED, WAITING, OPEN_PARENTS, SELECTED, OFFERED = range(11)
PROFILE, FIRST_TASK, PARENTS, CHILDREN, CHILDREN_END = range(11, 16)
"""The stage's row in the profiles, its first task among all, where its parents and its children lie in `links`."""
STAGE_COLUMNS = 16
# Columns of `stage_reals`
LAST_MS, MEAN_MS = range(2)
# Columns of `jobs`
FIRST, STOP, ACTIVE_STAGES, UNSATURATED, ATTACHED, SUPPLY = range(6)
# Columns of `job_reals`
ARRIVAL_MS, DONE_MS = range(2)
# Columns of `executor_reals`
WHEN_MS, STARTED_MS = range(2)
# The last axis of `recorded`
START, HOW_MANY, COLD = range(3)
# Columns of `pools`
MEMBERS, PROMISED, POOL_JOB, POOL_STAGE = range(4)
# Columns of `promises`
FROM_POOL, TO_STAGE, COUNT = range(3)
# Places in `numbers`
SOURCE, ASKING, PROMISES, ACTIVE, NEXT_JOB, FORESEEN, LEFT, OFFERS, CONSERVING, FROZEN, STARTS, WORD = range(12)
NUMBERS = 12
# Places in `clock`
NOW, BUSY, MOVING_DELAY, WARM_UP = range(4)
CLOCK = 4
EXPECTED = 2
"""In `numbers[FROZEN]`, where 0 is the published stream and 1 frozen draws: a look-ahead (`testbed.sim.cjs_ahead`)."""
NOTHING = -1
WORDS = 624
"""Of the Mersenne twister's state."""


class Board(NamedTuple):
    """Everything, changed in place by the compiled functions."""

    executors: Integers
    """(executors, 6)"""
    executor_reals: Floats
    """(executors, 2): when it finishes its task or arrives (infinite when neither), and when its task started."""
    stages: Integers
    """(stages, 16)"""
    stage_reals: Floats
    """(stages, 2): what `last_task_s` and `mean_task_s` show."""
    links: Integers
    """Of each stage its parents, then its children."""
    jobs: Integers
    """(jobs, 6)"""
    job_reals: Floats
    """(jobs, 2): when it arrives, and when it is done (infinite until then)."""
    pools: Integers
    """(pools, 4)"""
    promises: Integers
    """(executors + 1, 3): the first `numbers[PROMISES]` are outstanding commitments, oldest first."""
    active: Integers
    """(jobs,): the first `numbers[ACTIVE]` are active jobs, by arrival."""
    offers: Integers
    """(jobs + 1,): pools still to be offered."""
    idle: Integers
    """(executors,): room for a list."""
    numbers: Integers
    clock: Floats
    spans: Integers
    """(executors + 1, 2): recorded levels around a number of executors."""
    recorded: Integers
    """(profile rows, levels, kinds, 3): where durations begin, how many there are, whether a warm-up is added."""
    durations_ms: NDArray[np.uint32]
    """Of the profiles; the ordered ones when durations are frozen."""
    uniforms: Floats
    """(tasks, kinds, 2) when durations are frozen, (profile rows, levels, kinds) of means in a look-ahead, else empty."""
    words: NDArray[np.uint32]
    """(624,): the Mersenne twister behind published durations."""
    log: Floats
    """(tasks, 6) when task starts are logged, else empty."""


class Packed(NamedTuple):
    """A board as compiled code is handed it: `sizes` are executors, jobs, stages, links."""

    sizes: Integers
    integers: Integers
    floats: Floats
    recorded: Integers
    durations_ms: NDArray[np.uint32]
    uniforms: Floats
    words: NDArray[np.uint32]
    log: Floats


def unpacked(packed: Packed) -> Board:
    """Views of the tables; plain Python and compiled code use it alike."""
    executors, jobs, stages, links = packed.sizes[0], packed.sizes[1], packed.sizes[2], packed.sizes[3]
    pools, one = 1 + jobs + stages, packed.integers
    at_stages = 6 * executors
    at_links = at_stages + STAGE_COLUMNS * stages
    at_jobs = at_links + links
    at_pools = at_jobs + 6 * jobs
    at_promises = at_pools + 4 * pools
    at_active = at_promises + 3 * (executors + 1)
    at_offers = at_active + jobs
    at_idle = at_offers + jobs + 1
    at_numbers = at_idle + executors
    at_spans = at_numbers + NUMBERS
    other = packed.floats
    stage_reals = 2 * executors
    job_reals = stage_reals + 2 * stages
    clock = job_reals + 2 * jobs
    return Board(
        one[:at_stages].reshape((executors, 6)),
        other[:stage_reals].reshape((executors, 2)),
        one[at_stages:at_links].reshape((stages, STAGE_COLUMNS)),
        other[stage_reals:job_reals].reshape((stages, 2)),
        one[at_links:at_jobs],
        one[at_jobs:at_pools].reshape((jobs, 6)),
        other[job_reals:clock].reshape((jobs, 2)),
        one[at_pools:at_promises].reshape((pools, 4)),
        one[at_promises:at_active].reshape((executors + 1, 3)),
        one[at_active:at_offers],
        one[at_offers:at_idle],
        one[at_idle:at_numbers],
        one[at_numbers:at_spans],
        other[clock : clock + CLOCK],
        one[at_spans : at_spans + 2 * (executors + 1)].reshape((executors + 1, 2)),
        packed.recorded,
        packed.durations_ms,
        packed.uniforms,
        packed.words,
        packed.log,
    )


def make_board(workload: Workload, session: CjsSession, conserving: bool, profiles: Profiles, logged: bool) -> tuple[Packed, Board]:
    """The tables before the first event, and views of them."""
    executors, jobs = session.executors, len(workload.jobs)
    links = [(*stage.parents, *stage.children) for job in workload.jobs for stage in job.stages]
    sizes = np.array([executors, jobs, len(links), sum(map(len, links))], np.int64)
    pools = 1 + jobs + len(links)
    integers = 6 * executors + STAGE_COLUMNS * len(links) + sizes[3] + 6 * jobs + 4 * pools + 3 * (executors + 1) + 2 * jobs + 1 + executors
    version, words, _ = random.Random(workload.seed).getstate()
    if version != 3:
        raise TestbedError(f"Python's random keeps its state in form {version}, wanted 3: published durations can't be drawn")
    packed = Packed(
        sizes=sizes,
        integers=np.zeros(integers + NUMBERS + 2 * (executors + 1), np.int64),
        floats=np.zeros(2 * (executors + len(links) + jobs) + CLOCK),
        recorded=profiles.recorded,
        durations_ms=profiles.ordered_ms if conserving else profiles.durations_ms,
        uniforms=_uniforms(workload, conserving),
        words=np.array(words[:WORDS], np.uint32),
        log=np.zeros((workload.tasks if logged else 0, 6)),
    )
    board = unpacked(packed)
    _fill(board, workload, session, profiles)
    board.numbers[[SOURCE, LEFT, FORESEEN, CONSERVING, FROZEN]] = NOTHING, jobs, jobs, conserving, conserving
    board.numbers[WORD] = words[WORDS]
    return packed, board


def _fill(board: Board, workload: Workload, session: CjsSession, profiles: Profiles) -> None:
    counts, specs = [len(job.stages) for job in workload.jobs], [stage for job in workload.jobs for stage in job.stages]
    board.executors[:], board.executors[:, POOL] = NOTHING, 0
    board.executor_reals[:, WHEN_MS] = np.inf
    board.jobs[:, STOP] = np.cumsum(counts)
    board.jobs[:, FIRST] = board.jobs[:, STOP] - counts
    board.jobs[:, ACTIVE_STAGES] = board.jobs[:, UNSATURATED] = counts
    board.job_reals[:, ARRIVAL_MS] = [ms_from_s(job.arrival_s) for job in workload.jobs]
    board.job_reals[:, DONE_MS] = np.inf
    stages = board.stages
    stages[:, OF_JOB] = np.repeat(np.arange(len(counts)), counts)
    stages[:, TASKS] = stages[:, UNSTARTED] = [stage.tasks for stage in specs]
    stages[:, FIRST_TASK] = np.cumsum(stages[:, TASKS]) - stages[:, TASKS]
    stages[:, OPEN_PARENTS] = parents = np.array([len(stage.parents) for stage in specs])
    stages[:, PROFILE] = [row for job in workload.jobs for row in profiles.stages_of(job.template)]
    stages[:, CHILDREN_END] = np.cumsum(parents + [len(stage.children) for stage in specs])
    stages[1:, PARENTS] = stages[:-1, CHILDREN_END]
    stages[:, CHILDREN] = stages[:, PARENTS] + parents
    first = board.jobs[stages[:, OF_JOB], FIRST].tolist()
    board.links[:] = [at + number for at, stage in zip(first, specs, strict=True) for number in (*stage.parents, *stage.children)]
    board.stage_reals[:] = profiles.mean_ms[stages[:, PROFILE], None]
    board.pools[:, POOL_JOB] = [NOTHING, *range(len(counts)), *stages[:, OF_JOB]]
    board.pools[:, POOL_STAGE] = [NOTHING] * (1 + len(counts)) + list(range(len(specs)))
    board.pools[0, MEMBERS] = session.executors
    board.clock[[MOVING_DELAY, WARM_UP]] = ms_from_s(session.moving_delay_s), WARM_UP_MS
    board.spans[:] = [level_span(attached) for attached in range(session.executors + 1)]


def _uniforms(workload: Workload, conserving: bool) -> Floats:
    if not conserving:
        return np.zeros((0, len(KINDS), 2))
    return np.concatenate([frozen_uniforms(workload, job.number, stage) for job in workload.jobs for stage in range(len(job.stages))])
