"""Fair sharing: every active job may have the same number of executors."""

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy


class Fair(CjsPolicy):
    """Equal shares, as in Decima's evaluation (Mao et al., SIGCOMM 2019, section 7.1; `dynamic_partition` in decima-sim).

    A job that releases executors keeps all it can use. Else jobs get executors in order of arrival, each up to the ceiling of the cluster's
    size over the number of active jobs. In a job the first runnable stage comes first, then the first that will be. Declines when all
    jobs have their share.
    """

    label = "Fair"
    colour = "#1f77b4"
    citation = "Mao et al., Learning Scheduling Algorithms for Data Processing Clusters, SIGCOMM 2019, section 7.1"

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The source job's stage, else the first of a job below its share."""
        share = -(-observation.session.executors // max(observation.jobs, 1))
        firsts = first_stages(observation)
        if observation.source_job in firsts:
            return CjsAction(firsts[observation.source_job], observation.committable)
        supply = observation.supply.tolist()
        for job, stage in firsts.items():
            if supply[job] < share:
                return CjsAction(stage, min(observation.committable, share - supply[job]))
        return DECLINE


def first_stages(observation: CjsObservation) -> dict[int, int]:
    """Row of each job to the row of the stage to serve, in order of arrival: the first runnable schedulable one, else the first."""
    rows = observation.schedulable.nonzero()[0]
    jobs, runnable = observation.stage_job[rows].tolist(), observation.runnable[rows].tolist()
    firsts: dict[int, int] = {}
    settled: set[int] = set()
    for row, job, can_run in zip(rows.tolist(), jobs, runnable, strict=True):
        if job not in firsts or (can_run and job not in settled):
            firsts[job] = row
        if can_run:
            settled.add(job)
    return firsts
