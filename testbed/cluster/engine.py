"""The state machine that schedules: events in (`handle`), instructions out. It knows no clock, no durations and no network.

The same engine drives the simulator and a real cluster. Its rules are those of spark-sched-sim, which NetLLM uses (docs/cjs.md):

1. An executor stays at its stage while that has tasks to start. When it runs out, the executor keeps the oldest commitment of the stage.
2. The policy is asked in *rounds*. A round is about one pool, its source: (a) a job arrived: the common pool; (b) a stage ended and made
   others runnable: the job's pool; (c) an executor has nothing to do and no commitment: its stage's pool, busy members included.
3. In a round each schedulable stage can be given executors once; what is left is committed to the common pool, then all promises that can
   be kept are. Schedulable: it can use more executors, its parents can't, and its job has fewer than all executors.
4. A committed executor that finds its stage without tasks falls back: to another schedulable stage, else to its job's pool or the common
   pool. One whose stage is not runnable yet waits.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from testbed.cluster.events import (
    AskDecision,
    DecisionGiven,
    Event,
    ExecutorArrived,
    ExecutorJoined,
    ExecutorLost,
    Instruction,
    JobArrived,
    JobDone,
    LossNoted,
    MoveExecutor,
    OutputsLost,
    StartTask,
    TaskFailed,
    TaskFinished,
)
from testbed.cluster.state import NOWHERE, ExecutorState, JobState, Pool, StageState, job_state
from traces.tpch import FIRST, FRESH, REST
from traces.workload import Job


@dataclass(frozen=True)
class Rules:
    """Where a cluster worth running differs from the published simulator.

    | | published | conserving |
    | --- | --- | --- |
    | idle executors are offered | at 2a and 2b only | after each event that frees or moves one, or ends a stage or job |
    | given to a stage that can't run yet | idle at the job, offered with it | waits at the stage, starts with it |
    | finds its stage without tasks | takes the last schedulable stage, unasked | idle at the job, offered |
    | supply of a job whose executor goes to the common pool | is not lowered | is lowered |
    | idle at the job after a refusal | as warm as before | cold |
    """

    conserving: bool = False


PUBLISHED, CONSERVING = Rules(), Rules(conserving=True)


class Engine:
    """Jobs, stages, tasks, executors. `handle` is the only way to change it; `testbed.cluster.invariants.validate` checks it."""

    def __init__(self, executors: int, rules: Rules = PUBLISHED) -> None:
        if executors < 1:
            raise ValueError(f"{executors} executors, wanted at least 1")
        self.rules = rules
        self.common = Pool(members=set(range(executors)))
        self.executors = [ExecutorState(number, self.common) for number in range(executors)]
        self.jobs: dict[int, JobState] = {}
        self.active: list[JobState] = []
        """Jobs that are not complete, in order of arrival."""
        self.source: Pool | None = None
        """The pool that is, or would be, decided on."""
        self.asking = False
        self.schedulable: list[StageState] = []
        """While asking: what the policy may choose from."""
        self.selected: set[StageState] = set()
        """Chosen in this round."""
        self.now_s = 0.0
        self.due_s = 0.0
        """When the instructions of the event handled last are due."""
        self._at_s = 0.0
        """When that event happened."""
        self._out: list[Instruction] = []
        self._waiting: deque[tuple[Event, float]] = deque()
        self._to_offer: deque[Pool] = deque()

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """What to do after `event`. While a decision is awaited other events are kept for later, but for tasks whose stage goes on.

        Time never runs backwards: what follows from a kept event is due with the decision at the earliest, and that with the newest of what
        is kept. So `due_s` may be later than `now_s`. Ends of tasks, arrivals and ends of jobs count at the event's own time nevertheless,
        and so does the next task of a stage that goes on: nobody decides on it.

        Raises `ValueError` for a decision that wasn't asked for or can't be meant, and for an event about an unknown job or executor.
        """
        self._out = []
        if isinstance(event, DecisionGiven):
            self.now_s = self.due_s = max(now_s, self.now_s, *(kept_s for _, kept_s in self._waiting))
            self._decide(event)
        elif self._goes_on(event):
            self._apply(event, now_s, now_s)
        elif self.asking:
            self._waiting.append((event, now_s))
        else:
            self._apply(event, now_s, max(now_s, self.now_s))
        while self._waiting and not self.asking:
            self._apply(*self._waiting.popleft(), self.now_s)
        return self._out

    def stage_of(self, executor: ExecutorState) -> StageState:
        """The stage whose task the executor runs or has just run."""
        return self.jobs[executor.job].stages[executor.warm_stage]

    def idle_members(self, pool: Pool) -> list[ExecutorState]:
        """Members that run nothing, in the order in which they are sent away: by number."""
        return [self.executors[number] for number in sorted(pool.members) if self.executors[number].task == NOWHERE]

    def find_schedulable(self, jobs: Iterable[JobState], source_job: int) -> list[StageState]:
        """Stages that may be given executors from `source_job` (NOWHERE: from the common pool), by arrival and number."""
        most = len(self.executors)
        return [
            stage
            for job in jobs
            if job.supply < most or job.spec.number == source_job
            for stage in job.active
            if stage.demand > 0 and stage not in self.selected and all(job.stages[parent].demand <= 0 for parent in stage.spec.parents)
        ]

    # Events

    def _goes_on(self, event: Event) -> bool:
        if not isinstance(event, TaskFinished):
            return False
        executor = self._executor(event.executor)
        return not executor.lost and executor.task != NOWHERE and self.stage_of(executor).startable

    def _apply(self, event: Event, at_s: float, due_s: float) -> None:
        self.now_s, self.due_s, self._at_s = max(at_s, self.now_s), due_s, at_s
        if isinstance(event, TaskFinished):
            if self._task_finished(self._executor(event.executor)):
                return
        elif isinstance(event, TaskFailed):
            if self._task_failed(self._executor(event.executor)):
                return
        elif isinstance(event, OutputsLost):
            self._outputs_lost(event)
        elif isinstance(event, ExecutorArrived):
            self._executor_arrived(self._executor(event.executor))
        elif isinstance(event, JobArrived):
            self._job_arrived(event.job)
        elif isinstance(event, ExecutorLost):
            self._executor_lost(self._executor(event.executor))
        elif isinstance(event, ExecutorJoined):
            self._executor_joined(self._executor(event.executor))
        else:
            raise ValueError(f"{event!r} is no event")
        if self.rules.conserving and not self.asking:
            self._to_offer.extend((self.common, *(job.pool for job in self.active if job.pool.members)))
        if not self.asking:
            self._offer()

    def _executor(self, number: int) -> ExecutorState:
        if not 0 <= number < len(self.executors):
            raise ValueError(f"executor {number} was named, wanted 0 to {len(self.executors) - 1}")
        return self.executors[number]

    def _job_arrived(self, job: Job) -> None:
        if job.number in self.jobs:
            raise ValueError(f"job {job.number} arrived twice")
        self.jobs[job.number] = job_state(job, self._at_s)
        self.active.append(self.jobs[job.number])
        if self.common.members:
            self.source = self.common

    def _executor_arrived(self, executor: ExecutorState) -> None:
        stage, executor.bound_for = executor.bound_for, None
        if executor.lost:
            return
        if stage is None:
            raise ValueError(f"executor {executor.number} arrived, but was not moving")
        job = self.jobs[stage.job]
        stage.moving -= 1
        job.attached += 1
        executor.job = stage.job
        self._place(executor, job.pool)
        self._bring(executor, stage)

    def _task_finished(self, executor: ExecutorState) -> bool:
        """Whether the executor just goes on with its stage, so that there is nothing to decide."""
        if executor.lost:
            return True
        if executor.task == NOWHERE:
            raise ValueError(f"executor {executor.number} finished a task, but ran none")
        stage = self.stage_of(executor)
        stage.running -= 1
        stage.completed += 1
        stage.last_task_s = self._at_s - executor.started_s
        job = self.jobs[stage.job]
        job.last_end_s = max(job.last_end_s, self._at_s)
        executor.task = NOWHERE
        return self._go_on(executor, stage)

    def _task_failed(self, executor: ExecutorState) -> bool:
        """As `_task_finished`."""
        if executor.lost:
            return True
        if executor.task == NOWHERE:
            raise ValueError(f"the task of executor {executor.number} failed, but it ran none")
        stage = self.stage_of(executor)
        self._run_again(executor.task, stage)
        executor.task = NOWHERE
        return self._go_on(executor, stage)

    def _go_on(self, executor: ExecutorState, stage: StageState) -> bool:
        """Whether the executor starts the next task of its stage; else it is released."""
        if stage.startable:
            self._start(executor, stage)
            return True
        self._stage_has_no_more(executor, stage)
        return False

    def _outputs_lost(self, event: OutputsLost) -> None:
        job = self.jobs.get(event.job)
        stage = job.stages[event.stage] if job and 0 <= event.stage < len(job.stages) else None
        if job is None or stage is None:
            raise ValueError(f"outputs of stage {event.stage} of job {event.job} are lost, wanted a stage of a job that arrived")
        if job.done_s is not None:
            return  # nobody needs them
        if not 0 < len(event.tasks) <= stage.completed:
            raise ValueError(f"outputs of {len(event.tasks)} tasks are lost, wanted 1 to {stage.completed}")
        if stage.complete:
            stage.reopened = True
            job.active = [each for each in job.stages if each is stage or not each.complete]
            for child in stage.spec.children:
                job.stages[child].open_parents += 1
        job.unsaturated += stage.unstarted == 0
        stage.completed -= len(event.tasks)
        stage.unstarted += len(event.tasks)
        stage.again.extend(event.tasks)
        self._free_who_waits()
        self.source = job.pool if job.pool.members else self.common

    def _stage_has_no_more(self, executor: ExecutorState, stage: StageState) -> None:
        job = self.jobs[stage.job]
        unlocked = stage.complete and self._stage_done(job, stage)
        if not job.active:
            self._job_done(job)
        promised = bool(stage.pool.commitments)
        leaves = unlocked or (stage.open_parents > 0 and not promised)  # of a stage opened again its pool may hold some that wait
        if promised:
            self._keep_promise(executor, next(iter(stage.pool.commitments)))
        else:
            executor.warm_stage = NOWHERE
            if leaves:
                self._retire(stage.pool, [executor])
        if leaves:
            self.source = job.pool
        elif not promised:
            self.source = stage.pool

    def _stage_done(self, job: JobState, stage: StageState) -> bool:
        """Whether that made other stages runnable."""
        job.active.remove(stage)
        children = [job.stages[child] for child in stage.spec.children]
        for child in children:
            child.open_parents -= 1
        unlocked = [child for child in children if child.open_parents == 0 and not child.complete]
        for child in unlocked:
            child.waiting = 0
            for executor in self.idle_members(child.pool):
                self._start(executor, child)
        return bool(unlocked)

    def _job_done(self, job: JobState) -> None:
        self._retire(job.pool)
        self.active.remove(job)
        job.done_s = job.last_end_s
        self._out.append(JobDone(job.spec.number))

    def _executor_lost(self, executor: ExecutorState) -> None:
        if executor.lost:
            return
        executor.lost = True
        job = self.jobs.get(executor.bound_for.job if executor.bound_for else executor.job)
        if executor.bound_for:
            executor.bound_for.moving -= 1
        elif executor.pool:
            self._leave_pool(executor, executor.pool)
        self._free_who_waits()
        if job:
            job.supply -= 1
            job.attached -= executor.bound_for is None
            self.source = job.pool if job.pool.members else self.common
        executor.pool, executor.job, executor.warm_stage, executor.bound_for = None, NOWHERE, NOWHERE, None
        self._out.append(LossNoted(executor.number))

    def _leave_pool(self, executor: ExecutorState, pool: Pool) -> None:
        """Take a lost executor out: its task is to run again, and a promise that can't be kept any more is dropped, the newest first."""
        pool.members.remove(executor.number)
        if executor.task != NOWHERE:
            self._run_again(executor.task, self.stage_of(executor))
            executor.task = NOWHERE
        elif pool.stage != NOWHERE and (stage := self.jobs[pool.job].stages[pool.stage]).waiting:
            stage.waiting -= 1
        if pool.committable < 0:
            self._unpromise(pool, next(reversed(pool.commitments)))

    def _run_again(self, task: int, stage: StageState) -> None:
        job = self.jobs[stage.job]
        job.unsaturated += stage.unstarted == 0
        stage.running -= 1
        stage.unstarted += 1
        stage.again.append(task)

    def _free_who_waits(self) -> None:
        """Executors that wait for later stages may be needed for those that lost one."""
        for job in self.active:
            for stage in job.active:
                for executor in self.idle_members(stage.pool) if stage.waiting else ():
                    stage.waiting -= 1
                    self._place(executor, job.pool)

    def _executor_joined(self, executor: ExecutorState) -> None:
        if not executor.lost:
            raise ValueError(f"executor {executor.number} joined, but was not lost")
        executor.lost = False
        self._place(executor, self.common)
        self.source = self.common

    # Rounds

    def _offer(self) -> None:
        """Ask about the source, if there is something to decide; when rules say so, then about all other idle executors."""
        while True:
            source = self.source
            if source is not None and source.committable > 0:
                self.schedulable = self.find_schedulable(self.active, source.job)
                if self.schedulable:
                    return self._ask(source)
                self._retire(source)
                self.source = None
            if not self._to_offer:
                break
            self.source = self._to_offer.popleft()
        if self.rules.conserving:
            self.source = None

    def _ask(self, source: Pool) -> None:
        self.asking = True
        self._out.append(AskDecision(source.committable))

    def _decide(self, decision: DecisionGiven) -> None:
        if not self.asking or self.source is None:
            raise ValueError("a decision was given, but none was asked for")
        if decision.stage != NOWHERE:
            self._grant(self.source, decision)
            self.schedulable = self.find_schedulable(self.active, self.source.job)
            if self.source.committable > 0 and self.schedulable:
                return self._ask(self.source)
        self._close_round(self.source)
        self._offer()

    def _grant(self, source: Pool, decision: DecisionGiven) -> None:
        job = self.jobs.get(decision.job)
        stage = job.stages[decision.stage] if job and 0 <= decision.stage < len(job.stages) else None
        if stage is None or stage not in self.schedulable:
            raise ValueError(f"stage {decision.stage} of job {decision.job} was chosen, wanted one that is schedulable")
        if not 1 <= decision.executors <= source.committable:
            raise ValueError(f"{decision.executors} executors were given, wanted 1 to {source.committable}")
        count = min(decision.executors, stage.demand)
        if count > 0:  # while the decision was awaited, its tasks may have started
            self._promise(source, stage, count)
        self.selected.add(stage)

    def _promise(self, pool: Pool, stage: StageState | None, count: int) -> None:
        pool.commitments[stage] = pool.commitments.get(stage, 0) + count
        pool.promised += count
        if stage is not None:
            stage.committed += count
            if stage.job != pool.job:
                self.jobs[stage.job].supply += count

    def _unpromise(self, pool: Pool, stage: StageState | None) -> None:
        """Take one executor back from a commitment, kept or dropped."""
        pool.commitments[stage] -= 1
        pool.promised -= 1
        if not pool.commitments[stage]:
            del pool.commitments[stage]
        if stage is not None:
            stage.committed -= 1
            if stage.job != pool.job:
                self.jobs[stage.job].supply -= 1

    def _close_round(self, source: Pool) -> None:
        if source.committable:
            self._promise(source, None, source.committable)
            self._to_offer.clear()  # a refusal ends what this event has on offer
        free = iter(self.idle_members(source))
        for stage, count in list(source.commitments.items()):
            for executor in list(islice(free, count)):
                self._keep_promise(executor, stage)
        self.source, self.asking = None, False
        self.schedulable = []
        self.selected.clear()

    def _keep_promise(self, executor: ExecutorState, stage: StageState | None) -> None:
        pool = executor.pool
        assert pool is not None
        self._unpromise(pool, stage)
        if stage is None:
            self._retire(pool, [executor])
        else:
            self._bring(executor, stage)

    # Executors

    def _bring(self, executor: ExecutorState, stage: StageState) -> None:
        """Let an idle executor work on a stage, move there, wait for it, or fall back."""
        if not stage.unstarted:
            self._fall_back(executor)
        elif executor.job != stage.job:
            self._move(executor, stage)
        elif stage.runnable:
            self._place(executor, stage.pool)
            self._start(executor, stage)
        else:
            executor.warm_stage = NOWHERE
            job = self.jobs[stage.job]
            waits = self.rules.conserving and all(job.stages[parent].demand <= 0 for parent in stage.spec.parents)
            stage.waiting += waits
            self._place(executor, stage.pool if waits else job.pool)
            if self.rules.conserving and not waits:  # what an earlier stage had left was lost meanwhile
                self._free_who_waits()

    def _fall_back(self, executor: ExecutorState) -> None:
        backup = None if self.rules.conserving else self._backup(executor)
        if backup is not None:
            self._bring(executor, backup)
        elif executor.pool is not None:
            self._retire(executor.pool, [executor])
            if self.rules.conserving:
                executor.warm_stage = NOWHERE

    def _backup(self, executor: ExecutorState) -> StageState | None:
        """The last schedulable stage of its own job, else of the others (NetLLM's fork; spark-sched-sim takes the first)."""
        own = [job for job in self.active if job.spec.number == executor.job]
        others = [job for job in self.active if job.spec.number != executor.job]
        found = self.find_schedulable(own, executor.job) or self.find_schedulable(others, executor.job)
        return found[-1] if found else None

    def _retire(self, pool: Pool, executors: list[ExecutorState] | None = None) -> None:
        """Idle executors of a stage go to the job's pool, or to the common pool if all the job's tasks have started."""
        if pool is self.common:
            return
        job = self.jobs[pool.job]
        if pool.stage == NOWHERE and not job.saturated:
            return
        for executor in self.idle_members(pool) if executors is None else executors:
            if job.saturated:
                job.attached -= 1
                job.supply -= self.rules.conserving
                executor.job, executor.warm_stage = NOWHERE, NOWHERE
            elif self.rules.conserving:
                executor.warm_stage = NOWHERE
            self._place(executor, self.common if job.saturated else job.pool)

    def _place(self, executor: ExecutorState, pool: Pool) -> None:
        if executor.pool is not None:
            executor.pool.members.remove(executor.number)
        pool.members.add(executor.number)
        executor.pool = pool

    def _move(self, executor: ExecutorState, stage: StageState) -> None:
        assert executor.pool is not None
        executor.pool.members.remove(executor.number)
        executor.pool = None
        if executor.job != NOWHERE:
            self.jobs[executor.job].attached -= 1
            self.jobs[executor.job].supply -= 1
        executor.job, executor.warm_stage, executor.bound_for = NOWHERE, NOWHERE, stage
        stage.moving += 1
        self.jobs[stage.job].supply += 1
        self._out.append(MoveExecutor(executor.number, stage.job, stage.number))

    def _start(self, executor: ExecutorState, stage: StageState) -> None:
        job = self.jobs[stage.job]
        if stage.again:
            task = stage.again.pop()
        else:
            task = stage.fresh_task
            stage.fresh_task += 1
        stage.unstarted -= 1
        stage.running += 1
        job.unsaturated -= stage.unstarted == 0
        kind = FRESH if executor.warm_stage == NOWHERE else REST if executor.warm_stage == stage.number else FIRST
        executor.warm_stage, executor.task, executor.started_s = stage.number, task, self.due_s
        self._out.append(StartTask(executor.number, stage.job, stage.number, task, kind, job.attached))
