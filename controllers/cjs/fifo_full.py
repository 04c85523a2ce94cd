"""First in, first out: the oldest job may have the whole cluster."""

from controllers.api import CjsAction, CjsObservation, CjsPolicy
from controllers.shares import serve_in_order


class FifoFull(CjsPolicy):
    """Spark's default order, with no limit on a job's executors (FIFO of spark-sched-sim).

    A job that releases executors keeps all it can use; else the oldest job that can use some gets them. With 50 executors this is three
    times worse than choosing at random: work inflates with parallelism. NetLLM's "FIFO" is `fifo_half`.
    """

    label = "FIFO"
    colour = "#7f7f7f"
    citation = "Mao et al., Learning Scheduling Algorithms for Data Processing Clusters, SIGCOMM 2019, section 7.1"

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The source job's stage, else the oldest job's."""
        return serve_in_order(observation, [observation.session.executors] * observation.jobs)
