"""`Trial` (one policy, one trace with offset, one seed) and the paired grid of them that makes an `Experiment`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, TypeVar

from testbed.errors import UserError
from testbed.spec import Experiment
from traces.trace import Trace

DEFAULT_LANES = 12
"""Most lanes unless told otherwise: two cores run them with the link's verdict `pass`, a language model deciding beside them."""
BROWSER_LANES = 4
"""The same where each lane has a browser, which takes a tenth of a core and 400 MB."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Trial:
    """One cell of the grid. `policy` is the name it bears in tables; `group` numbers the (trace, seed) pair that policies share."""

    trial_id: str
    group: int
    policy: str
    trace: Trace
    offset_s: float
    """Where the trial starts, in both traces: a pair was recorded at the same time. Each of them wraps by itself where it is shorter."""
    seed: int
    uplink: Trace | None = None
    """Trace of the way from client to server; None: delay only."""

    @property
    def name(self) -> str:
        """What it plays over."""
        return self.trace.name

    @property
    def loss_seed(self) -> int:
        """Of the random losses: the same for all policies, another for each trace, because an interval takes traces for independent."""
        return self._drawn("")

    @property
    def policy_seed(self) -> int:
        """Of what a policy draws: the same for all policies, another for each trace, for the same reason."""
        return self._drawn(" policy")

    def _drawn(self, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {self.trace.sha256}{purpose}".encode()).digest()[:6], "big")


def spread(traces: Sequence[Trace], trials: int | Literal["all"]) -> tuple[Trace, ...]:
    """`trials` traces spread evenly over the sequence, in order; all of them when there are not more."""
    if trials == "all" or trials >= len(traces):
        return tuple(traces)
    return tuple(traces[i * len(traces) // trials] for i in range(trials))


def in_turn(names: Sequence[Name], group: int) -> list[Name]:
    """The order in which a group's trials are played, another one in each group, for what is played earlier may fare otherwise.

    Over as many groups as there are names (twice as many for an odd number) each is equally often at each place, and equally often right
    after each other one (Williams, Experimental Designs Balanced for the Estimation of Residual Effects of Treatments, 1949).
    """
    count = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -i // 2 for i in range(count)]  # 0, 1, -1, 2, -2, ...
    mirrored = count % 2 == 1 and group // count % 2 == 1
    places = [(place + group) % count for place in (reversed(zigzag) if mirrored else zigzag)]
    return [names[place] for place in places]


def partner(trace: Trace, uplinks: Sequence[Trace]) -> Trace | None:
    """The uplink that goes with `trace`: the only one there is, else the one with its name, else with its name but for the ending.

    None without uplinks. Raises `UserError` when none of several goes with it, or more than one.
    """
    if len(uplinks) < 2:
        return uplinks[0] if uplinks else None
    stem = PurePath(trace.name).stem
    named = [each for each in uplinks if each.name == trace.name] or [each for each in uplinks if PurePath(each.name).stem == stem]
    if len(named) != 1:
        seen = ", ".join(each.name for each in named[:3]) or "none"
        raise UserError(f"trace {trace.name}: of the {len(uplinks)} traces of --uplink it pairs with {seen}, wanted one called {stem}.*")
    return named[0]


def plan(experiment: Experiment, policies: Sequence[str], traces: Sequence[Trace], uplinks: Sequence[Trace] = ()) -> tuple[Trial, ...]:
    """The paired grid, ordered so that trials that are compared run side by side, policies in turn. Raises `UserError` when a trace has no
    uplink."""
    cells = [(trace, seed) for trace in spread(traces, experiment.trials) for seed in experiment.seeds]
    trials: list[Trial] = []
    for group, (trace, seed) in enumerate(cells):
        uplink = partner(trace, uplinks)
        for policy in in_turn(policies, group):
            trials.append(Trial(f"t{len(trials):04d}", group, policy, trace, experiment.offset_s, seed, uplink))
    return tuple(trials)


def wrap_note(trials: Sequence[Trial], media_s: float) -> str:
    """A sentence on traces that are shorter than the video; empty when none is."""
    used = {trace.sha256: trace for trial in trials for trace in (trial.trace, trial.uplink) if trace}
    short = {sha256: trace for sha256, trace in used.items() if trace.duration_s < media_s}
    if not short:
        return ""
    names = ", ".join(f"{trace.name} ({trace.duration_s:g} s)" for trace in list(short.values())[:3])
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    return f"shorter than the {media_s:g} s of video, so they wrap: {names}{more}"


def lanes(experiment: Experiment, policies: int, trials: int) -> int:
    """Lanes to run side by side: as asked, else as many whole groups of compared trials as the players' kind lets fit."""
    most = DEFAULT_LANES if experiment.player == "headless" else BROWSER_LANES
    groups = max(1, most // policies)
    return min(experiment.parallel or min(groups * policies, most), trials)
