"""The driver on executors that are played here, in real time compressed a hundredfold: schedules, bundles, losses, own rule, starvation."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from controllers.api import DECLINE, CjsAction, CjsObservation
from controllers.client import DecisionFailed
from controllers.protocol_cjs import AnswerCjs
from controllers.shares import serve_in_order
from testbed.clock import now_s
from testbed.cluster.invariants import validate
from testbed.errors import TestbedError
from testbed.execution import driver as driver_module
from testbed.execution.bundles import Sent, StagePool, steal
from testbed.execution.config import HUNG, DriverConfig
from testbed.execution.dask_cluster import ExecutorGone
from testbed.execution.driver import Driver
from testbed.execution.executor import Bundle, Report
from testbed.execution.outputs import Outputs, Vanished
from testbed.records import ExecutorRow, JobRow, Row, ScheduleDecisionRow, ScheduleEndRow, TaskRow
from testbed.sim.cjs import CjsSimulator
from tests.cjs_cases import Fixed, job, session, workload
from traces.workload import Stage, Workload

CHAIN = ((0, 1),)
SCALE = 100.0
WRITTEN_BYTES = 3e6


class Executors:
    """Stands in for `DaskCluster`: executors that sleep, keep count of their blocks and can be lost, stopped and brought back."""

    def __init__(self, count: int) -> None:
        self.blocks: list[Counter[tuple[int, int]]] = [Counter() for _ in range(count)]
        self.dropped: Counter[int] = Counter()
        self.gone: dict[int, asyncio.Event] = {executor: asyncio.Event() for executor in range(count)}
        self.stopped: set[int] = set()
        self.bundles: list[Bundle] = []
        self.asked: Counter[int] = Counter()
        self.unreachable: set[int] = set()
        self.hangs_when_read = False
        self.told_gone: list[tuple[int, bool]] = []
        self.given_up: dict[int, asyncio.Event] = {executor: asyncio.Event() for executor in range(count)}

    async def gather(self, wait_s: float, on_lost: Callable[[int, str], None], on_joined: Callable[[int], None]) -> None:
        self.on_lost, self.on_joined = on_lost, on_joined

    def lose(self, executor: int) -> None:
        self.gone[executor].set()
        self.blocks[executor].clear()
        self.on_lost(executor, "killed")

    def bring_back(self, executor: int) -> None:
        self.gone[executor] = asyncio.Event()
        self.stopped.discard(executor)
        self.on_joined(executor)

    def data_address(self, executor: int) -> str:
        if self.gone[executor].is_set():
            raise ExecutorGone("it is not there")
        return f"tcp://{executor}"

    def clock_offset_s(self, executor: int) -> float:
        self.data_address(executor)
        return 7.0

    async def run(self, executor: int, bundle: Bundle) -> Report:
        self.bundles.append(bundle)
        self.asked[executor] += 1
        gone = asyncio.ensure_future(self.gone[executor].wait())
        running = asyncio.ensure_future(self._run(executor, bundle))
        await asyncio.wait((gone, running), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not running.done():
            running.cancel()
            raise ExecutorGone("its connection broke")
        return running.result()

    async def _run(self, executor: int, bundle: Bundle) -> Report:
        if executor in self.stopped:
            await asyncio.Event().wait()
        for read in bundle.reads:
            if self.hangs_when_read and read.holder not in self.stopped:
                self.hangs_when_read = False
                self.stopped.add(read.holder)
            if read.holder in self.stopped:
                await self.given_up[executor].wait()
                return Report(failed="given up")
            if self.blocks[read.holder][read.job, read.stage] < read.tasks or read.holder in self.unreachable:
                return Report(failed="nothing here", holder=read.holder)
        ends_s: list[float] = []
        end_s = bundle.due_s
        for place, duration_s in enumerate(bundle.durations_s):
            if place and place >= len(bundle.durations_s) - self.dropped[bundle.number]:
                break
            end_s += duration_s
            await asyncio.sleep(max(end_s - 7.0 - now_s(), 0))
            ends_s.append(end_s)
        self.blocks[executor][bundle.job, bundle.stage] += len(ends_s)
        return Report(tuple(ends_s))

    def drop(self, executor: int, bundle: int) -> None:
        self.dropped[bundle] += 1

    def stop_reading(self, executor: int) -> None:
        self.given_up[executor].set()

    async def answers(self, executor: int, wait_s: float) -> bool:
        return executor not in self.stopped

    def give_up(self, executor: int, hangs: bool = False) -> None:
        self.told_gone.append((executor, hangs))
        self.gone[executor].set()


class Answers:
    """Stands in for `SchedulingClient`: a policy in this process, or what it raises."""

    def __init__(
        self, decide: Callable[[CjsObservation], CjsAction], opens: asyncio.Event | None = None, decides: asyncio.Event | None = None
    ) -> None:
        self._decide, self._opens, self._decides = decide, opens, decides

    async def open(self, deadline_s: float) -> None:
        if self._opens:
            await self._opens.wait()

    async def decide(self, seen: CjsObservation, deadline_s: float) -> AnswerCjs:
        await asyncio.sleep(0.001)
        if self._decides:
            await self._decides.wait()
        action = self._decide(seen)
        return AnswerCjs(stage=action.stage, executors=action.executors, policy_s=0.001)


def fair(seen: CjsObservation) -> CjsAction:
    return serve_in_order(seen, [-(-seen.session.executors // seen.jobs)] * seen.jobs)


def loaded(*jobs: tuple[tuple[int, ...], tuple[tuple[int, int], ...], float]) -> Workload:
    """Jobs whose stages write `WRITTEN_BYTES` for each child."""
    made = []
    for number, (tasks, edges, arrival_s) in enumerate(jobs):
        one = job(number, tasks, edges, arrival_s)
        stages = tuple(Stage(s.tasks, s.parents, s.children, s.mean_task_s, WRITTEN_BYTES) for s in one.stages)
        made.append(type(one)(one.number, one.name, one.arrival_s, stages))
    return workload(*made)


async def schedule(
    jobs: Workload,
    decide: Callable[[CjsObservation], CjsAction] = fair,
    executors: int = 3,
    meanwhile: Callable[[Executors], Awaitable[None]] | None = None,
    scale: float = SCALE,
    **controller: asyncio.Event,
) -> tuple[list[Row], Driver, Executors]:
    config = DriverConfig(
        trial_id="t0",
        scheduler="",
        executors=(),
        controller_url="",
        policy="",
        seed=1,
        session=session(executors),
        workload=jobs,
        time_scale=scale,
        bytes_scale=1.0,
        deadline_s=1.0,
        rejoin_s=0.5,
    )
    rows: list[Row] = []
    cluster = Executors(executors)
    driver = Driver(config, cluster, Answers(decide, **controller), Fixed(), rows.append)  # type: ignore[arg-type]
    tell = driver._tell

    def checked(*event: Any) -> None:
        tell(*event)
        validate(driver.engine)

    driver._tell = checked  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        playing = group.create_task(driver.run())
        if meanwhile:
            group.create_task(meanwhile(cluster))
        await playing
    return rows, driver, cluster


def end_of(rows: list[Row]) -> ScheduleEndRow:
    assert isinstance(rows[-1], ScheduleEndRow)
    return rows[-1]


def check_whole(rows: list[Row], jobs: Workload) -> None:
    """Every job is done, every task has ended, at least once."""
    assert end_of(rows).end_reason == "complete"
    assert sorted(row.job for row in rows if isinstance(row, JobRow)) == [one.number for one in jobs.jobs]
    done = {(row.job, row.stage, row.task) for row in rows if isinstance(row, TaskRow) and row.outcome == "done"}
    assert len(done) == jobs.tasks
    by_executor: dict[int, float] = {}
    for row in sorted((row for row in rows if isinstance(row, TaskRow)), key=lambda row: (row.executor, row.start_s)):
        assert row.start_s >= by_executor.get(row.executor, 0.0) - 1e-6, "an executor runs one task at a time"
        by_executor[row.executor] = row.end_s


TWO_JOBS = loaded(((8, 5, 2), ((0, 1), (1, 2)), 0.0), ((6, 3), CHAIN, 4.0))


async def test_a_schedule_is_the_simulators_but_for_the_time_of_decisions():
    rows, _, _ = await schedule(TWO_JOBS, scale=20.0)
    check_whole(rows, TWO_JOBS)
    twin = CjsSimulator(TWO_JOBS, session(3), "conserving", Fixed())
    while not twin.ended:
        twin.step(fair(twin.observation))
    end = end_of(rows)
    assert end.avg_jct_s == pytest.approx(twin.summary.avg_jct_s, rel=0.15)
    assert end.avg_jct_s is not None and end.avg_jct_s > twin.summary.avg_jct_s
    assert end.tasks == TWO_JOBS.tasks
    assert end.shuffled_bytes > WRITTEN_BYTES / 2
    decisions = [row for row in rows if isinstance(row, ScheduleDecisionRow)]
    assert {row.source for row in decisions} == {"policy"}
    assert all(row.latency_s >= 0.001 for row in decisions)


async def test_short_tasks_travel_together_and_decisions_fall_where_they_would_one_by_one():
    many = loaded(((120, 30), CHAIN, 0.0))
    rows, _, cluster = await schedule(many, scale=100.0)
    check_whole(rows, many)
    assert len(cluster.bundles) < 100
    assert max(len(bundle.durations_s) for bundle in cluster.bundles) > 3
    twin = CjsSimulator(many, session(3), "conserving", Fixed())
    while not twin.ended:
        twin.step(fair(twin.observation))
    assert abs(len([row for row in rows if isinstance(row, ScheduleDecisionRow)]) - twin.decisions) <= 2
    assert end_of(rows).avg_jct_s == pytest.approx(twin.summary.avg_jct_s, rel=0.15)


async def test_what_an_executor_has_lost_runs_again_and_outputs_are_made_again():
    async def lose_two(cluster: Executors) -> None:
        await asyncio.sleep(0.09)  # 9 s: most of stage 0 has ended
        cluster.lose(0)
        await asyncio.sleep(0.05)
        cluster.bring_back(0)
        cluster.lose(1)
        await asyncio.sleep(0.1)
        cluster.bring_back(1)

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=lose_two)
    check_whole(rows, TWO_JOBS)
    events = [(row.executor, row.what) for row in rows if isinstance(row, ExecutorRow)]
    assert sorted(events) == [(0, "joined"), (0, "lost"), (1, "joined"), (1, "lost")]
    end = end_of(rows)
    assert end.executors_lost == 2
    assert end.tasks_run_again > 0
    assert end.tasks > TWO_JOBS.tasks, "some ended twice: their first output was gone"


async def test_an_executor_may_come_and_go_before_the_schedule_begins():
    opens = asyncio.Event()

    async def blink(cluster: Executors) -> None:
        cluster.lose(0)
        cluster.bring_back(0)
        await asyncio.sleep(0.01)
        opens.set()

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=blink, opens=opens)
    check_whole(rows, TWO_JOBS)
    assert [(row.what, row.at_s) for row in rows if isinstance(row, ExecutorRow)] == [("lost", 0.0), ("joined", 0.0)]
    assert end_of(rows).makespan_s is not None and end_of(rows).makespan_s < 1000


async def test_an_executor_that_comes_back_twice_while_a_decision_is_awaited_joins_once():
    decides = asyncio.Event()

    async def blink_twice(cluster: Executors) -> None:
        await asyncio.sleep(0.1)
        for _ in range(2):
            cluster.lose(0)
            cluster.bring_back(0)
            await asyncio.sleep(0.01)
        decides.set()

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=blink_twice, decides=decides)
    check_whole(rows, TWO_JOBS)
    assert [row.what for row in rows if isinstance(row, ExecutorRow)] == ["lost", "joined"]


async def test_what_a_lost_executor_still_had_to_say_is_no_loss_of_the_one_that_is_back():
    async def fall_silent(cluster: Executors) -> None:
        cluster.stopped.add(0)
        while not cluster.asked[0]:
            await asyncio.sleep(0.001)
        earlier = cluster.gone[0]
        cluster.blocks[0].clear()
        cluster.on_lost(0, "its connection broke")
        cluster.bring_back(0)
        await asyncio.sleep(0.005)
        earlier.set()  # only now the connection breaks over which its bundle was to be answered

    rows, _, cluster = await schedule(TWO_JOBS, meanwhile=fall_silent)
    check_whole(rows, TWO_JOBS)
    assert end_of(rows).executors_lost == 1
    assert cluster.told_gone == []


async def test_a_task_whose_reading_fails_runs_again_until_it_can_be_had(monkeypatch):
    monkeypatch.setattr(driver_module, "SETTLE_S", 0.02)

    async def cut(cluster: Executors) -> None:
        cluster.unreachable = {0, 1, 2}
        await asyncio.sleep(0.4)
        cluster.unreachable = set()

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=cut)
    check_whole(rows, TWO_JOBS)
    assert any(isinstance(row, TaskRow) and row.outcome == "failed" for row in rows)
    assert end_of(rows).executors_lost == 0


async def test_an_executor_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(driver_module, "PATIENCE_S", 0.05)

    async def hang(cluster: Executors) -> None:
        await asyncio.sleep(0.05)
        cluster.stopped.add(1)
        while not cluster.gone[1].is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        cluster.bring_back(1)

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=hang)
    check_whole(rows, TWO_JOBS)
    assert [row.reason for row in rows if isinstance(row, ExecutorRow) and row.what == "lost"] == [HUNG]


async def test_an_executor_that_hangs_with_nothing_to_do_but_outputs_is_given_up(monkeypatch):
    monkeypatch.setattr(driver_module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(driver_module, "SETTLE_S", 0.02)
    jobs = loaded(((3, 1), CHAIN, 0.0))

    async def hang(cluster: Executors) -> None:
        cluster.hangs_when_read = True
        while not any(gone.is_set() for gone in cluster.gone.values()):
            await asyncio.sleep(0.01)
        assert not cluster.hangs_when_read

    rows, _, _ = await schedule(jobs, meanwhile=hang)
    check_whole(rows, jobs)
    assert [row.reason for row in rows if isinstance(row, ExecutorRow) and row.what == "lost"] == [HUNG]


async def test_the_cluster_is_told_of_an_executor_that_a_bundle_could_not_be_sent_to():
    async def refuse(cluster: Executors) -> None:
        await asyncio.sleep(0.05)
        cluster.gone[1].set()
        while not cluster.told_gone:
            await asyncio.sleep(0.01)
        cluster.blocks[1].clear()
        cluster.bring_back(1)

    rows, _, cluster = await schedule(TWO_JOBS, meanwhile=refuse)
    check_whole(rows, TWO_JOBS)
    assert cluster.told_gone == [(1, False)]


async def test_a_reading_that_never_succeeds_ends_the_trial_with_its_reason(monkeypatch):
    monkeypatch.setattr(driver_module, "SETTLE_S", 0.02)
    monkeypatch.setattr(driver_module, "UNREAD_S", 0.2)

    async def cut(cluster: Executors) -> None:
        cluster.unreachable = {0, 1, 2}

    with pytest.raises(ExceptionGroup) as raised:
        await schedule(TWO_JOBS, meanwhile=cut)
    assert raised.group_contains(TestbedError, match=r"executor \d can't read from \d.*: nothing here")


async def test_without_a_controller_the_driver_goes_on_by_its_own_rule():
    def unreachable(seen: CjsObservation) -> CjsAction:
        raise DecisionFailed("unreachable", "nobody there")

    rows, _, _ = await schedule(TWO_JOBS, unreachable)
    check_whole(rows, TWO_JOBS)
    decisions = [row for row in rows if isinstance(row, ScheduleDecisionRow)]
    assert {(row.source, row.reason, row.policy_s) for row in decisions} == {("fallback", "unreachable", None)}


async def test_a_policy_that_declines_for_ever_starves_its_jobs_and_the_trial_says_so():
    rows, _, _ = await schedule(TWO_JOBS, lambda seen: DECLINE)
    assert (end_of(rows).end_reason, end_of(rows).unfinished) == ("starved", 2)


async def test_with_all_executors_gone_the_trial_ends_after_a_while():
    async def lose_all(cluster: Executors) -> None:
        await asyncio.sleep(0.05)
        for executor in range(3):
            cluster.lose(executor)

    rows, _, _ = await schedule(TWO_JOBS, meanwhile=lose_all)
    assert end_of(rows).end_reason == "no executor is left"


async def test_what_goes_wrong_in_the_driver_ends_the_trial():
    def nonsense(seen: CjsObservation) -> CjsAction:
        return CjsAction(0, seen.committable + 1)

    with pytest.raises(ExceptionGroup) as raised:
        await schedule(TWO_JOBS, nonsense)
    assert raised.group_contains(ValueError, match="executors were given")


def test_a_pool_hands_out_less_and_less_and_what_comes_back_first():
    pool = StagePool(40)
    sizes = []
    while (taken := pool.take(2, lambda task, first: 0.01))[0]:
        sizes.append(len(taken[0]))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 10 and sizes[-4:] == [1] * 4
    assert sum(sizes) == 40
    pool.give_back([7])
    assert pool.take(2, lambda task, first: 1.0) == ([7], [1.0])
    long = StagePool(40).take(1, lambda task, first: 0.15)
    assert len(long[0]) == 2, "a bundle is closed when it lasts long enough"


def test_the_task_that_would_begin_last_is_taken_from_another():
    def sent(number: int, tasks: int, begun: int, halted: bool = False) -> Sent:
        return Sent(number, number, 0, 0, 10.0, list(range(tasks)), [1.0] * tasks, list(range(begun)), halted=halted)

    assert steal([sent(1, 3, 1), sent(2, 5, 2), sent(3, 9, 1, halted=True), sent(4, 2, 2)], (0, 0)).number == 2
    assert steal([sent(4, 2, 2)], (0, 0)) is None
    assert steal([sent(1, 3, 1)], (0, 1)) is None


def test_reads_follow_the_blocks_and_what_vanished_is_named_until_it_is_made_again():
    jobs = loaded(((4, 2), CHAIN, 0.0))
    outputs = Outputs(0.1)
    outputs.add((0, 0), 0, [0, 1, 2])
    outputs.add((0, 0), 1, [3])
    total: Counter[int] = Counter()
    for _ in range(400):
        for part in outputs.parts(jobs.jobs[0], 1, 1, executor=2):
            total[part.holder] += part.size_bytes
    assert sum(total.values()) == pytest.approx(400 * 0.1 * WRITTEN_BYTES / 2, rel=0.01)
    assert total[0] / total[1] == pytest.approx(3, rel=0.05)
    assert all(part.holder == 1 for part in outputs.parts(jobs.jobs[0], 1, 1, executor=0)), "its own blocks travel nowhere"
    outputs.lose(0)
    assert outputs.gone() == [(0, 0)]
    with pytest.raises(Vanished):
        outputs.parts(jobs.jobs[0], 1, 1, executor=2)
    assert outputs.claim((0, 0)) == [0, 1, 2] and outputs.gone() == [] and outputs.claim((0, 0)) == []
    outputs.add((0, 0), 1, [0, 1])
    with pytest.raises(Vanished):
        outputs.parts(jobs.jobs[0], 1, 1, executor=2)
    outputs.add((0, 0), 2, [2])
    assert {part.holder for _ in range(9) for part in outputs.parts(jobs.jobs[0], 1, 1, executor=2)} == {1}


@pytest.mark.parametrize("size_bytes", [300.0, 1500.0, 2500.0, 9000.0])
def test_of_many_small_jobs_as_much_is_read_as_is_due(size_bytes):
    scale = size_bytes / WRITTEN_BYTES
    outputs, asked, jobs = Outputs(scale), 0, 400
    for number in range(jobs):
        one = replace(loaded(((6, 4), CHAIN, 0.0)).jobs[0], number=number)
        for executor in range(3):
            outputs.add((number, 0), executor, [2 * executor, 2 * executor + 1])
        asked += sum(part.size_bytes for receiver in range(3, 7) for part in outputs.parts(one, 1, 1, receiver))
        outputs.forget(number)
    assert asked == pytest.approx(jobs * size_bytes, rel=0.03)
    assert not outputs._owed
