"""The tasks, and `prepare`: the one place that knows which module is whose."""

from testbed.prepared import Prepared
from testbed.spec import Experiment


def prepare(experiment: Experiment) -> Prepared:
    """Find all that an experiment names. Raises `UserError` before anything is started."""
    if experiment.task == "cjs":
        from testbed.cjs import prepare_schedules

        return prepare_schedules(experiment)
    if experiment.task == "vp":
        from testbed.vp import prepare_viewings

        return prepare_viewings(experiment)
    from testbed.abr import prepare_playbacks

    return prepare_playbacks(experiment)
