"""Fair sharing: every active job may have the same number of executors."""

from controllers.api import CjsAction, CjsObservation, CjsPolicy
from controllers.shares import serve_in_order


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
        jobs = max(observation.jobs, 1)
        return serve_in_order(observation, [-(-observation.session.executors // jobs)] * jobs)
