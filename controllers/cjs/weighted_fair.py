"""Weighted fair sharing: executors in proportion to a power of a job's work."""

import numpy as np

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy
from controllers.shares import first_stages
from testbed.errors import UserError

LEAST_WORK_S = 1e-3


class WeightedFair(CjsPolicy):
    """Shares in proportion to T^alpha, T being a job's remaining work ("tuned weighted fair" of Mao et al., SIGCOMM 2019, section 7.1).

    The paper found alpha = -1 (small jobs get more) best of -2 to 2; 0 is equal shares. Work is what is known of it: mean recorded task
    duration x tasks that haven't ended. A job that releases executors keeps all it can use; else executors are dealt out one by one, each
    to the job with the largest T^alpha / (executors + 1). Unlike `fair` it declines only when
    no job's next stage can use one, so that small shares leave no executor idle. Differs: the paper weighs by a job's total work, also
    what is done of it.
    """

    label = "Weighted fair"
    colour = "#17becf"
    citation = "Mao et al., Learning Scheduling Algorithms for Data Processing Clusters, SIGCOMM 2019, section 7.1"

    def __init__(self, alpha: float = -1.0) -> None:
        if not -10 <= alpha <= 10:
            raise UserError(f"policy weighted_fair: alpha is {alpha}, wanted -10 to 10")
        self.alpha = alpha

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The source job's first stage, else that of the job that is dealt the first executor."""
        firsts = first_stages(observation)
        if not firsts:
            return DECLINE
        if observation.source_job in firsts:
            return CjsAction(firsts[observation.source_job], observation.committable)
        weights = self._weights(observation)
        has = observation.supply.tolist()
        left = {job: max(int(observation.demand[stage]), 0) for job, stage in firsts.items()}
        dealt = []
        for _ in range(min(observation.committable, sum(left.values()))):
            job = max((job for job in left if left[job] > 0), key=lambda job: (weights[job] / (has[job] + 1), -job))
            has[job] += 1
            left[job] -= 1
            dealt.append(job)
        if not dealt:  # their last tasks may have started since the question was asked
            return DECLINE
        return CjsAction(firsts[dealt[0]], dealt.count(dealt[0]))

    def _weights(self, observation: CjsObservation) -> list[float]:
        """T^alpha of each job, (J,)."""
        work_s = observation.mean_task_s * (observation.unstarted + observation.running)
        per_job_s = np.bincount(observation.stage_job, work_s, observation.jobs)
        weights: list[float] = (np.maximum(per_job_s, LEAST_WORK_S) ** self.alpha).tolist()
        return weights
