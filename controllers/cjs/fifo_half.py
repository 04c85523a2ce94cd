"""First in, first out, each job on half of the cluster at most."""

from controllers.api import CjsAction, CjsObservation, CjsPolicy
from controllers.shares import serve_in_order


class FifoHalf(CjsPolicy):
    """What NetLLM's code calls FIFO: as `fifo_full`, but no job gets beyond half of the executors, rounded up.

    In effect a static partition for two jobs, and much stronger than FIFO: a third of its mean JCT at 50 executors.
    """

    label = "FIFO (half)"
    colour = "#bcbd22"
    citation = "Wu et al., NetLLM: Adapting Large Language Models for Networking, SIGCOMM 2024 (round_robin.py)"

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The source job's stage, else that of the oldest job on less than half."""
        return serve_in_order(observation, [-(-observation.session.executors // 2)] * observation.jobs)
