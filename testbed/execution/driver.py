"""The driver: carries the engine's instructions out on a Dask cluster, and tells it what happens there.

**Clock.** The engine's time is the workload's, `time_scale` times faster than the wall's. An event's time is when it happened on the
executor, not when its message came; a decision's is that of its question plus what the controller took, by the wall. So a policy pays
for its time, and the emulation's own messages cost none as long as they are within `SLACK_S`.

**Losses.** What ran on a lost executor runs again, outputs that lay there are made again when a task needs them, and a task whose reading
failed runs again. An executor that doesn't answer long after its tasks should have ended is given up.
"""

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from controllers.api import CjsAction, CjsObservation
from controllers.client import DecisionFailed
from controllers.client_cjs import SchedulingClient
from controllers.shares import serve_in_order
from testbed.clock import now_s
from testbed.cluster.engine import CONSERVING, Engine
from testbed.cluster.events import (
    DECLINE,
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
from testbed.cluster.observe import active_stages, observe
from testbed.errors import TestbedError
from testbed.execution.account import Account, job_row
from testbed.execution.bundles import Sent, StagePool, steal
from testbed.execution.config import HUNG, DriverConfig
from testbed.execution.dask_cluster import DaskCluster, ExecutorGone
from testbed.execution.executor import Bundle, Read, Report
from testbed.execution.outputs import Outputs, Part, Vanished
from testbed.records import ExecutorRow, Row, ScheduleBeginRow, ScheduleDecisionRow, TaskRow
from testbed.sim.cjs import COMPLETE, STARVED
from testbed.units import s_from_ms
from traces.durations import Durations
from traces.tpch import REST

NO_EXECUTORS = "no executor is left"
SLACK_S = 0.2
"""Of the workload: a bundle that ended no later than this is taken to have ended on time. Beside a mean job of many hundred seconds of
work it is nothing; of the wall's time it is 20 ms at a time scale of 10, and more where time is less compressed."""
PATIENCE_S = 5.0
"""A bundle that is over its time by this makes the driver ask whether its executor still answers; so long it waits for the answer."""
LOOK_EVERY_S = 0.2
UNREAD_S = 120.0
"""So long what a stage reads from an executor may fail to come, again and again: a link that is cut for a minute is not the end."""
SETTLE_S = 0.5
"""Before a task whose reading failed is started again: whoever was lost is known to be by then."""


class Driver:
    """One trial. `run` plays it to the end; `emit` gets its rows."""

    def __init__(
        self,
        config: DriverConfig,
        cluster: DaskCluster,
        controller: SchedulingClient,
        durations: Durations,
        emit: Callable[[Row], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._cluster, self._controller, self._durations, self._emit = config, cluster, controller, durations, emit
        self._scale, self._flush = config.time_scale, flush
        self._slack_s = SLACK_S / self._scale
        self.engine = Engine(config.session.executors, CONSERVING)
        self._pools = {(job.number, stage): StagePool(each.tasks) for job in config.workload.jobs for stage, each in enumerate(job.stages)}
        self._outputs = Outputs(config.bytes_scale)
        self._sent: dict[int, Sent] = {}
        """By executor: what it works on."""
        self._flying: set[Sent] = set()
        """Bundles whose end was not reported, halted ones among them."""
        self._aliases: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        """Of each stage the pool's number of a task that ended to the engine's."""
        self._continuing: Sent | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._at_work: set[asyncio.Task[None]] = set()
        self._lost: set[int] = set()
        self._lost_at_s = 0.0
        self._noted = {executor: asyncio.Event() for executor in range(config.session.executors)}
        self._sum = Account(left=len(config.workload.jobs))
        self._unread: dict[tuple[tuple[int, int], int], float] = {}
        """(Job, stage) and executor from which it has not been able to read: since when."""
        self._start_s = math.inf  # not begun: whatever happens is at 0 of the workload's time
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    # The clock

    def _workload_s(self, wall_s: float) -> float:
        return max((wall_s - self._start_s) * self._scale, 0.0)

    def _wall_s(self, workload_s: float) -> float:
        return self._start_s + workload_s / self._scale

    def _at(self, wall_s: float, call: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        """Call at a time; errors end the trial."""

        def fire() -> None:
            self._timers.discard(handle)
            self._guarded(call, *arguments)

        handle = asyncio.get_running_loop().call_later(max(wall_s - now_s(), 0.0), fire)
        self._timers.add(handle)
        return handle

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._fail_trial(error)

    def _fail_trial(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _spawn(self, work: Any) -> None:
        """A coroutine beside the others; errors end the trial."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._fail_trial(error)

        task = asyncio.create_task(guarded())
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    # The trial

    async def run(self) -> None:
        """Play the workload."""
        await self._cluster.gather(self._config.gather_s, lambda *loss: self._guarded(self._lose, *loss), self._back)
        with contextlib.suppress(DecisionFailed):  # the first decision tries again
            await self._controller.open(self._config.open_deadline_s)
        self._start_s = now_s()
        self._emit(ScheduleBeginRow(trial_id=self._config.trial_id, began_at_s=self._start_s))
        self._flush()
        for job in self._config.workload.jobs:
            self._at(self._wall_s(job.arrival_s), self._tell, JobArrived(job), job.arrival_s)
        watch = asyncio.create_task(self._watch())
        try:
            reason = await self._over
        finally:
            watch.cancel()
            for timer in self._timers:
                timer.cancel()
            for task in self._at_work:
                task.cancel()
        self._finish(reason)

    async def _watch(self) -> None:
        """End a trial in which nothing will happen any more."""
        while not self._over.done():
            await asyncio.sleep(LOOK_EVERY_S)
            if self._flying or self._timers or self._at_work or self.engine.asking or self._over.done():
                continue
            if not self._lost:
                self._over.set_result(STARVED)
            elif now_s() - self._lost_at_s > self._config.rejoin_s:
                alone = len(self._lost) == self._config.session.executors
                self._over.set_result(NO_EXECUTORS if alone else STARVED)

    def _finish(self, reason: str) -> None:
        for job in self.engine.jobs.values():
            if job.done_s is None:
                self._emit(job_row(self._config.trial_id, job))
        for row in self._sum.transfer_rows(self._config.trial_id):
            self._emit(row)
        now = now_s()
        self._emit(
            self._sum.end_row(
                self._config.trial_id,
                reason,
                list(self.engine.jobs.values()),
                expected=len(self._config.workload.jobs),
                executors=self._config.session.executors,
                end_s=self._workload_s(now),
                began_at_s=self._start_s,
                wall_s=now - self._start_s,
            )
        )

    # The engine

    def _tell(self, event: Event, at_s: float) -> None:
        """An event, and what follows from it."""
        instructions = self.engine.handle(event, at_s)
        at_s = self.engine.due_s
        for instruction in instructions:
            self._obey(instruction, at_s)

    def _obey(self, instruction: Instruction, at_s: float) -> None:
        if isinstance(instruction, StartTask):
            if instruction.executor not in self._lost:  # told before the engine took notice of the loss
                self._start(instruction, at_s)
        elif isinstance(instruction, MoveExecutor):
            there_s = at_s + self._config.session.moving_delay_s
            self._at(self._wall_s(there_s), self._arrive, instruction.executor, there_s)
        elif isinstance(instruction, AskDecision):
            self._spawn(self._decide(at_s))
        elif isinstance(instruction, JobDone):
            self._emit(job_row(self._config.trial_id, self.engine.jobs[instruction.job]))
            self._outputs.forget(instruction.job)
            self._sum.left -= 1
            if not self._sum.left and not self._over.done():
                self._over.set_result(COMPLETE)
        elif isinstance(instruction, LossNoted):
            self._noted[instruction.executor].set()

    def _arrive(self, executor: int, at_s: float) -> None:
        if self.engine.executors[executor].bound_for is not None:  # else it was lost on its way
            self._tell(ExecutorArrived(executor), at_s)

    # Decisions

    async def _decide(self, asked_s: float) -> None:
        seen = observe(self.engine, self._config.session, asked_s)
        rows = [(stage.job, stage.number) for stage in active_stages(self.engine)]
        begin_s, policy_s, reason = now_s(), None, ""
        try:
            answer = await self._controller.decide(seen, self._config.deadline_s)
            action, policy_s = CjsAction(answer.stage, answer.executors), answer.policy_s
        except DecisionFailed as failure:
            action, reason = own_rule(seen), failure.reason
        latency_s = now_s() - begin_s
        job, stage = rows[action.stage] if action.stage >= 0 else (-1, -1)
        self._emit(
            ScheduleDecisionRow(
                trial_id=self._config.trial_id,
                index=self._sum.decisions,
                at_s=asked_s,
                committable=seen.committable,
                active_jobs=seen.jobs,
                job=job,
                stage=stage,
                executors=action.executors,
                latency_s=latency_s,
                policy_s=policy_s,
                source="fallback" if reason else "policy",
                reason=reason,
            )
        )
        self._sum.decisions += 1
        given = DECLINE if action.stage < 0 else DecisionGiven(job, stage, action.executors)
        self._tell(given, asked_s + latency_s * self._scale)

    # Tasks

    def _start(self, task: StartTask, at_s: float) -> None:
        """The engine lets an executor start a task: the next of its bundle, or a new bundle."""
        going_on = self._continuing
        if going_on is not None and going_on.executor == task.executor and going_on.place == (task.job, task.stage):
            self._continuing = None
            going_on.engine_tasks.append(task.task)
            return
        sent = self._bundle(task, at_s)
        self._sent[task.executor] = sent
        self._flying.add(sent)
        self._plan_tick(sent)
        self._spawn(self._run(sent))

    def _bundle(self, task: StartTask, at_s: float) -> Sent:
        pool, stage = self._pools[task.job, task.stage], self.engine.jobs[task.job].stages[task.stage]

        def duration_s(number: int, first: bool) -> float:
            kind = task.kind if first else REST
            return s_from_ms(self._durations.draw_ms(task.job, task.stage, number, kind, task.attached)) / self._scale

        tasks, durations_s = pool.take(stage.running + stage.moving + stage.committed, duration_s)
        if not tasks:
            victim = steal(self._sent.values(), (task.job, task.stage))
            if victim is None:
                raise TestbedError(f"stage {task.stage} of job {task.job} has no task left to start, but the engine starts one")
            tasks = [self._take_back(victim)]
            durations_s = [duration_s(tasks[0], True)]
        self._sum.bundles += 1
        return Sent(self._sum.bundles, task.executor, task.job, task.stage, self._wall_s(at_s), tasks, durations_s, [task.task])

    def _take_back(self, sent: Sent) -> int:
        """The last task of a bundle, which has not begun."""
        self._cluster.drop(sent.executor, sent.number)
        number = sent.hand_back()
        self._plan_tick(sent)
        return number

    def _plan_tick(self, sent: Sent) -> None:
        """Tell the engine of the end of the task that runs, when it comes; the bundle's last end is the executor's to tell."""
        if sent.tick is not None:
            sent.tick.cancel()
            self._timers.discard(sent.tick)
            sent.tick = None
        if sent.begun < len(sent.tasks) and not sent.halted:
            sent.tick = self._at(sent.planned_end_s(sent.begun - 1), self._tick, sent)

    def _tick(self, sent: Sent) -> None:
        """A task in the middle of a bundle has ended, the next begins; unless the engine wants the executor elsewhere."""
        sent.tick = None
        if self._sent.get(sent.executor) is sent:
            self._advance(sent, sent.planned_end_s(sent.begun - 1))
            self._plan_tick(sent)

    def _advance(self, sent: Sent, end_s: float) -> None:
        self._continuing = sent
        try:
            self._tell(TaskFinished(sent.executor), self._workload_s(end_s))
        finally:
            refused, self._continuing = self._continuing is sent, None
        if refused:
            sent.halted = True
            back = [self._take_back(sent) for _ in range(len(sent.tasks) - sent.begun)]
            self._pools[sent.place].give_back(back)

    async def _run(self, sent: Sent) -> None:
        parts: Sequence[Part] = ()
        try:
            parts = self._outputs.parts(self.engine.jobs[sent.job].spec, sent.stage, len(sent.tasks), sent.executor)
            report = await self._sent_off(sent, parts)
        except Vanished as vanished:
            report = Report(failed=str(vanished))
        except ExecutorGone as gone:
            if sent in self._flying:  # else it was lost before, and the executor may be back
                self._cluster.give_up(sent.executor)
                self._lose(sent.executor, str(gone))
            return
        if report.failed:
            await asyncio.sleep(SETTLE_S)
        if sent not in self._flying:
            return  # it was lost meanwhile
        self._flying.remove(sent)
        if report.failed:
            self._failed(sent, report)
            return
        for part in parts:
            self._unread.pop((sent.place, part.holder), None)
            self._sum.transfers[part.holder, sent.executor] += part.size_bytes
        self._ended(sent, report)

    async def _sent_off(self, sent: Sent, parts: Sequence[Part]) -> Report:
        """Have a bundle run. Should it take too long, its executor and those it reads from are asked whether they are still there."""
        reads = tuple(
            Read(part.holder, self._cluster.data_address(part.holder), part.job, part.stage, part.tasks, part.size_bytes) for part in parts
        )
        offset_s = self._cluster.clock_offset_s(sent.executor)
        bundle = Bundle(sent.number, sent.job, sent.stage, sent.due_s + offset_s, tuple(sent.durations_s), self._slack_s, reads)
        running = asyncio.ensure_future(self._cluster.run(sent.executor, bundle))
        wait_s = max(sent.planned_end_s(len(sent.tasks) - 1) - now_s(), 0.0) + PATIENCE_S
        try:
            while not (await asyncio.wait((running,), timeout=wait_s))[0]:
                for executor in (sent.executor, *{part.holder for part in parts}):
                    await self._look_after(executor, sent)
                wait_s = PATIENCE_S
            report = await running
        finally:
            running.cancel()
        return Report(tuple(end_s - offset_s for end_s in report.ends_s), report.lag_s, report.failed, report.holder)

    async def _look_after(self, executor: int, sent: Sent) -> None:
        """Give an executor up that doesn't answer, and don't let a bundle wait for what lies there."""
        if await self._cluster.answers(executor, PATIENCE_S):
            return
        self._cluster.give_up(executor, hangs=True)
        self._lose(executor, HUNG)
        if executor != sent.executor:
            self._cluster.stop_reading(sent.executor)

    def _ended(self, sent: Sent, report: Report) -> None:
        """A bundle is done: what the engine doesn't know of it yet, then its last end."""
        ends_s = list(report.ends_s)
        self._sum.late += report.lag_s > self._slack_s
        while sent.begun < len(sent.tasks) and not sent.halted:
            self._advance(sent, ends_s[sent.begun - 1])
        self._outputs.add(sent.place, sent.executor, sent.tasks)
        self._aliases[sent.place].update(zip(sent.tasks, sent.engine_tasks, strict=True))
        self._let_go(sent)
        self._tell_tasks(sent, ends_s, "done")
        if not sent.halted:
            self._tell(TaskFinished(sent.executor), self._workload_s(ends_s[len(sent.tasks) - 1]))

    def _let_go(self, sent: Sent) -> None:
        if self._sent.get(sent.executor) is sent:
            del self._sent[sent.executor]
        if sent.tick is not None:
            sent.tick.cancel()
            self._timers.discard(sent.tick)

    def _tell_tasks(self, sent: Sent, ends_s: Sequence[float], outcome: str) -> None:
        start_s = sent.due_s
        for task, duration_s, end_s in zip(sent.tasks, sent.durations_s, ends_s, strict=False):
            row = TaskRow(
                trial_id=self._config.trial_id,
                job=sent.job,
                stage=sent.stage,
                task=task,
                executor=sent.executor,
                start_s=self._workload_s(start_s),
                end_s=self._workload_s(end_s),
                profiled_s=duration_s * self._scale,
                outcome=outcome,
            )
            self._emit(row)
            self._sum.busy_s += row.end_s - row.start_s
            self._sum.runs += 1
            self._sum.again += outcome != "done"
            start_s = end_s

    # Losses

    def _failed(self, sent: Sent, report: Report) -> None:
        """A bundle came to nothing, because what it reads can't be had: all of it runs again, after what is gone of its parents."""
        if report.holder >= 0:
            since_s = self._unread.setdefault((sent.place, report.holder), now_s())
            if now_s() - since_s > UNREAD_S:
                raise TestbedError(f"executor {sent.executor} can't read from {report.holder}, for {UNREAD_S:g} s now: {report.failed}")
        self._let_go(sent)
        self._undo(sent, "failed")
        self._claim_outputs(wanted_by=sent)
        if not sent.halted:
            self._tell(TaskFailed(sent.executor), self._workload_s(now_s()))

    def _undo(self, sent: Sent, outcome: str) -> None:
        """Hand the tasks of a bundle back, and take from the engine those that it believes to have ended."""
        now = now_s()
        self._pools[sent.place].give_back(sent.tasks)
        self._tell_tasks(sent, [min(sent.planned_end_s(i), now) for i in range(sent.begun)], outcome)
        ended = sent.engine_tasks if sent.halted else sent.engine_tasks[:-1]
        if ended:
            self._tell(OutputsLost(sent.job, sent.stage, tuple(ended)), self._workload_s(now))

    def _claim_outputs(self, wanted_by: Sent | None = None) -> None:
        """Have outputs that are gone made again, where a stage has tasks to start that read them, or where a bundle has missed them."""
        claimed: set[tuple[int, int]] = set()
        for place in self._outputs.gone():
            job = self.engine.jobs[place[0]]
            children = job.spec.stages[place[1]].children
            missed = wanted_by is not None and place[0] == wanted_by.job and wanted_by.stage in children
            if missed or any(job.stages[child].unstarted or (place[0], child) in claimed for child in children):
                claimed.add(place)
                tasks = self._outputs.claim(place)
                self._sum.again += len(tasks)
                self._pools[place].give_back(tasks)
                self._tell(OutputsLost(*place, tuple(self._aliases[place][task] for task in tasks)), self._workload_s(now_s()))

    def _lose(self, executor: int, reason: str) -> None:
        if executor in self._lost or self._over.done():
            return
        now = now_s()
        self._lost.add(executor)
        self._lost_at_s = now
        self._sum.losses += 1
        self._noted[executor].clear()
        self._emit_executor(executor, "lost", reason)
        flying = [sent for sent in self._flying if sent.executor == executor]
        self._flying.difference_update(flying)
        self._tell(ExecutorLost(executor), self._workload_s(now))
        for sent in flying:
            self._let_go(sent)
            self._undo(sent, "lost")
        self._outputs.lose(executor)
        self._unread = {key: since_s for key, since_s in self._unread.items() if key[1] != executor}
        self._claim_outputs()

    def _back(self, executor: int) -> None:
        self._spawn(self._join(executor))

    async def _join(self, executor: int) -> None:
        await self._noted[executor].wait()
        if executor not in self._lost:
            return  # it came back twice meanwhile
        self._lost.discard(executor)
        self._emit_executor(executor, "joined", "")
        self._tell(ExecutorJoined(executor), self._workload_s(now_s()))

    def _emit_executor(self, executor: int, what: str, reason: str) -> None:
        at_s = self._workload_s(now_s())
        self._emit(ExecutorRow(trial_id=self._config.trial_id, executor=executor, at_s=at_s, what=what, reason=reason))


def own_rule(seen: CjsObservation) -> CjsAction:
    """What the driver does without an answer: jobs in order of arrival, all executors to the first that can use them."""
    return serve_in_order(seen, [seen.session.executors] * seen.jobs)
