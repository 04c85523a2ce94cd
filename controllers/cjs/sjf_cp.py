"""Shortest job first, critical path first within the job."""

import numpy as np

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy


class SjfCp(CjsPolicy):
    """SJF-CP (Mao et al., SIGCOMM 2019, section 7.1): jobs by their remaining work, stages by the critical path they begin.

    Work is mean recorded task duration x tasks that haven't ended. The critical path of a stage is its mean task duration and the longest
    path below it. A job that releases executors keeps all it can use, as with `fair` and the FIFOs. No job is limited, which at 50
    executors makes it worse than `fair`: work inflates with parallelism. Differs: the paper sorts by a job's total work, also what is done
    of it.
    """

    label = "SJF-CP"
    colour = "#8c564b"
    citation = "Mao et al., Learning Scheduling Algorithms for Data Processing Clusters, SIGCOMM 2019, section 7.1"

    def decide(self, observation: CjsObservation) -> CjsAction:
        """All executors to the stage that begins the longest path of the source job, else of the shortest job."""
        rows = np.flatnonzero(observation.schedulable)
        if not len(rows):
            return DECLINE
        jobs = observation.stage_job[rows]
        work_s = np.bincount(
            observation.stage_job, observation.mean_task_s * (observation.unstarted + observation.running), observation.jobs
        )
        path_s = np.array(critical_paths_s(observation))
        order = np.lexsort((-path_s[rows], jobs, work_s[jobs], jobs != observation.source_job))
        return CjsAction(int(rows[order[0]]), observation.committable)


def critical_paths_s(observation: CjsObservation) -> list[float]:
    """Of each stage that is not complete, (S,): its mean task and the longest such path below it. Children stand below their parents."""
    mean_s = observation.mean_task_s.tolist()
    below_s = [0.0] * len(mean_s)
    for parent, child in sorted(observation.edges.tolist(), reverse=True):
        below_s[parent] = max(below_s[parent], below_s[child] + mean_s[child])
    return [here + below for here, below in zip(mean_s, below_s, strict=True)]
