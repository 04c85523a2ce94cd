"""`Trial` (one policy, one trace with offset, one seed) and the paired grid of them that makes an `Experiment`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from testbed.spec import Experiment
from traces.trace import Trace

DEFAULT_LANES = 12
"""Most lanes unless told otherwise: two cores run them with the link's verdict `pass`, a language model deciding beside them."""


@dataclass(frozen=True)
class Trial:
    """One cell of the grid. `policy` is the name it bears in tables; `group` numbers the (trace, seed) pair that policies share."""

    trial_id: str
    group: int
    policy: str
    trace: Trace
    offset_s: float
    seed: int


def spread(traces: Sequence[Trace], trials: int | Literal["all"]) -> tuple[Trace, ...]:
    """`trials` traces spread evenly over the sequence, in order; all of them when there are not more."""
    if trials == "all" or trials >= len(traces):
        return tuple(traces)
    return tuple(traces[i * len(traces) // trials] for i in range(trials))


def plan(experiment: Experiment, policies: Sequence[str], traces: Sequence[Trace]) -> tuple[Trial, ...]:
    """The paired grid, ordered so that trials that are compared run side by side."""
    cells = [(trace, seed) for trace in spread(traces, experiment.trials) for seed in experiment.seeds]
    trials: list[Trial] = []
    for group, (trace, seed) in enumerate(cells):
        offset_s = experiment.offset_s % trace.duration_s
        for policy in policies:
            trials.append(Trial(f"t{len(trials):04d}", group, policy, trace, offset_s, seed))
    return tuple(trials)


def lanes(experiment: Experiment, policies: int, trials: int) -> int:
    """Lanes to run side by side: as asked, else as many whole groups of compared trials as fit in `DEFAULT_LANES`."""
    groups = max(1, DEFAULT_LANES // policies)
    return min(experiment.parallel or min(groups * policies, DEFAULT_LANES), trials)
