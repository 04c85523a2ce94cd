"""What policies learn from: train splits, proved to share nothing with test splits, and synthetic traces drawn from them.

Whole measurement units (FCC) and logs (Norway) are held out for validation. Models are chosen on those, on fcc/valid and on synthetic
traces together: fcc/valid alone is four traces, too few to rank anything. Test splits are read for one purpose, to refuse leaks: who
trains on a catalogued set must have its test split; a folder of traces of one's own is compared with those that are here.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from testbed.errors import UserError
from testbed.units import bps_from_mbps
from traces.catalog import CatalogSet, load_catalog
from traces.formats import to_rates
from traces.leakage import find_leaks, measured_at
from traces.store import TraceSet, find_or_fetch, resolve
from traces.synthetic import synthetic_trace
from traces.trace import OpportunityTrace, RateTrace

TRAIN_SPLIT = "train"
REFERENCES = ("fcc/train", "norway/train")
HELD_OUT = 0.15
"""Share of units and logs kept for validation."""
HOLD_OUT_SEED = 1
"""Whatever a training's own seed, the same traces are held out: a student validates on none that its teachers learnt from."""
LEAST_MEAN_BPS = bps_from_mbps(0.6)
"""Validation traces are at least as fast: where no level fits, stalls drown all differences."""
OPPORTUNITY_BIN_S = 0.1
STEPS_S = (5.0, 5.0, 2.0, 1.0)
"""Steps of synthetic traces, drawn with equal chance: 5 s as FCC measures, and faster. Real ones are then played faster, too."""


@dataclass(frozen=True)
class Sources:
    """Real traces to train on, those of other units or logs to validate on, and what they are."""

    train: tuple[RateTrace, ...]
    held_out: tuple[RateTrace, ...]
    sets: tuple[dict[str, Any], ...]

    @property
    def held_out_groups(self) -> list[str]:
        """Units and logs that training never sees."""
        return sorted({group_of(trace) for trace in self.held_out})


def load_sources(references: Sequence[str] = REFERENCES, held_out: float = HELD_OUT) -> Sources:
    """Read the sets, refuse what is not for training or shares anything with a test set, and hold out whole units or logs.

    Raises `UserError` that names the trace and what it shares, or the split that is lacking.
    """
    sets = [_training_set(reference) for reference in references]
    real = [as_rates(trace) for each in sets for trace in each.traces]
    facts = tuple(
        {"name": each.name, "split": each.split, "source": each.source, "traces": len(each.traces), "sha256": each.sha256} for each in sets
    )
    _refuse_leaks(real, facts)
    groups = sorted({group_of(trace) for trace in real})
    rng = np.random.default_rng([HOLD_OUT_SEED, 0])
    if not 0 <= held_out < 1:
        raise UserError(f"the share of units and logs held out is {held_out:g}, wanted one from 0 to below 1")
    count = max(round(len(groups) * held_out), 1 if held_out and len(groups) > 1 else 0)
    kept_back = set(rng.permutation(np.array(groups, dtype=object))[:count])
    return Sources(
        train=tuple(trace for trace in real if group_of(trace) not in kept_back),
        held_out=tuple(trace for trace in real if group_of(trace) in kept_back),
        sets=facts,
    )


def as_rates(trace: RateTrace | OpportunityTrace) -> RateTrace:
    """The trace as rates."""
    return to_rates(trace, OPPORTUNITY_BIN_S) if isinstance(trace, OpportunityTrace) else trace


def group_of(trace: RateTrace) -> str:
    """`unit:number`, `log:name` or `trace:name`: what stays together."""
    return ":".join(measured_at(trace.name) or ("trace", trace.name))


def _training_set(reference: str) -> TraceSet:
    found = resolve(reference)
    if found.source == "model":
        raise UserError(f"{found.note}, wanted the measured ones for training: run scripts/fetch_data {found.name}")
    if found.source == "store" and found.split != TRAIN_SPLIT:
        raise UserError(
            f"trace set {found.name}/{found.split} is not for training, wanted a split named {TRAIN_SPLIT} (or traces of your own)"
        )
    return found


def _refuse_leaks(training: Sequence[RateTrace], sets: Sequence[dict[str, Any]]) -> None:
    """With whatever is no train split: tests, and what policies are chosen on."""
    others = [(entry, split) for entry in load_catalog().values() if entry.kind == "traces" for split in entry.splits]
    for entry, split in others:
        if split.name == TRAIN_SPLIT or split.of:
            continue
        if leaks := find_leaks(training, _measured(entry, split.name, sets)):
            shared = f"shares its {leaks[0].kind} with {leaks[0].test} of {entry.name}/{split.name}"
            raise UserError(f"trace {leaks[0].train} {shared}, wanted traces unknown to tests and to what policies are chosen on")


def _measured(entry: CatalogSet, split_name: str, trained_on: Sequence[dict[str, Any]]) -> list[RateTrace]:
    """A split's traces; none when the set has no such split.

    One that can't be had is missed in a note, and raises `UserError` when the set is `trained_on`. So do files that are not the catalogued
    ones.
    """
    split = entry.split(split_name)
    if split is None:
        return []
    folder, lack = find_or_fetch(entry, split)
    if folder:
        return list(_rates_in(f"{entry.name}/{split_name}", folder))
    told = f"{entry.name}/{split_name} is not on this machine ({lack})"
    if any((each["source"], each["name"]) == ("store", entry.name) for each in trained_on):
        raise UserError(f"{told}, wanted it there for training on {entry.name}: run scripts/fetch_data {entry.name}")
    sys.stderr.write(f"note: {told}: training goes without a comparison with it\n")
    return []


@cache
def _rates_in(reference: str, folder: Path) -> tuple[RateTrace, ...]:
    """A split's traces, read once; `folder` is where its verified files lie."""
    return tuple(as_rates(trace) for trace in resolve(reference).traces)


class Grouped:
    """Real traces to draw from: a kind of source first, then a unit or log, then a trace, so that no unit counts for its many files."""

    def __init__(self, traces: Sequence[RateTrace]) -> None:
        kinds: dict[str, dict[str, list[RateTrace]]] = defaultdict(lambda: defaultdict(list))
        for trace in traces:
            group = group_of(trace)
            kinds[group.partition(":")[0]][group].append(trace)
        self.traces = tuple(traces)
        self._kinds = [[groups[name] for name in sorted(groups)] for _, groups in sorted(kinds.items())]

    def draw(self, rng: np.random.Generator) -> RateTrace:
        """One trace as it was measured."""
        groups = self._kinds[rng.integers(len(self._kinds))]
        members = groups[rng.integers(len(groups))]
        return members[rng.integers(len(members))]


@dataclass(frozen=True)
class Mix:
    """Traces for training sessions, without end: synthetic ones, and real ones at 0.6 to 1.65 times their rate."""

    real: Grouped
    synthetic: float = 0.4
    """Share of synthetic traces."""

    def draw(self, rng: np.random.Generator) -> tuple[RateTrace, float]:
        """A trace and the offset in it to start from, in seconds; one session in five starts at the trace's beginning."""
        drawn = any_synthetic(rng, self.real.traces) if rng.random() < self.synthetic else scaled(rng, self.real.draw(rng))
        return drawn, float(rng.uniform(0, drawn.duration_s)) if rng.random() < 0.8 else 0.0


def any_synthetic(rng: np.random.Generator, real: Sequence[RateTrace]) -> RateTrace:
    """A synthetic trace of any family and step."""
    return synthetic_trace(rng, real, step_s=float(rng.choice(STEPS_S)))


def scaled(rng: np.random.Generator, trace: RateTrace) -> RateTrace:
    """The trace at 0.6 to 1.65 times its rate, so that few units cover more levels of throughput."""
    factor = float(np.exp(rng.uniform(-0.5, 0.5)))
    return RateTrace(f"{trace.name} x{factor:.3f}", trace.edges_s, tuple(rate * factor for rate in trace.rates_bps), trace.source)


def lifted(trace: RateTrace) -> RateTrace:
    """The trace, brought up to a mean of 0.6 Mbit/s if it is slower."""
    factor = max(LEAST_MEAN_BPS / trace.mean_rate_bps, 1.0)
    return RateTrace(trace.name, trace.edges_s, tuple(rate * factor for rate in trace.rates_bps), trace.source)


@dataclass(frozen=True)
class Validation:
    """A trace to validate on, where to start in it, and which family it belongs to."""

    family: str
    """`held_out` (units and logs), `valid` (fcc/valid) or `synthetic`."""
    trace: RateTrace = field(repr=False)
    offset_s: float


def validation(sources: Sources, count: int = 16, seed: int = HOLD_OUT_SEED) -> list[Validation]:
    """`count` traces each of held-out units and logs, of fcc/valid and of synthetic ones; never of a test split.

    Without fcc/valid where that can't be had and nothing is trained on fcc; without units and logs where none are held out.
    """
    rng = np.random.default_rng([seed, 3])
    known = Grouped(sources.held_out or sources.train)
    valid = _measured(load_catalog()["fcc"], "valid", sources.sets)
    families: dict[str, Callable[[int], RateTrace]] = {"held_out": lambda i: known.draw(rng)} if sources.held_out else {}
    if valid:
        families["valid"] = lambda i: valid[i % len(valid)]
    families["synthetic"] = lambda i: any_synthetic(rng, known.traces)
    found = []
    for family, draw in families.items():
        for i in range(count):
            trace = lifted(draw(i))
            found.append(Validation(family, trace, float(rng.uniform(0, trace.duration_s))))
    return found
