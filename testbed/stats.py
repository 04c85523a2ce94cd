"""Means with 95 % intervals, paired differences, quantiles: the only statistics of summaries and reports.

Trials of one trace (seeds, offsets) are averaged first, since they share what matters most. Traces count alike in a mean, but those that
were cut from one measurement (FCC's files of one household, Norway's of one ride, `traces.leakage.measured_at`) are not independent, and
often overlap: an interval takes the measurement as the unit of sampling. So it says what another draw of measurements from the same set
would give, not what another seed or another cut would.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import stats

from testbed.records_trial import TrialBase
from traces.leakage import measured_at

CONFIDENCE = 0.95
LEAST_FOR_INTERVAL = 3
"""With fewer measurements there is no interval: two points can't say how far a third may lie."""
TIE = 1e-9
"""Differences up to this, in the metric's unit, are ties: rounding, not behaviour."""
SIGNIFICANT = 0.05
"""A verdict wants an adjusted p value below this."""
LOWER_IS_BETTER = frozenset({"avg_jct_s", "mae_deg"})
"""Metrics that are costs; all others are gains."""

TrialT = TypeVar("TrialT", bound=TrialBase)
TraceKey = tuple[str, str]
"""Name and sha256 of a trace: two folders may hold files of the same name."""
Cell = tuple[TraceKey, float, int]
"""Trace, offset and seed: what policies are paired on."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` traces. None where there is nothing to average, or too little for an interval."""

    mean: float | None
    ci95: tuple[float, float] | None
    n: int
    clusters: int | None = None
    """Measurements that the `n` are cut from; None where each stands for itself."""
    freedom: float | None = None
    """Degrees of freedom of the interval; None: one fewer than there are measurements."""

    @property
    def half_width(self) -> float:
        """How far the interval reaches to either side of the mean; NaN where there is none."""
        return (self.ci95[1] - self.ci95[0]) / 2 if self.ci95 else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Policy `a` minus policy `b`, trace by trace, over the traces where both have a valid trial."""

    a: str
    b: str
    differences: dict[TraceKey, float]
    estimate: Estimate
    wins: int
    """Traces where `a` is better, whichever direction the metric has."""
    losses: int
    ties: int


def estimate(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `values` and its Student t interval; values of one cluster, if clusters are told, are not taken for independent.

    The variance is the cluster-robust one of a mean, with the small-sample factor G / (G - 1) and G - 1 degrees of freedom (Cameron and
    Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015, sections II and VI); where each value is a cluster, the usual one.

    Not a bootstrap: BCa's 95 % intervals of three traces hold the true mean two times in three (`tests/unit/test_stats.py` shows both).
    """
    n = len(values)
    if n == 0:
        return Estimate(None, None, 0)
    given = np.asarray(values, dtype=float)
    mean = float(np.mean(np.sort(given)))  # the order in which trials ended must not move the last bit
    sums: dict[Hashable, float] = defaultdict(float)
    for i in np.argsort(given, kind="stable"):
        sums[int(i) if clusters is None else clusters[i]] += given[i] - mean
    count = len(sums)
    told = None if clusters is None or count == n else count
    if count < LEAST_FOR_INTERVAL:
        return Estimate(mean, None, n, told)
    if float(np.ptp(given)) <= TIE:
        return Estimate(mean, (mean, mean), n, told)
    error = (count / (count - 1) * np.sum(np.sort(np.square(list(sums.values()))))) ** 0.5 / n
    half = float(_critical(count - 1) * error)
    return Estimate(mean, (mean - half, mean + half), n, told)


def p_value_of(found: Estimate) -> float | None:
    """Two-sided, of a mean of 0; None where there is no interval."""
    if found.mean is None or found.ci95 is None:
        return None
    if found.half_width <= TIE:
        return 1.0 if abs(found.mean) <= TIE else 0.0
    freedom = _freedom(found)
    return float(2 * stats.t.sf(abs(found.mean) * _critical(freedom) / found.half_width, freedom))


def _freedom(found: Estimate) -> float:
    return (found.clusters or found.n) - 1 if found.freedom is None else found.freedom


def _critical(freedom: float) -> float:
    """Half of Student's interval, in standard errors."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def with_training_seeds(found: Estimate, a: str, b: str, seeds: Mapping[str, Sequence[float]]) -> Estimate:
    """`found`, the mean of `a` minus `b`, with an interval that says what other training seeds would give, too.

    `seeds` holds the mean of each training seed, by variant. To the variance of the mean difference is added that of each one's mean over
    its k seeds, sd² / k; who has one seed takes the sd pooled over the variants that have several. Degrees of freedom are those of Welch
    and Satterthwaite (Biometrics Bulletin 2, 1946), each variant's sd being a part. Where no variant has several seeds there is
    no interval. Where one seed meets the only variant that has two it may be too narrow: as few as 87 of 100 hold the truth.
    """
    spreads = {name: (float(np.var(means, ddof=1)), len(means) - 1) for name, means in seeds.items() if len(means) > 1}
    if found.mean is None or found.ci95 is None or not spreads:
        return replace(found, ci95=None)
    alone, of_seeds = sum(name not in spreads for name in (a, b)), sum(freedom for _, freedom in spreads.values())
    parts = [((found.half_width / _critical(_freedom(found))) ** 2, _freedom(found))]
    for name, (variance, freedom) in spreads.items():
        own = 1 / len(seeds[name]) if name in (a, b) else 0.0
        parts.append((variance * (own + alone * freedom / of_seeds), freedom))
    total = sum(part for part, _ in parts)
    if total <= TIE**2:
        return found
    effective = total**2 / sum(part**2 / freedom for part, freedom in parts)
    half = _critical(effective) * total**0.5
    return replace(found, ci95=(found.mean - half, found.mean + half), freedom=effective)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for their number by Holm's step-down rule; None stays None and doesn't count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[i] = least
    return adjusted


def ratio_of_means(values: np.ndarray, bases: np.ndarray, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `values` over mean of `bases`, (n,) each; unknown where the bases' mean is not above 0. Its interval is by the delta method,
    with `clusters` as in `estimate`.
    """
    n, base = len(values), float(bases.mean())
    if base <= 0:
        return Estimate(None, None, n)
    ratio = float(values.mean()) / base
    around = estimate((values - ratio * bases) / base, clusters)  # its mean is 0
    return replace(around, mean=ratio, ci95=around.ci95 and (ratio + around.ci95[0], ratio + around.ci95[1]))


def over_traces(values: Mapping[TraceKey, float]) -> Estimate:
    """Mean over traces; those of one measurement are a cluster."""
    return estimate(list(values.values()), [measured_at(name) or (name, sha256) for name, sha256 in values])


def last_attempts(trials: Iterable[TrialT]) -> list[TrialT]:
    """Of each trial the attempt that counts: a trial whose link failed may have been played again."""
    last: dict[tuple[str, Cell], TrialT] = {}
    for trial in trials:
        key = trial.policy, _cell(trial)
        if key not in last or trial.attempt >= last[key].attempt:
            last[key] = trial
    return list(last.values())


def per_trace(trials: Iterable[TrialBase], value: str = "value") -> dict[TraceKey, float]:
    """The field `value` of the valid trials of ONE policy, averaged over seeds, then offsets: one number a trace."""
    return _mean_over_cells(_cells(trials, value))


def _cells(trials: Iterable[TrialBase], value: str) -> dict[Cell, float]:
    """What the valid trials of ONE policy saw, by trace, offset and seed."""
    return {_cell(trial): number for trial in trials if trial.valid and (number := getattr(trial, value)) is not None}


def _cell(trial: TrialBase) -> Cell:
    return (trial.trace, trial.trace_sha256), trial.offset_s, trial.seed


def _mean_over_cells(cells: Mapping[Cell, float]) -> dict[TraceKey, float]:
    """Averaged over the seeds of an offset, then over the offsets of a trace."""
    by_offset: dict[tuple[TraceKey, float], list[float]] = defaultdict(list)
    for (key, offset_s, _), number in cells.items():
        by_offset[key, offset_s].append(number)
    by_trace: dict[TraceKey, list[float]] = defaultdict(list)
    for (key, _), numbers in by_offset.items():
        by_trace[key].append(float(np.mean(numbers)))
    return {key: float(np.mean(means)) for key, means in by_trace.items()}


def compare(a: str, b: str, trials: Iterable[TrialBase], metric: str = "qoe_lin", value: str = "value") -> Comparison:
    """Paired differences of two policies: a - b at each trace, offset and seed where both are valid, averaged as in `per_trace`."""
    trials = tuple(trials)
    of_a, of_b = (_cells((t for t in trials if t.policy == name), value) for name in (a, b))
    differences = _mean_over_cells({cell: number - of_b[cell] for cell, number in of_a.items() if cell in of_b})
    sign = -1 if metric in LOWER_IS_BETTER else 1
    wins = sum(sign * d > TIE for d in differences.values())
    losses = sum(sign * d < -TIE for d in differences.values())
    return Comparison(a, b, differences, over_traces(differences), wins, losses, len(differences) - wins - losses)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The `q` quantile (0 to 1), linear between order statistics; None of nothing."""
    return float(np.quantile(values, q)) if len(values) else None


def strongest(means: Mapping[str, float | None], metric: str = "qoe_lin") -> str | None:
    """The name with the best mean; None when none has one."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return None
    best = min if metric in LOWER_IS_BETTER else max
    return best(known, key=lambda name: known[name])
