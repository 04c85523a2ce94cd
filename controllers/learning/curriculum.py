"""Genet's curriculum (Xia et al., SIGCOMM 2022): network environments, and the search for those where a rule beats the model by most.

An environment is a point in a box of five parameters. Training begins with environments drawn from all of the box. Each round a Bayesian
optimisation looks for the point with the largest gap between a rule-based baseline and the current model. That point then is 30 % of the
environments drawn, until the next one takes its 30 % first. Environments are 4 of the 16 parts of training sessions (`genet.py`; the
others play on traces): the newest point gets 7.5 % of all.

| parameter | range | in Genet's `config/abr/udr2.json`, the middle one of three (RL2) |
| --- | --- | --- |
| `lowest_mbps` | 0 .. 5, uniform | `min_bw`; above `highest_mbps` the two change places |
| `highest_mbps` | 1 .. 20, log-uniform | `max_bw` |
| `change_s` | 0.5 .. 20 s, uniform | `bw_change_interval`, from 0; the code's generator leaves it unused |
| `rtt_s` | 0.02 .. 0.22 s, uniform | `link_rtt` |
| `buffer_cap_s` | 5 .. 105 s, uniform | `buffer_thresh` |

The published launch script takes the widest (RL3: 100 Mbit/s, 1 s round trip, 500 s buffer). In a run with that, searches went to its
corners, which the state can't tell apart from ordinary sessions, and validation QoE fell from 0.964 to 0.940 as they were promoted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from testbed.units import bps_from_mbps
from traces.synthetic import FLOOR_MBPS
from traces.trace import RateTrace

DURATION_S = 330.0
"""Of a trace, as in the published configuration."""
SPREAD_MBPS = 50.0
"""A trace's own highest rate lies at most this far below the environment's (Genet, `generate_bw_time_series`)."""
JITTER = 0.5
"""A rate holds for the interval, give or take this share: changes must not keep step with chunks."""
PROMOTED = 0.3
"""Share of the environments drawn that is the newest promoted one; what was there before shares the rest (the paper's w)."""
TRIALS = 15
"""Environments tried in a search, as in the paper."""
RANDOM_TRIALS = 5
"""The first trials, drawn from all of the box. The published code draws 10; 5 leave the search twice as many steps of its own."""


@dataclass(frozen=True)
class Environment:
    """A point of the box; see the module's table."""

    lowest_mbps: float
    highest_mbps: float
    change_s: float
    rtt_s: float
    buffer_cap_s: float


LOWEST = Environment(0.0, 1.0, 0.5, 0.02, 5.0)
HIGHEST = Environment(5.0, 20.0, 20.0, 0.22, 105.0)
PARAMETERS = tuple(each.name for each in fields(Environment))
LOGARITHMIC = "highest_mbps"


def any_environment(rng: np.random.Generator) -> Environment:
    """A point of the whole box."""
    return environment_at({name: float(share) for name, share in zip(PARAMETERS, rng.random(len(PARAMETERS)), strict=True)})


def environment_at(shares: Mapping[str, float]) -> Environment:
    """The point at such shares of each range, 0 to 1."""
    values = {}
    for name, share in shares.items():
        low, high = getattr(LOWEST, name), getattr(HIGHEST, name)
        values[name] = low * (high / low) ** share if name == LOGARITHMIC else low + (high - low) * share
    return Environment(**values)


def environment_trace(rng: np.random.Generator, environment: Environment, duration_s: float = DURATION_S) -> RateTrace:
    """A trace of the environment's bandwidth: each rate is uniform between its lowest and this trace's highest rate."""
    most = rng.uniform(max(environment.highest_mbps - SPREAD_MBPS, LOWEST.highest_mbps), environment.highest_mbps)
    steps = int(duration_s / environment.change_s / (1 - JITTER)) + 1
    edges_s = np.append(0.0, np.cumsum(environment.change_s * rng.uniform(1 - JITTER, 1 + JITTER, steps)))
    count = max(int(np.searchsorted(edges_s, duration_s)), 1)
    edges_s = np.append(edges_s[:count], duration_s)
    low, high = sorted((environment.lowest_mbps, most))
    rates_bps = bps_from_mbps(np.maximum(rng.uniform(low, high, count), FLOOR_MBPS))
    return RateTrace("environment", tuple(edges_s.tolist()), tuple(rates_bps.tolist()), "synthetic")


@dataclass(frozen=True)
class Curriculum:
    """What training draws its environments from."""

    promoted: tuple[Environment, ...] = ()
    """Oldest first."""

    def draw(self, rng: np.random.Generator) -> Environment:
        """The newest promoted environment with probability `PROMOTED`, else the one before likewise, ..., else any."""
        for environment in reversed(self.promoted):
            if rng.random() < PROMOTED:
                return environment
        return any_environment(rng)


@dataclass(frozen=True)
class Trial:
    """An environment, and by how much QoE per chunk the baseline beats the model there."""

    environment: Environment
    gap: float


def search(gap: Callable[[Environment], float], seed: int, trials: int = TRIALS, drawn: int = RANDOM_TRIALS) -> list[Trial]:
    """Trials in the order made; the largest `gap` is what is looked for. Bayesian optimisation by an upper confidence bound.

    All ranges are scaled to 0 .. 1, for a Gaussian process with one length scale.
    """
    from bayes_opt import BayesianOptimization  # here: it brings scikit-learn, and only training wants it
    from bayes_opt.acquisition import UpperConfidenceBound
    from threadpoolctl import threadpool_limits

    box = dict.fromkeys(PARAMETERS, (0.0, 1.0))
    optimiser = BayesianOptimization(None, box, UpperConfidenceBound(), random_state=seed, verbose=0, allow_duplicate_points=True)
    found = []
    for number in range(trials):
        with threadpool_limits(1):  # a matrix of 15 rows is no work for threads
            shares = optimiser.random_sample(1)[0] if number < drawn else optimiser.suggest()
        environment = environment_at({name: float(share) for name, share in shares.items()})
        found.append(Trial(environment, gap(environment)))
        optimiser.register(shares, found[-1].gap)
    return found


def hardest(trials: list[Trial]) -> Trial:
    """The trial with the largest gap."""
    return max(trials, key=lambda trial: trial.gap)
