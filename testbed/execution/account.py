"""What a trial adds up to, as its driver counts it, and a job's row from the engine's state."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from testbed.cluster.state import JobState
from testbed.metrics import summarise_schedule
from testbed.records import JobRow, ScheduleEndRow, TransferRow


@dataclass
class Account:
    """The sums of a trial."""

    left: int
    """Jobs that are not done."""
    busy_s: float = 0.0
    runs: int = 0
    """Tasks that ran, whatever became of them."""
    again: int = 0
    """Of these the ones that ran for nothing, and outputs that had to be made again."""
    losses: int = 0
    """Of executors."""
    bundles: int = 0
    late: int = 0
    """Bundles that ended later than the slack."""
    decisions: int = 0
    transfers: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    """Bytes from executor to executor."""

    def transfer_rows(self, trial_id: str) -> Iterator[TransferRow]:
        """What travelled."""
        for (sender, receiver), size_bytes in sorted(self.transfers.items()):
            yield TransferRow(trial_id=trial_id, sender=sender, receiver=receiver, size_bytes=size_bytes)

    def end_row(
        self,
        trial_id: str,
        reason: str,
        jobs: Sequence[JobState],
        expected: int,
        executors: int,
        end_s: float,
        began_at_s: float,
        wall_s: float,
    ) -> ScheduleEndRow:
        """The trial's end at `end_s` of the workload's time, of `expected` jobs those that arrived."""
        arrived_s, done_s = [job.arrived_s for job in jobs], [job.done_s for job in jobs]
        summary = summarise_schedule(arrived_s, done_s, self.busy_s, executors, end_s) if jobs else None
        return ScheduleEndRow(
            trial_id=trial_id,
            end_reason=reason,
            avg_jct_s=summary.avg_jct_s if summary else None,
            p50_jct_s=summary.p50_jct_s if summary else None,
            p95_jct_s=summary.p95_jct_s if summary else None,
            makespan_s=summary.makespan_s if summary else None,
            busy_share=summary.busy_share if summary else None,
            jobs=expected,
            unfinished=self.left,
            tasks=self.runs,
            wall_s=wall_s,
            began_at_s=began_at_s,
            shuffled_bytes=sum(self.transfers.values()),
            executors_lost=self.losses,
            tasks_run_again=self.again,
            late_task_share=self.late / self.bundles if self.bundles else None,
        )


def job_row(trial_id: str, job: JobState) -> JobRow:
    """How a job went so far."""
    spec = job.spec
    return JobRow(
        trial_id=trial_id,
        job=spec.number,
        name=spec.name,
        arrived_s=job.arrived_s,
        done_s=job.done_s,
        jct_s=None if job.done_s is None else job.done_s - job.arrived_s,
        stages=len(spec.stages),
        tasks=sum(stage.tasks for stage in spec.stages),
        work_s=sum(stage.tasks * stage.mean_task_s for stage in spec.stages),
    )
