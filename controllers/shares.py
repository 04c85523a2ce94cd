"""Serving jobs in order of arrival, each up to a share of the cluster: what Fair, weighted fair and the FIFOs have in common."""

from collections.abc import Sequence

from controllers.api import DECLINE, CjsAction, CjsObservation


def first_stages(observation: CjsObservation) -> dict[int, int]:
    """Row of each job that can be served to the row of its stage: the first runnable schedulable one, else the first; by arrival."""
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


def serve_in_order(observation: CjsObservation, shares: Sequence[int]) -> CjsAction:
    """The source job keeps all it can use; else the first job below its share (J,) is filled up; declines when there is none."""
    firsts = first_stages(observation)
    if observation.source_job in firsts:
        return CjsAction(firsts[observation.source_job], observation.committable)
    supply = observation.supply.tolist()
    for job, stage in firsts.items():
        if supply[job] < shares[job]:
            return CjsAction(stage, min(observation.committable, shares[job] - supply[job]))
    return DECLINE
