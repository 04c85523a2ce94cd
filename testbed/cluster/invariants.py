"""What must hold in the engine between any two events, each as a sentence."""

from collections import Counter
from collections.abc import Iterator

from testbed.cluster.engine import Engine
from testbed.cluster.state import NOWHERE, JobState, Pool, StageState


class InvariantError(AssertionError):
    """The engine contradicts itself: the text names each contradiction."""


def validate(engine: Engine) -> None:
    """Raise `InvariantError` unless everything holds."""
    broken = [*_executors(engine), *_pools(engine), *_jobs(engine), *_round(engine)]
    if broken:
        raise InvariantError("; ".join(broken))


def pools_of(engine: Engine) -> Iterator[Pool]:
    """Every pool."""
    yield engine.common
    for job in engine.jobs.values():
        yield job.pool
        yield from (stage.pool for stage in job.stages)


def _executors(engine: Engine) -> Iterator[str]:
    places = Counter(number for pool in pools_of(engine) for number in pool.members)
    for executor in engine.executors:
        name = f"executor {executor.number}"
        if (executor.pool is not None) + (executor.bound_for is not None) + executor.lost != 1:
            yield f"{name} is not in exactly one of: a pool, on the way, lost"
        if places[executor.number] != (executor.pool is not None):
            yield f"{name} is a member of {places[executor.number]} pools"
        if executor.pool is not None and (executor.number not in executor.pool.members or executor.job != executor.pool.job):
            yield f"{name} is not where it says"
        if executor.task != NOWHERE and (executor.pool is None or executor.pool.stage != executor.warm_stage):
            yield f"{name} runs a task away from its stage"
    tasks = Counter((e.job, e.warm_stage, e.task) for e in engine.executors if e.task != NOWHERE)
    yield from (f"task {task} runs {count} times" for task, count in tasks.items() if count > 1)


def _pools(engine: Engine) -> Iterator[str]:
    for pool in pools_of(engine):
        name = f"pool ({pool.job}, {pool.stage})"
        if pool.promised != sum(pool.commitments.values()) or any(count <= 0 for count in pool.commitments.values()):
            yield f"{name} promised {pool.promised}, its commitments are {list(pool.commitments.values())}"
        if pool.promised > len(pool.members):
            yield f"{name} promised {pool.promised} of {len(pool.members)} executors"
        idle = [number for number in pool.members if engine.executors[number].task == NOWHERE]
        at_stage = pool.stage != NOWHERE
        if at_stage and idle and not engine.asking and len(idle) != engine.jobs[pool.job].stages[pool.stage].waiting:
            yield f"{name} has idle executors {idle} that nobody decides on"
        if not at_stage and len(idle) != len(pool.members):
            yield f"{name} has busy executors"
    promised: Counter[StageState | None] = Counter()
    for pool in pools_of(engine):
        promised.update(pool.commitments)
    for job in engine.jobs.values():
        yield from (f"stage {s.number} of job {s.job} counts other commitments" for s in job.stages if s.committed != promised[s])


def _jobs(engine: Engine) -> Iterator[str]:
    for number, job in engine.jobs.items():
        name = f"job {number}"
        for stage in job.stages:
            yield from (f"stage {stage.number} of {name}: {what}" for what in _stage(engine, job, stage))
        if job.active != [stage for stage in job.stages if not stage.complete]:
            yield f"{name} has other active stages than it says"
        if (job.done_s is not None) == bool(job.active) or (job in engine.active) != bool(job.active):
            yield f"{name} is both done and not"
        if job.unsaturated != sum(stage.unstarted > 0 for stage in job.stages):
            yield f"{name} counts other stages with unstarted tasks"
        attached = sum(executor.job == number for executor in engine.executors)
        if job.attached != attached:
            yield f"{name} counts {job.attached} executors, has {attached}"
        yield from _supply(engine, job, name)
    if [job.spec.number for job in engine.active] != [n for n, job in engine.jobs.items() if job.done_s is None]:
        yield "active jobs are not in order of arrival"


def _supply(engine: Engine, job: JobState, name: str) -> Iterator[str]:
    elsewhere = (pool for pool in pools_of(engine) if pool.job != job.spec.number)
    promised = sum(count for pool in elsewhere for stage, count in pool.commitments.items() if stage and stage.job == job.spec.number)
    supply = job.attached + promised + sum(stage.moving for stage in job.stages)
    if job.supply < supply or (engine.rules.conserving and job.supply != supply):
        yield f"{name} has a supply of {job.supply}, wanted {supply}"


def _stage(engine: Engine, job: JobState, stage: StageState) -> Iterator[str]:
    if stage.unstarted + stage.running + stage.completed != stage.spec.tasks or min(stage.unstarted, stage.running, stage.moving) < 0:
        yield f"{stage.unstarted} + {stage.running} + {stage.completed} tasks, wanted {stage.spec.tasks}"
    if stage.unstarted != stage.spec.tasks - stage.fresh_task + len(stage.again):
        yield "unstarted tasks are other than those to start"
    running = sum(e.task != NOWHERE and e.job == stage.job and e.warm_stage == stage.number for e in engine.executors)
    if stage.running != running:
        yield f"{stage.running} tasks run, executors run {running}"
    if stage.moving != sum(executor.bound_for is stage for executor in engine.executors):
        yield "other executors move to it than it says"
    if stage.open_parents != sum(not job.stages[parent].complete for parent in stage.spec.parents):
        yield "it has other parents to wait for"
    lost_parents = any(job.stages[parent].reopened and not job.stages[parent].complete for parent in stage.spec.parents)
    if (stage.running or stage.completed) and stage.open_parents and not lost_parents:
        yield "it started before its parents were complete"
    if stage.waiting and (not engine.rules.conserving or stage.runnable or stage.demand < 0):
        yield f"{stage.waiting} executors wait for it without need"


def _round(engine: Engine) -> Iterator[str]:
    if not engine.asking:
        if engine.selected or engine.schedulable:
            yield "stages are selected or on offer outside a round"
        return
    if engine.source is None or engine.source.committable <= 0:
        yield "a decision is awaited on no executor"
    elif not engine.schedulable:
        yield "a decision is awaited with nothing to choose from"
