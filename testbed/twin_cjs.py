"""A schedule in the simulator twin: the same engine, rules and durations as on the cluster, on the virtual clock."""

from collections.abc import Callable, Iterator

import msgspec

from controllers.api import CjsObservation, CjsPolicy, CjsSession
from controllers.loader import PolicyFactory
from testbed.clock import now_s
from testbed.cluster.observe import active_stages, checked
from testbed.execution.account import job_row
from testbed.records import Row, ScheduleDecisionRow, ScheduleEndRow, TaskRow
from testbed.sim.cjs import CjsSimulator
from traces.workload import Workload


class ScheduleJob(msgspec.Struct, frozen=True, kw_only=True, tag="cjs", tag_field="task"):
    """One schedule to simulate."""

    trial_id: str
    policy: str
    session: CjsSession
    seed: int
    workload: Workload

    @property
    def who(self) -> str:
        """What decides, for sentences on what befell it."""
        return "policy"

    @property
    def asks(self) -> bool:
        """Whether the policy is asked."""
        return True

    def ended_early(self, reason: str) -> ScheduleEndRow:
        """The only row of a trial that came to nothing."""
        jobs = len(self.workload.jobs)
        return ScheduleEndRow(
            trial_id=self.trial_id,
            end_reason=reason,
            avg_jct_s=None,
            p50_jct_s=None,
            p95_jct_s=None,
            makespan_s=None,
            busy_share=None,
            jobs=jobs,
            unfinished=jobs,
        )


def simulate_schedule(job: ScheduleJob, factory: PolicyFactory, alive: Callable[[], None]) -> Iterator[Row]:
    """The rows of a simulated schedule, as a driver would have written them. `alive` is called after the start and each decision."""
    simulator, policy = CjsSimulator(job.workload, job.session, "conserving"), factory()
    simulator.log = []
    policy.reset(job.session, job.seed)
    alive()
    while not simulator.ended:
        yield _decided(job, simulator, policy)
        alive()
    yield from (job_row(job.trial_id, state) for state in simulator.engine.jobs.values())
    for start in simulator.log:
        yield TaskRow(
            trial_id=job.trial_id,
            job=start.job,
            stage=start.stage,
            task=start.task,
            executor=start.executor,
            start_s=start.at_s,
            end_s=start.at_s + start.duration_s,
            profiled_s=start.duration_s,
        )
    summary = simulator.summary
    yield ScheduleEndRow(
        trial_id=job.trial_id,
        end_reason=simulator.ended,
        avg_jct_s=summary.avg_jct_s,
        p50_jct_s=summary.p50_jct_s,
        p95_jct_s=summary.p95_jct_s,
        makespan_s=summary.makespan_s,
        busy_share=summary.busy_share,
        jobs=summary.jobs,
        unfinished=summary.unfinished,
        tasks=len(simulator.log),
        wall_s=simulator.now_s,
    )


def _decided(job: ScheduleJob, simulator: CjsSimulator, policy: CjsPolicy) -> ScheduleDecisionRow:
    seen: CjsObservation = simulator.observation
    rows = [(stage.job, stage.number) for stage in active_stages(simulator.engine)]
    begin_s, index, at_s = now_s(), simulator.decisions, simulator.now_s
    decided = policy.decide(seen)
    took_s = now_s() - begin_s
    action = checked(decided, seen)
    simulator.step(action)
    chosen, stage = rows[action.stage] if action.stage >= 0 else (-1, -1)
    return ScheduleDecisionRow(
        trial_id=job.trial_id,
        index=index,
        at_s=at_s,
        committable=seen.committable,
        active_jobs=seen.jobs,
        job=chosen,
        stage=stage,
        executors=action.executors,
        latency_s=took_s,
        policy_s=took_s,
        source="policy",
        reason="",
    )
