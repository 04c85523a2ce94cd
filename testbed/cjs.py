"""The scheduling workload: its trials, what one trial's rows add up to, and whether they can be trusted.

A trial is one policy on one workload, drawn by the seed. Its executors hang on links that follow traces of the set, one each, the same for
all policies. Time is compressed by `time_scale`: tasks, arrivals, moving delays and traces pass so much faster, the path's delay and the
bytes that travel shrink alike, and rates stay as they are; so a workload loads its links as it would without.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from controllers.api import CjsSession
from controllers.loader import KINDS, discover
from testbed.policycards import describe_policies, from_any_folder
from testbed.prepared import Prepared, from_anywhere, unread_note
from testbed.pressure import Strain
from testbed.records import ExecutorRow, JobRow, Row, ScheduleDecisionRow, ScheduleEndRow, ScheduleRow
from testbed.sim.abr import rates_of
from testbed.sim.cjs import COMPLETE
from testbed.spec import Experiment
from testbed.trial import in_turn, spread
from testbed.twin_cjs import ScheduleJob
from testbed.verdict import PathFacts, measured
from traces.store import resolve
from traces.tpch_own import find_profiles
from traces.trace import RateTrace, Trace
from traces.workload import Workload, draw_workload

DEFAULT_POLICIES = ("netllm", "decima", "srpt_cap", "fair", "fifo_half")
"""Those of them that are there."""
MOST_LATE_SHARE = 0.05
"""So many bundles of tasks may end later than the driver's slack allows, or the trial is invalid: the machine can't keep up."""
MB = 1e6


@dataclass(frozen=True)
class ScheduleTrial:
    """One cell of the grid: one policy on one workload."""

    trial_id: str
    group: int
    policy: str
    seed: int
    workload: Workload
    links: tuple[RateTrace, ...]
    """Of each executor, in the wall's time."""

    @property
    def name(self) -> str:
        """What it plays."""
        return f"{self.workload.name}, {len(self.workload.jobs)} jobs, seed {self.seed}"

    @property
    def sha256(self) -> str:
        """Of the workload."""
        return hashlib.sha256(repr(self.workload).encode()).hexdigest()


@dataclass(frozen=True)
class PreparedSchedules(Prepared):
    """Of cluster job scheduling."""

    metric = "avg_jct_s"
    unit = "s"
    closing = ScheduleEndRow
    step = JobRow

    @property
    def cells(self) -> int:
        """Workloads: each seed draws one."""
        return len({trial.group for trial in self.trials})

    @property
    def steps(self) -> int:
        """Jobs."""
        return self.experiment.jobs

    @property
    def links(self) -> tuple[Trace, ...]:
        """Of all executors."""
        return tuple(trace for trial in self.trials for trace in trial.links)

    def session(self, trial: ScheduleTrial) -> CjsSession:
        """The cluster that a trial schedules."""
        return CjsSession(trial.trial_id, self.experiment.executors)

    def job(self, trial: ScheduleTrial) -> ScheduleJob:
        """A trial as work for the simulator twin."""
        return ScheduleJob(
            trial_id=trial.trial_id,
            policy=self.references[trial.policy],
            session=self.session(trial),
            seed=trial.seed,
            workload=trial.workload,
        )

    def row(self, trial: ScheduleTrial, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> ScheduleRow:
        """A trial that is over, judged."""
        return schedule_row(trial, rows, path, self.experiment, attempt, strain)


def prepare_schedules(experiment: Experiment) -> PreparedSchedules:
    """Find policies, traces and workloads."""
    if not experiment.policy_references:
        experiment = dataclasses.replace(experiment, policies=",".join(default_policies()))
    policies = describe_policies(experiment, scheduling=CjsSession("start", experiment.executors))
    profiles, stand_in = find_profiles(experiment.workload)
    experiment = dataclasses.replace(experiment, workload=profiles.name)
    workloads = [draw_workload(experiment.jobs, experiment.interarrival, seed, profiles) for seed in experiment.seeds]
    shaped = not (experiment.simulate or experiment.cluster)
    sets = tuple(resolve(reference) for reference in experiment.trace_references) if shaped else ()
    if shaped:
        experiment = dataclasses.replace(
            experiment, trace=tuple(from_anywhere(*pair) for pair in zip(experiment.trace_references, sets, strict=True))
        )
    experiment = from_any_folder(experiment, policies)
    traces = list({trace.sha256: trace for trace_set in sets for trace in trace_set.traces}.values())
    trials: list[ScheduleTrial] = []
    for group, workload in enumerate(workloads):
        links = links_of(traces, experiment, group)
        for card in in_turn(policies, group):
            trials.append(ScheduleTrial(f"t{len(trials):04d}", group, card.name, workload.seed, workload, links))
    steady = UNSTEADY if any(trace.conditions for trace in traces) else ""
    notes = tuple(dict.fromkeys(note for note in (stand_in, *(each.note for each in sets), steady, *unread_note(experiment)) if note))
    return PreparedSchedules(experiment, policies, sets, tuple(trials), notes)


UNSTEADY = "the cluster's links follow the traces' rates and leave out their delay and loss"


def default_policies() -> list[str]:
    """Of `DEFAULT_POLICIES` those that are in this checkout; Decima needs its weights."""
    folder = KINDS["cjs"].folder
    trained = any((folder / "weights").glob("decima*.safetensors"))
    return [name for name in DEFAULT_POLICIES if name in discover(folder) and (name != "decima" or trained)]


def links_of(traces: Sequence[Trace], experiment: Experiment, group: int) -> tuple[RateTrace, ...]:
    """A trace for each executor, spread over the set, shifted by one for each workload, compressed to the wall's time."""
    if not traces:
        return ()
    chosen = spread(traces, min(experiment.executors, len(traces)))
    return tuple(compressed(chosen[(executor + group) % len(chosen)], experiment.time_scale) for executor in range(experiment.executors))


def compressed(trace: Trace, time_scale: float) -> RateTrace:
    """The trace played `time_scale` times faster, with the same rates, opportunities in the simulator's bins. Its delay and loss are left
    out."""
    rates = rates_of(trace)
    return RateTrace(trace.name, tuple(edge_s / time_scale for edge_s in rates.edges_s), rates.rates_bps, trace.source)


def schedule_row(
    trial: ScheduleTrial,
    rows: Sequence[Row],
    path: PathFacts,
    experiment: Experiment,
    attempt: int,
    strain: Strain,
    losses_meant: bool = False,
) -> ScheduleRow:
    """The trial in one row, and the invariants' verdict. `losses_meant`: executors were killed on purpose."""
    end = next((row for row in rows if isinstance(row, ScheduleEndRow)), None)
    jobs = [row for row in rows if isinstance(row, JobRow)]
    decisions = [row for row in rows if isinstance(row, ScheduleDecisionRow)]
    problems = [*path.problems, *broken_invariants(trial, jobs, decisions, end)]
    if end and end.executors_lost and not losses_meant:
        whom = {f"executor {row.executor}: {row.reason}" for row in rows if isinstance(row, ExecutorRow) and row.what == "lost"}
        problems.append(f"executors were lost {end.executors_lost} times, which nobody meant ({'; '.join(sorted(whom))})")
    told = end or ScheduleEndRow(
        trial_id=trial.trial_id,
        end_reason="the driver died",
        avg_jct_s=None,
        p50_jct_s=None,
        p95_jct_s=None,
        makespan_s=None,
        busy_share=None,
        jobs=len(trial.workload.jobs),
        unfinished=len(trial.workload.jobs) - len(jobs),
    )
    return ScheduleRow(
        trial_id=trial.trial_id,
        policy=trial.policy,
        trace=trial.name,
        trace_sha256=trial.sha256,
        offset_s=0.0,
        seed=trial.seed,
        mode="simulation" if experiment.simulate else "cluster" if experiment.cluster else "emulation",
        attempt=attempt,
        end_reason=told.end_reason,
        valid=not problems,
        invalid_reason="; ".join(problems),
        decisions=len(decisions),
        fallbacks=sum(row.source == "fallback" for row in decisions),
        wall_s=told.wall_s,
        avg_jct_s=told.avg_jct_s,
        p50_jct_s=told.p50_jct_s,
        p95_jct_s=told.p95_jct_s,
        makespan_s=told.makespan_s,
        busy_share=told.busy_share,
        shuffled_mb=None if experiment.simulate else told.shuffled_bytes / MB,
        jobs=told.jobs,
        tasks=told.tasks,
        unfinished=told.unfinished,
        executors_lost=told.executors_lost,
        tasks_run_again=told.tasks_run_again,
        late_task_share=told.late_task_share,
        time_scale=experiment.time_scale,
        **measured(path, strain),
    )


def broken_invariants(
    trial: ScheduleTrial, jobs: Sequence[JobRow], decisions: Sequence[ScheduleDecisionRow], end: ScheduleEndRow | None
) -> list[str]:
    """Sentences on what a trial promised and did not keep."""
    if end is None:
        return ["ended early: the driver died"]
    if end.end_reason != COMPLETE:
        return [f"ended early: {end.end_reason}" + (f" ({end.detail})" if end.detail else "")]
    problems = []
    if sorted(row.job for row in jobs if row.done_s is not None) != list(range(len(trial.workload.jobs))):
        problems.append(f"{len(jobs)} jobs were told of, wanted each of {len(trial.workload.jobs)} once, done")
    if decisions and all(decision.source == "fallback" for decision in decisions):
        problems.append(f"the policy took no decision, all {len(decisions)} fell back ({decisions[0].reason})")
    if end.late_task_share is not None and end.late_task_share > MOST_LATE_SHARE:
        late = f"{end.late_task_share:.1%} of the bundles of tasks ended later than the slack, wanted at most {MOST_LATE_SHARE:.0%}"
        problems.append(f"executors fell behind: {late}; a smaller --time-scale helps")
    return problems
