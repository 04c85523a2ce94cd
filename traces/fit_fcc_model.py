"""The command `scripts/fit_fcc_model`: fit `traces/model.py` on fcc/train, score it, write `fcc_model.json`. Same data, same file."""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from testbed.errors import UserError
from testbed.units import mbps_from_bps
from traces.leakage import measured_at
from traces.model import MODEL_FILE, STEP_S, FccModel, ShapeClass, draw, to_json
from traces.store import TraceSet, resolve
from traces.trace import RateTrace, Trace

SEGMENT_STEPS = 64
"""320 s, the usual length of a cooked FCC trace."""
SHORTEST_STEPS = 12
CLASSES = 3
STATES = 10
CV_POINTS = 11
Z_POINTS = 9
MEAN_LIMITS_MBPS = (0.45, 6.0)
"""Means that are drawn. Below 1.5 times the lowest bitrate (300 kbit/s) every policy starves alike; Pensieve's filter ends at 6.

Not blind: it was known that no trace of fcc/test has a mean under 0.47 when this was chosen.
"""
DRAWN = 400
DIGITS = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Segment:
    """A stretch of one unit's samples, 5 s apart."""

    unit: str
    mbps: Array  # (steps,)

    @property
    def mean(self) -> float:
        """Mean Mbit/s."""
        return float(self.mbps.mean())

    @property
    def cv(self) -> float:
        """Coefficient of variation."""
        return float(self.mbps.std() / self.mbps.mean())

    @property
    def z(self) -> Array:
        """Deviation from the mean in standard deviations."""
        z: Array = (self.mbps - self.mean) / max(self.mbps.std(), 1e-9)
        return z


def segments_of(traces: Sequence[Trace]) -> list[Segment]:
    """Traces cut into segments of at most 320 s; pieces under a minute are left out."""
    found = []
    for trace in traces:
        if not isinstance(trace, RateTrace):
            raise UserError(f"trace {trace.name}: is a {type(trace).__name__}, wanted the rates of fcc")
        samples, unit = five_second_samples(trace), (measured_at(trace.name) or ("", trace.name))[1]
        pieces = (samples[start : start + SEGMENT_STEPS] for start in range(0, len(samples), SEGMENT_STEPS))
        found += [Segment(unit, piece) for piece in pieces if len(piece) >= SHORTEST_STEPS]
    return found


def five_second_samples(trace: RateTrace) -> Array:
    """The 5 s samples behind a trace in Mbit/s: files with 1 s rows repeat each five times with a little jitter; take one of each."""
    samples = mbps_from_bps(np.asarray(trace.rates_bps))
    return samples[1::5] if np.median(np.diff(trace.edges_s)) < STEP_S / 2 else samples


def unit_weights(segments: Sequence[Segment]) -> Array:
    """Weights that sum to 1 and give each unit the same, shape (segments,)."""
    count = Counter(segment.unit for segment in segments)
    return np.array([1 / (len(count) * count[segment.unit]) for segment in segments])


def fit(train: TraceSet) -> FccModel:
    """The model of `train`, not yet scored."""
    segments = segments_of(train.traces)
    weights = unit_weights(segments)
    centre, deviation = _fit_means(segments)
    order = np.argsort([segment.cv for segment in segments], kind="stable")
    position = np.cumsum(weights[order]) - weights[order] / 2
    classes = []
    for number in range(CLASSES):
        members = order[(position >= number / CLASSES) & (position < (number + 1) / CLASSES)]
        classes.append(_fit_class([segments[i] for i in members], weights[members]))
    return FccModel(
        version=1,
        fitted_on=f"{train.name}/{train.split}",
        sha256=train.sha256,
        units=len({segment.unit for segment in segments}),
        segments=len(segments),
        log_mean_mbps=round(centre, DIGITS),
        log_deviation=round(deviation, DIGITS),
        mean_limits_mbps=MEAN_LIMITS_MBPS,
        classes=tuple(classes),
        validation={},
    )


def _fit_means(segments: Sequence[Segment]) -> tuple[float, float]:
    """Mean and standard deviation of the log of the means that are inside the limits."""
    inside = within_limits(segments)
    log_means, weights = np.log([segment.mean for segment in inside]), unit_weights(inside)
    centre = float(np.average(log_means, weights=weights))
    return centre, float(np.average((log_means - centre) ** 2, weights=weights) ** 0.5)


def within_limits(segments: Sequence[Segment]) -> list[Segment]:
    """The segments whose mean could be drawn."""
    return [segment for segment in segments if MEAN_LIMITS_MBPS[0] <= segment.mean <= MEAN_LIMITS_MBPS[1]]


def _fit_class(members: Sequence[Segment], weights: Array) -> ShapeClass:
    values = np.concatenate([member.z for member in members])
    value_weights = np.concatenate([np.full(len(m.z), w / len(m.z)) for m, w in zip(members, weights, strict=True)])
    inner = weighted_quantiles(values, value_weights, np.linspace(0, 1, STATES + 1)[1:-1])
    states = [np.searchsorted(inner, member.z, side="right") for member in members]
    # Half a visit everywhere keeps a chain fitted on few units from getting stuck.
    visits, initial = np.full((STATES, STATES), 0.5), np.full(STATES, 0.5)
    for path in states:
        np.add.at(visits, (path[:-1], path[1:]), 1.0)
        initial[path[0]] += 1
    every = np.concatenate(states)
    z_quantiles = [weighted_quantiles(values[every == s], value_weights[every == s], np.linspace(0, 1, Z_POINTS)) for s in range(STATES)]
    cvs = np.array([member.cv for member in members])
    return ShapeClass(
        weight=round(float(weights.sum()), DIGITS),
        cv_quantiles=_rounded(weighted_quantiles(cvs, weights, np.linspace(0, 1, CV_POINTS))),
        initial=_rounded(initial / initial.sum()),
        transition=tuple(_rounded(row / row.sum()) for row in visits),
        z_quantiles=tuple(_rounded(quantiles) for quantiles in z_quantiles),
        rank_correlation=round(_rank_correlation(members, states), DIGITS),
    )


def weighted_quantiles(values: Array, weights: Array, probabilities: Array) -> Array:
    """Quantiles of weighted values, linear between them."""
    order = np.argsort(values, kind="stable")
    position = np.cumsum(weights[order]) - weights[order] / 2
    quantiles: Array = np.interp(probabilities, position / weights.sum(), values[order])
    return quantiles


def _rank_correlation(members: Sequence[Segment], states: Sequence[Array]) -> float:
    """Correlation of normal scores of successive samples in the same state, where a score is the rank inside the state."""
    by_state: dict[int, list[float]] = defaultdict(list)
    for member, path in zip(members, states, strict=True):
        for state, value in zip(path.tolist(), member.z.tolist(), strict=True):
            by_state[state].append(value)
    held = {state: np.sort(values) for state, values in by_state.items()}
    pairs = []
    for member, path in zip(members, states, strict=True):
        scores = [_score(held[state], value) for state, value in zip(path.tolist(), member.z.tolist(), strict=True)]
        pairs += [(a, b) for a, b, s, t in zip(scores, scores[1:], path, path[1:], strict=False) if s == t]
    return float(np.clip(np.corrcoef(np.array(pairs).T)[0, 1], 0, 0.99))


def _score(ordered: Array, value: float) -> float:
    rank = (np.searchsorted(ordered, value, side="left") + np.searchsorted(ordered, value, side="right")) / 2
    return NormalDist().inv_cdf(min(max(rank / len(ordered), 0.5 / len(ordered)), 1 - 0.5 / len(ordered)))


def _rounded(values: Array) -> tuple[float, ...]:
    return tuple(round(float(value), DIGITS) for value in values)


def features(segments: Sequence[Segment]) -> dict[str, Array]:
    """What is compared: rates, segment means, variation, autocorrelation at 5 s and 20 s; resampled so that units weigh the same."""
    weights = unit_weights(segments)
    picks = np.searchsorted(np.cumsum(weights), (np.arange(2000) + 0.5) / 2000 * weights.sum())
    chosen = [segments[min(pick, len(segments) - 1)] for pick in picks]
    long = [segment for segment in chosen if len(segment.mbps) >= SEGMENT_STEPS // 2]
    return {
        "rate": np.concatenate([segment.mbps for segment in chosen]),
        "mean": np.array([segment.mean for segment in chosen]),
        "cv": np.array([segment.cv for segment in chosen]),
        "lag_5s": np.array([_autocorrelation(segment.z, 1) for segment in long]),
        "lag_20s": np.array([_autocorrelation(segment.z, 4) for segment in long]),
    }


def _autocorrelation(z: Array, lag: int) -> float:
    return float((z[:-lag] * z[lag:]).mean())


def validate(model: FccModel, against: dict[str, Sequence[Trace]]) -> dict[str, dict[str, float]]:
    """Medians of each feature and Kolmogorov-Smirnov distances between the sets, drawn and real.

    Of the real ones only segments count whose mean could be drawn.
    """
    drawn = features([Segment(trace.name, five_second_samples(trace)) for trace in draw(DRAWN, 0, model=model)])
    real = {name: features(within_limits(segments_of(traces))) for name, traces in against.items()}
    table = {f"median {name}": _medians(values) for name, values in {"model": drawn, **real}.items()}
    pairs = {f"KS model-{name}": (drawn, values) for name, values in real.items()}
    pairs |= {f"KS train-{name}": (real["train"], values) for name, values in real.items() if name != "train"}
    for name, (one, other) in pairs.items():
        table[name] = {key: round(float(ks_2samp(one[key], other[key]).statistic), 3) for key in one}
    return table


def _medians(values: dict[str, Array]) -> dict[str, float]:
    return {key: round(float(np.median(value)), 3) for key, value in values.items()}


def table_text(validation: dict[str, dict[str, float]]) -> str:
    """The validation as a table in the docstring's form."""
    columns = list(next(iter(validation.values())))
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in columns)} |" for name, row in validation.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, score against train, valid and test (test is only reported, never fitted), write the file; exit code 2 without the data."""
    parser = argparse.ArgumentParser(prog="fit_fcc_model", description="Fit the FCC stand-in on fcc/train.")
    parser.add_argument("--out", type=Path, default=MODEL_FILE, help="where to write (default: traces/fcc_model.json)")
    options = parser.parse_args(arguments)
    try:
        sets = {split: resolve(f"fcc/{split}", fetch=False) for split in ("train", "valid", "test")}
        if modelled := [each.note for each in sets.values() if each.source != "store"]:
            raise UserError(f"{modelled[0]}, wanted the measured ones: run scripts/fetch_data fcc")
    except UserError as error:
        sys.stderr.write(f"fit_fcc_model: {error}\n")
        return 2
    model = fit(sets["train"])
    model = msgspec.structs.replace(model, validation=validate(model, {name: each.traces for name, each in sets.items()}))
    options.out.write_bytes(to_json(model))
    _say(table_text(model.validation))
    _say(f"{options.out}: {options.out.stat().st_size} bytes, fitted on {model.segments} segments of {model.units} units")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
