"""A job's row, from the engine's state."""

from testbed.cluster.state import JobState
from testbed.records import JobRow


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
