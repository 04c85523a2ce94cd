"""Do two sets of traces share anything? `scripts/check_split TRAIN TEST` asks it of any split.

| finding | meaning |
| --- | --- |
| `content` | a trace of one set is in the other, whatever its name |
| `run` | some consecutive samples are equal (default: eight): one is cut from the other, or both from one log |
| `unit` | both were measured at the same FCC unit (the number in the name) |
| `log` | both are windows of the same Norwegian commute (the name without its window) |

A run of one repeated value is no evidence and doesn't count. What is not seen: the same measurement resampled or scaled.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.errors import UserError
from testbed.units import ms_from_s
from traces.trace import RateTrace, Trace

RUN = 8
"""Equal consecutive samples that count as the same measurement."""
OPPORTUNITIES_PER_SAMPLE = 32
"""Gaps between opportunities that weigh as much as one rate sample: most are 0 or 1 ms, about a bit each."""

_FCC = re.compile(r"(?:^|_)trace_(\d+)_http")
_NORWAY = re.compile(r"(?:bus|car|ferry|metro|train|tram)\.[\w-]+-report\.[\d-]+_\d+CES?T\.log|norway_[a-z]+_\d+")


@dataclass(frozen=True)
class Leak:
    """One thing that a training and a test trace share."""

    kind: str
    """`content`, `run`, `unit` or `log`."""
    train: str
    test: str
    detail: str


def measured_at(name: str) -> tuple[str, str] | None:
    """(`unit`, number) or (`log`, name) of the measurement that a file name of FCC or Norway tells, else None."""
    if unit := _FCC.search(name):
        return "unit", unit[1]
    if log := _NORWAY.search(name):
        return "log", log[0]
    return None


def run_keys(trace: Trace, run: int = RUN) -> frozenset[int]:
    """A hash of each run of `run` consecutive samples; traces that share a run share a key."""
    if isinstance(trace, RateTrace):
        samples, length = np.asarray(trace.rates_bps), run
    else:
        samples, length = np.diff(np.rint(ms_from_s(np.asarray(trace.times_s))).astype(np.int32)), run * OPPORTUNITIES_PER_SAMPLE
    content, width = samples.tobytes(), samples.itemsize
    varied = (np.ptp(np.lib.stride_tricks.sliding_window_view(samples, length), axis=1) > 0) if len(samples) >= length else ()
    starts = np.flatnonzero(varied) * width
    return frozenset(hash((type(trace).__name__, content[start : start + length * width])) for start in starts.tolist())


def find_leaks(train: Sequence[Trace], test: Sequence[Trace], run: int = RUN) -> tuple[Leak, ...]:
    """Everything that traces of `train` and `test` share, in the order of `train`; empty when the split is clean."""
    if run < 2:
        raise UserError(f"run is {run} samples, wanted at least 2")
    by_content, by_source, by_run = _index((trace.sha256, trace) for trace in test), _index(_sourced(test)), defaultdict(list)
    for trace in test:
        for key in run_keys(trace, run):
            by_run[key].append(trace.name)
    leaks = []
    for trace in train:
        leaks += [Leak("content", trace.name, other, "the same trace") for other in by_content[trace.sha256]]
        if source := measured_at(trace.name):
            leaks += [Leak(source[0], trace.name, other, source[1]) for other in by_source[source]]
        shared: dict[str, int] = defaultdict(int)
        for key in run_keys(trace, run):
            for other in by_run.get(key, ()):
                shared[other] += 1
        leaks += [Leak("run", trace.name, other, f"{count} runs of {run} samples") for other, count in sorted(shared.items())]
    return tuple(leaks)


def _sourced(traces: Iterable[Trace]) -> Iterable[tuple[tuple[str, str], Trace]]:
    return ((source, trace) for trace in traces if (source := measured_at(trace.name)))


def _index(keyed: Iterable[tuple[object, Trace]]) -> dict[object, list[str]]:
    """Names by key."""
    names: dict[object, list[str]] = defaultdict(list)
    for key, trace in keyed:
        names[key].append(trace.name)
    return names
