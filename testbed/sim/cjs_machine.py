"""The scheduling engine and its virtual clock, compiled: the steps of `testbed.cluster.engine` and `testbed.sim.cjs` over tables.

Function by function what the engine does, in the same order, so that both start the same tasks at the same times on the same executors; a
test compares them start by start. Executors are never lost here.
"""
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import numpy as np

from testbed.sim.cjs_board import (
    ACTIVE,
    ACTIVE_STAGES,
    ARRIVAL_MS,
    ASKING,
    AT_JOB,
    ATTACHED,
    BOUND,
    BUSY,
    CHILDREN,
    CHILDREN_END,
    COMMITTED,
    COMPLETED,
    CONSERVING,
    COUNT,
    DONE_MS,
    FIRST,
    FORESEEN,
    FROM_POOL,
    LAST_MS,
    LEFT,
    MEMBERS,
    MOVING,
    MOVING_DELAY,
    NEXT_JOB,
    NOTHING,
    NOW,
    OF_JOB,
    OFFERED,
    OFFERS,
    OPEN_PARENTS,
    ORDER,
    PARENTS,
    POOL,
    POOL_JOB,
    POOL_STAGE,
    PROMISED,
    PROMISES,
    RUNNING,
    SELECTED,
    SOURCE,
    STARTED_MS,
    STARTS,
    STOP,
    SUPPLY,
    TASK,
    TASKS,
    TO_STAGE,
    UNSATURATED,
    UNSTARTED,
    WAITING,
    WARM,
    WHEN_MS,
)
from testbed.sim.cjs_draws import draw_ms
from testbed.sim.compiled import compiled_in_place, inlined
from traces.tpch import FIRST as FIRST_KIND
from traces.tpch import FRESH, REST

COMMON = 0
OVER, ASKED, OUT_OF_EVENTS = 0, 1, 2
"""What `advance` answers."""


@inlined
def demand(b, stage):
    """How many more executors it can use."""
    return b.stages[stage, UNSTARTED] - b.stages[stage, MOVING] - b.stages[stage, COMMITTED] - b.stages[stage, WAITING]


@inlined
def may_be_chosen(b, stage):
    """Schedulable, its job's supply apart."""
    if demand(b, stage) <= 0 or b.stages[stage, SELECTED]:
        return False
    for i in range(b.stages[stage, PARENTS], b.stages[stage, CHILDREN]):  # noqa: SIM110
        if demand(b, b.links[i]) > 0:
            return False
    return True


@inlined
def open_to(b, job, source_job):
    """Whether the job may get executors at all."""
    return job == source_job or b.jobs[job, SUPPLY] < len(b.executors)


@compiled_in_place
def offer_stages(b, source_job):
    """Mark what may be chosen; how many stages that are."""
    found = 0
    for i in range(b.numbers[ACTIVE]):
        job = b.active[i]
        is_open = open_to(b, job, source_job)
        for stage in range(b.jobs[job, FIRST], b.jobs[job, STOP]):
            offered = is_open and may_be_chosen(b, stage)
            b.stages[stage, OFFERED] = offered
            found += offered
    return found


@inlined
def leave(b, executor):
    """Its pool, if it is in one."""
    if b.executors[executor, POOL] != NOTHING:
        b.pools[b.executors[executor, POOL], MEMBERS] -= 1
        b.executors[executor, POOL] = NOTHING


@inlined
def place(b, executor, pool):
    """Into a pool."""
    leave(b, executor)
    b.pools[pool, MEMBERS] += 1
    b.executors[executor, POOL] = pool


@inlined
def stage_pool(b, stage):
    """Number of a stage's pool."""
    return 1 + len(b.jobs) + stage


@inlined
def foresee(b, executor, delay_ms):
    """Something happens to the executor then."""
    b.executor_reals[executor, WHEN_MS] = b.clock[NOW] + delay_ms
    b.executors[executor, ORDER] = b.numbers[FORESEEN]
    b.numbers[FORESEEN] += 1


@inlined
def start_task(b, executor, stage):
    """Run the stage's next task on the executor."""
    job = b.stages[stage, OF_JOB]
    task = b.stages[stage, TASKS] - b.stages[stage, UNSTARTED]
    b.stages[stage, UNSTARTED] -= 1
    b.stages[stage, RUNNING] += 1
    if b.stages[stage, UNSTARTED] == 0:
        b.jobs[job, UNSATURATED] -= 1
    warm = b.executors[executor, WARM]
    kind = FRESH if warm == NOTHING else REST if warm == stage else FIRST_KIND
    duration_ms = draw_ms(b, stage, task, kind, b.jobs[job, ATTACHED])
    b.executors[executor, WARM] = stage
    b.executors[executor, TASK] = task
    b.executor_reals[executor, STARTED_MS] = b.clock[NOW]
    b.clock[BUSY] += duration_ms
    if not b.numbers[CONSERVING]:
        b.stage_reals[stage, LAST_MS] = duration_ms
    if len(b.log):
        line = b.log[b.numbers[STARTS]]
        line[0], line[1], line[2], line[5] = b.clock[NOW], executor, job, duration_ms
        line[3], line[4] = stage - b.jobs[job, FIRST], task
    b.numbers[STARTS] += 1
    foresee(b, executor, duration_ms)


@compiled_in_place
def promise(b, pool, stage, count):
    """Commit executors of a pool to a stage (NOTHING: to the common pool)."""
    at = b.numbers[PROMISES]
    for i in range(b.numbers[PROMISES]):
        if b.promises[i, FROM_POOL] == pool and b.promises[i, TO_STAGE] == stage:
            at = i
    if at == b.numbers[PROMISES]:
        b.promises[at, FROM_POOL], b.promises[at, TO_STAGE], b.promises[at, COUNT] = pool, stage, 0
        b.numbers[PROMISES] += 1
    b.promises[at, COUNT] += count
    b.pools[pool, PROMISED] += count
    if stage != NOTHING:
        b.stages[stage, COMMITTED] += count
        if b.stages[stage, OF_JOB] != b.pools[pool, POOL_JOB]:
            b.jobs[b.stages[stage, OF_JOB], SUPPLY] += count


@compiled_in_place
def oldest_promise(b, pool):
    """Place of the pool's oldest commitment; NOTHING if it has none."""
    for i in range(b.numbers[PROMISES]):
        if b.promises[i, FROM_POOL] == pool:
            return i
    return NOTHING


@compiled_in_place
def keep_promise(b, executor, at):
    """Send the executor where commitment `at` says."""
    pool, stage = b.promises[at, FROM_POOL], b.promises[at, TO_STAGE]
    b.promises[at, COUNT] -= 1
    b.pools[pool, PROMISED] -= 1
    if b.promises[at, COUNT] == 0:
        b.numbers[PROMISES] -= 1
        for i in range(at, b.numbers[PROMISES]):
            for column in range(3):
                b.promises[i, column] = b.promises[i + 1, column]
    if stage == NOTHING:
        retire(b, executor)
        return
    b.stages[stage, COMMITTED] -= 1
    if b.stages[stage, OF_JOB] != b.pools[pool, POOL_JOB]:
        b.jobs[b.stages[stage, OF_JOB], SUPPLY] -= 1
    bring(b, executor, stage)


@compiled_in_place
def retire(b, executor):
    """An idle executor goes to its job's pool, or to the common pool if all the job's tasks have started."""
    pool = b.executors[executor, POOL]
    job = b.pools[pool, POOL_JOB]
    if pool == COMMON:
        return
    saturated = b.jobs[job, UNSATURATED] == 0
    if b.pools[pool, POOL_STAGE] == NOTHING and not saturated:
        return
    if saturated:
        b.jobs[job, ATTACHED] -= 1
        b.jobs[job, SUPPLY] -= b.numbers[CONSERVING]
        b.executors[executor, AT_JOB] = NOTHING
    if saturated or b.numbers[CONSERVING]:
        b.executors[executor, WARM] = NOTHING
    place(b, executor, COMMON if saturated else 1 + job)


@compiled_in_place
def retire_all(b, pool):
    """All idle executors of a pool."""
    for executor in range(len(b.executors)):
        if b.executors[executor, POOL] == pool and b.executors[executor, TASK] == NOTHING:
            retire(b, executor)


@compiled_in_place
def move(b, executor, stage):
    """To another job."""
    leave(b, executor)
    job = b.executors[executor, AT_JOB]
    if job != NOTHING:
        b.jobs[job, ATTACHED] -= 1
        b.jobs[job, SUPPLY] -= 1
    b.executors[executor, AT_JOB] = b.executors[executor, WARM] = NOTHING
    b.executors[executor, BOUND] = stage
    b.stages[stage, MOVING] += 1
    b.jobs[b.stages[stage, OF_JOB], SUPPLY] += 1
    foresee(b, executor, b.clock[MOVING_DELAY])


@compiled_in_place
def backup(b, executor):
    """The last schedulable stage of its own job, else of the others; NOTHING if there is none."""
    own = b.executors[executor, AT_JOB]
    for of_own in (True, False):
        for i in range(b.numbers[ACTIVE] - 1, -1, -1):
            job = b.active[i]
            if (job == own) == of_own and open_to(b, job, own):
                for stage in range(b.jobs[job, STOP] - 1, b.jobs[job, FIRST] - 1, -1):
                    if may_be_chosen(b, stage):
                        return stage
    return NOTHING


@compiled_in_place
def bring(b, executor, stage):
    """Let an idle executor work on a stage, move there, wait for it, or fall back."""
    while b.stages[stage, UNSTARTED] == 0:
        stage = NOTHING if b.numbers[CONSERVING] else backup(b, executor)
        if stage == NOTHING:
            retire(b, executor)
            if b.numbers[CONSERVING]:
                b.executors[executor, WARM] = NOTHING
            return
    job = b.stages[stage, OF_JOB]
    if b.executors[executor, AT_JOB] != job:
        move(b, executor, stage)
    elif b.stages[stage, OPEN_PARENTS] == 0:
        place(b, executor, stage_pool(b, stage))
        start_task(b, executor, stage)
    else:
        b.executors[executor, WARM] = NOTHING
        b.stages[stage, WAITING] += b.numbers[CONSERVING]
        place(b, executor, stage_pool(b, stage) if b.numbers[CONSERVING] else 1 + job)


@compiled_in_place
def job_arrived(b):
    """The next job comes in."""
    job = b.numbers[NEXT_JOB]
    b.numbers[NEXT_JOB] += 1
    b.active[b.numbers[ACTIVE]] = job
    b.numbers[ACTIVE] += 1
    if b.pools[COMMON, MEMBERS]:
        b.numbers[SOURCE] = COMMON


@compiled_in_place
def executor_arrived(b, executor):
    """It is at its new job."""
    stage = b.executors[executor, BOUND]
    job = b.stages[stage, OF_JOB]
    b.executors[executor, BOUND] = NOTHING
    b.stages[stage, MOVING] -= 1
    b.jobs[job, ATTACHED] += 1
    b.executors[executor, AT_JOB] = job
    place(b, executor, 1 + job)
    bring(b, executor, stage)


@inlined
def task_finished(b, executor):
    """Whether the executor just goes on with its stage."""
    stage = b.executors[executor, WARM]
    b.stages[stage, RUNNING] -= 1
    b.stages[stage, COMPLETED] += 1
    b.executors[executor, TASK] = NOTHING
    if b.numbers[CONSERVING]:
        b.stage_reals[stage, LAST_MS] = b.clock[NOW] - b.executor_reals[executor, STARTED_MS]
    if b.stages[stage, UNSTARTED]:
        start_task(b, executor, stage)
        return True
    stage_has_no_more(b, executor, stage)
    return False


@compiled_in_place
def stage_has_no_more(b, executor, stage):
    """The executor is released."""
    job, pool = b.stages[stage, OF_JOB], stage_pool(b, stage)
    unlocked = b.stages[stage, COMPLETED] == b.stages[stage, TASKS] and stage_done(b, stage)
    if b.jobs[job, ACTIVE_STAGES] == 0:
        job_done(b, job)
    promised = oldest_promise(b, pool)
    if promised != NOTHING:
        keep_promise(b, executor, promised)
    else:
        b.executors[executor, WARM] = NOTHING
        if unlocked:
            retire(b, executor)
    if unlocked:
        b.numbers[SOURCE] = 1 + job
    elif promised == NOTHING:
        b.numbers[SOURCE] = pool


@compiled_in_place
def stage_done(b, stage):
    """Whether that made other stages runnable."""
    b.jobs[b.stages[stage, OF_JOB], ACTIVE_STAGES] -= 1
    unlocked = False
    first, stop = b.stages[stage, CHILDREN], b.stages[stage, CHILDREN_END]
    for i in range(first, stop):
        b.stages[b.links[i], OPEN_PARENTS] -= 1
    for i in range(first, stop):
        child = b.links[i]
        if b.stages[child, OPEN_PARENTS] == 0:
            unlocked = True
            if b.stages[child, WAITING]:
                b.stages[child, WAITING] = 0
                for executor in range(len(b.executors)):
                    if b.executors[executor, POOL] == stage_pool(b, child):
                        start_task(b, executor, child)
    return unlocked


@compiled_in_place
def job_done(b, job):
    """Its last task ended."""
    retire_all(b, 1 + job)
    kept = 0
    for i in range(b.numbers[ACTIVE]):
        if b.active[i] != job:
            b.active[kept] = b.active[i]
            kept += 1
    b.numbers[ACTIVE] = kept
    b.job_reals[job, DONE_MS] = b.clock[NOW]
    b.numbers[LEFT] -= 1


@inlined
def committable(b):
    """Executors of the source that nobody has decided on."""
    source = b.numbers[SOURCE]
    return b.pools[source, MEMBERS] - b.pools[source, PROMISED] if source != NOTHING else 0


@compiled_in_place
def offer(b):
    """Ask about the source, if there is something to decide; when rules say so, then about all other idle executors."""
    at = 0
    while True:
        if committable(b) > 0:
            source = b.numbers[SOURCE]
            if offer_stages(b, b.pools[source, POOL_JOB]):
                b.numbers[ASKING] = 1
                break
            retire_all(b, source)
            b.numbers[SOURCE] = NOTHING
        if at == b.numbers[OFFERS]:
            break
        b.numbers[SOURCE] = b.offers[at]
        at += 1
    b.numbers[OFFERS] -= at
    for i in range(b.numbers[OFFERS]):
        b.offers[i] = b.offers[i + at]
    if b.numbers[CONSERVING] and not b.numbers[ASKING]:
        b.numbers[SOURCE] = NOTHING


@compiled_in_place
def decide(b, stage, executors):
    """Take a decision that was checked; NOTHING declines."""
    source = b.numbers[SOURCE]
    if stage != NOTHING:
        promise(b, source, stage, min(executors, demand(b, stage)))
        b.stages[stage, SELECTED] = 1
        if offer_stages(b, b.pools[source, POOL_JOB]) and committable(b) > 0:
            return
    left = committable(b)
    if left > 0:
        promise(b, source, NOTHING, left)
        b.numbers[OFFERS] = 0
    keep_promises(b, source)
    b.numbers[SOURCE] = NOTHING
    b.numbers[ASKING] = 0
    for i in range(b.numbers[ACTIVE]):
        for each in range(b.jobs[b.active[i], FIRST], b.jobs[b.active[i], STOP]):
            b.stages[each, SELECTED] = 0
    offer(b)


@compiled_in_place
def keep_promises(b, source):
    """Of the source's idle executors the first go where its oldest commitment says, and so on."""
    count = 0
    for executor in range(len(b.executors)):
        if b.executors[executor, POOL] == source and b.executors[executor, TASK] == NOTHING:
            b.idle[count] = executor
            count += 1
    for i in range(count):
        keep_promise(b, b.idle[i], oldest_promise(b, source))


@compiled_in_place
def advance(b):
    """Let things happen until a decision is awaited (ASKED), all jobs are done (OVER) or nothing will happen any more (OUT_OF_EVENTS)."""
    while not b.numbers[ASKING]:
        if b.numbers[LEFT] == 0:
            return OVER
        executor, at_ms = 0, b.executor_reals[0, WHEN_MS]
        for i in range(1, len(b.executors)):
            if b.executor_reals[i, WHEN_MS] < at_ms or (
                b.executor_reals[i, WHEN_MS] == at_ms and b.executors[i, ORDER] < b.executors[executor, ORDER]
            ):
                executor, at_ms = i, b.executor_reals[i, WHEN_MS]
        arrives = b.numbers[NEXT_JOB] < len(b.jobs) and b.job_reals[b.numbers[NEXT_JOB], ARRIVAL_MS] <= at_ms
        if arrives:
            at_ms = b.job_reals[b.numbers[NEXT_JOB], ARRIVAL_MS]
        if at_ms == np.inf:
            return OUT_OF_EVENTS
        b.clock[NOW] = at_ms
        if not happen(b, executor, arrives):
            line_up_offers(b)
            offer(b)
    return ASKED


@inlined
def happen(b, executor, arrives):
    """One event; whether there is nothing to decide after it."""
    if arrives:
        job_arrived(b)
        return False
    b.executor_reals[executor, WHEN_MS] = np.inf
    if b.executors[executor, TASK] != NOTHING:
        return task_finished(b, executor)
    executor_arrived(b, executor)
    return False


@compiled_in_place
def line_up_offers(b):
    """When rules say so: the common pool, then those of active jobs."""
    if b.numbers[CONSERVING]:
        b.offers[0] = COMMON
        b.numbers[OFFERS] = 1
        for i in range(b.numbers[ACTIVE]):
            if b.pools[1 + b.active[i], MEMBERS]:
                b.offers[b.numbers[OFFERS]] = 1 + b.active[i]
                b.numbers[OFFERS] += 1
