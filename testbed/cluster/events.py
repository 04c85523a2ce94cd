"""What the engine is told (events) and what it tells its driver to do (instructions). Neither knows of durations."""

from typing import NamedTuple

from traces.workload import Job


class JobArrived(NamedTuple):
    """A job came in."""

    job: Job


class TaskFinished(NamedTuple):
    """The task on this executor ended."""

    executor: int


class ExecutorArrived(NamedTuple):
    """An executor that was told to move is at its new job."""

    executor: int


class DecisionGiven(NamedTuple):
    """The answer to `AskDecision`. Without a stage (-1) all executors still on offer are declined."""

    job: int
    stage: int
    executors: int


class TaskFailed(NamedTuple):
    """The task on this executor came to nothing, and runs again; the executor lives."""

    executor: int


class OutputsLost(NamedTuple):
    """What these tasks, which had ended, had left for later stages is gone with an executor: they run again.

    A stage that was complete isn't any more; its children's tasks that run already go on, the others wait for it.
    """

    job: int
    stage: int
    tasks: tuple[int, ...]


class ExecutorLost(NamedTuple):
    """An executor is gone: its task runs again elsewhere. What it reports is ignored; so must be what it is told until `LossNoted`."""

    executor: int


class ExecutorJoined(NamedTuple):
    """A lost executor is back, idle and in the common pool. Only after `LossNoted`."""

    executor: int


Event = JobArrived | TaskFinished | TaskFailed | OutputsLost | ExecutorArrived | DecisionGiven | ExecutorLost | ExecutorJoined
DECLINE = DecisionGiven(-1, -1, 0)


class StartTask(NamedTuple):
    """Run a task on an executor now."""

    executor: int
    job: int
    stage: int
    task: int
    """0 to tasks - 1. A task that is run again keeps its number."""
    kind: int
    """What the executor did before, `traces.tpch.KINDS`: nothing in this job or idle since, the same stage, another stage."""
    attached: int
    """Executors at the job now, this one included."""


class MoveExecutor(NamedTuple):
    """Bring an executor to another job; `ExecutorArrived` says when it is there."""

    executor: int
    job: int
    stage: int


class AskDecision(NamedTuple):
    """Ask the policy which stage gets how many of the executors on offer. Until `DecisionGiven`, other events wait."""

    committable: int


class JobDone(NamedTuple):
    """The last task of a job ended."""

    job: int


class LossNoted(NamedTuple):
    """The loss of an executor is taken into account: what was said of it before is void, and it may join again."""

    executor: int


Instruction = StartTask | MoveExecutor | AskDecision | JobDone | LossNoted
