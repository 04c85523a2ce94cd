"""What the engine keeps: pools of executors with the commitments out of them, executors, stages, jobs."""

from dataclasses import dataclass, field

from traces.workload import Job, Stage

NOWHERE = -1


@dataclass(slots=True, eq=False)
class Pool:
    """Executors that are together: the common pool (no job), idle at a job (no stage), or at a stage, busy or idle.

    A commitment promises some of the pool's executors to a stage; it is kept when they are free, oldest first.
    """

    job: int = NOWHERE
    stage: int = NOWHERE
    members: set[int] = field(default_factory=set)
    commitments: dict["StageState | None", int] = field(default_factory=dict)
    """Stage (None: the common pool) to count, in the order in which they were first made."""
    promised: int = 0
    """Sum of `commitments`."""

    @property
    def committable(self) -> int:
        """Executors nobody has decided on yet."""
        return len(self.members) - self.promised


@dataclass(slots=True, eq=False)
class ExecutorState:
    """One slot of the cluster."""

    number: int
    pool: Pool | None
    """None while moving, and when lost."""
    job: int = NOWHERE
    """The job it is at."""
    warm_stage: int = NOWHERE
    """Stage of the task it runs or has just run; NOWHERE once it was idle or left its job."""
    task: int = NOWHERE
    """The task it runs."""
    started_s: float = 0.0
    bound_for: "StageState | None" = None
    """Where it moves to."""
    lost: bool = False


@dataclass(slots=True, eq=False)
class StageState:
    """A stage of a job that has arrived. `unstarted + running + completed` is always its number of tasks."""

    job: int
    number: int
    spec: Stage
    pool: Pool
    unstarted: int
    open_parents: int
    """Parents that are not complete."""
    running: int = 0
    completed: int = 0
    moving: int = 0
    """Executors on their way to it."""
    committed: int = 0
    """Executors promised to it."""
    waiting: int = 0
    """Executors at it that can't start before its parents are complete (only when rules hold them there)."""
    fresh_task: int = 0
    """The lowest number of a task that never started."""
    again: list[int] = field(default_factory=list)
    """Tasks that are to run again: lost with an executor, failed, or their outputs gone."""
    reopened: bool = False
    """Whether it was complete before, until outputs were lost."""
    last_task_s: float = 0.0
    """Duration of the task that completed last; the profile's mean until then."""

    @property
    def demand(self) -> int:
        """How many more executors it can use."""
        return self.unstarted - self.moving - self.committed - self.waiting

    @property
    def startable(self) -> bool:
        """Whether a task of it may start now."""
        return self.unstarted > 0 and self.open_parents == 0

    @property
    def runnable(self) -> bool:
        """Whether all its parents are complete, and it is not."""
        return self.open_parents == 0 and self.completed < self.spec.tasks

    @property
    def complete(self) -> bool:
        """Whether all its tasks are."""
        return self.completed == self.spec.tasks


@dataclass(slots=True, eq=False)
class JobState:
    """A job that has arrived."""

    spec: Job
    pool: Pool
    stages: list[StageState]
    active: list[StageState]
    """Stages that are not complete, in order of number."""
    arrived_s: float
    unsaturated: int
    """Stages with tasks that have not started."""
    last_end_s: float = 0.0
    """The latest end of a task so far."""
    done_s: float | None = None
    attached: int = 0
    """Executors at it: idle in its pool, or at one of its stages."""
    supply: int = 0
    """Attached, moving to it, and committed to it from elsewhere (see `Rules`)."""

    @property
    def saturated(self) -> bool:
        """Whether all its tasks have started."""
        return self.unsaturated == 0


def job_state(job: Job, now_s: float) -> JobState:
    """A job at its arrival."""
    stages = [
        StageState(
            job=job.number,
            number=number,
            spec=stage,
            pool=Pool(job.number, number),
            unstarted=stage.tasks,
            open_parents=len(stage.parents),
            last_task_s=stage.mean_task_s,
        )
        for number, stage in enumerate(job.stages)
    ]
    return JobState(job, Pool(job.number), stages, list(stages), now_s, len(stages))
