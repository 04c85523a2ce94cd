"""Which trials a report draws as timelines, and what was recorded of each. A page with thousands of them would help nobody."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import polars as pl
from markupsafe import Markup

from testbed.drawing.figures import Look
from testbed.events import Run
from testbed.records import ChunkRow, DecisionRow, StallRow, TrialRow
from testbed.report.linkfigures import WINDOW_S
from testbed.report.summary import main_policy
from testbed.report.timeline import Session, extent, timeline
from testbed.results import as_trace
from testbed.units import bits_from_bytes, mbps_from_bps

MOST_TIMELINES = 96
"""Drawn at most; each is about 12 kB."""
DELIVERED_BIN_S = 1.0
ARRIVED_BYTES = (pl.col("delivered_bytes") - pl.col("lost_bytes")).clip(0)
"""What is lost at random has passed the bottleneck, where links count."""
_RowT = TypeVar("_RowT", bound=msgspec.Struct)
_GroupKey = tuple[str, str, float, int]


@dataclass(frozen=True)
class Group:
    """The trials that share trace, offset and seed, in the order of the policies."""

    title: str
    about: str
    drawn: tuple[dict[str, Any], ...]
    optimum: float | None = None
    """The offline optimum of this trace and offset."""


def groups(run: Run, looks: Mapping[str, Look], upper: Look | None = None) -> list[Group]:
    """The groups to draw: all when there is room, else a spread from the main policy's worst trace to its best, failed ones first."""
    by_key: dict[_GroupKey, list[TrialRow]] = defaultdict(list)
    for trial in run.playbacks:
        by_key[trial.trace, trial.trace_sha256, trial.offset_s, trial.seed].append(trial)
    keys = list(by_key)
    room = max(MOST_TIMELINES // max(len(looks), 1), 1)
    if len(keys) > room:
        keys = _spread(by_key, room, main_policy(list(looks)))
    many_seeds = len({key[3] for key in by_key}) > 1
    return [_group(run, looks, key, by_key[key], many_seeds, upper) for key in keys]


def selection_sentence(run: Run, shown: Sequence[Group]) -> str:
    """Says which trials are drawn when not all are."""
    drawn = sum(len(group.drawn) for group in shown)
    if drawn == len(run.trials):
        return ""
    return (
        f"{drawn} of {len(run.trials)} trials are drawn: groups with an invalid trial or a fallback first (a few), "
        "then groups spread evenly from the lowest result to the highest. The tables hold all trials."
    )


def _spread(by_key: Mapping[_GroupKey, Sequence[TrialRow]], room: int, main: str | None) -> list[_GroupKey]:
    def rank(key: _GroupKey) -> float:
        values = [t.qoe for t in by_key[key] if t.qoe is not None and t.policy == main]
        return values[0] if values else float("-inf")

    troubled = [key for key, trials in by_key.items() if any(not t.valid or t.fallbacks for t in trials)][: room // 4]
    others = sorted((key for key in by_key if key not in set(troubled)), key=rank)
    if not others:
        return troubled
    places = np.unique(np.linspace(0, len(others) - 1, room - len(troubled)).round().astype(int))
    return [*troubled, *(others[i] for i in places)]


def _group(run: Run, looks: Mapping[str, Look], key: _GroupKey, trials: Sequence[TrialRow], many_seeds: bool, upper: Look | None) -> Group:
    ordered = sorted(trials, key=lambda trial: (looks[trial.policy].number, trial.attempt))
    sessions = [_session(run, trial) for trial in ordered]
    reach = extent(sessions)
    items = tuple(
        {"look": looks[s.trial.policy], "trial": s.trial, "svg": Markup(timeline(looks[s.trial.policy], s, reach, upper))} for s in sessions
    )
    about = []
    if (trace := run.traces.get(key[1])) is not None:
        about.append(f"mean capacity {mbps_from_bps(as_trace(trace).mean_rate_bps):.2f} Mbit/s")
    about += [f"from {key[2]:g} s"] if key[2] else []
    about += [f"seed {key[3]}"] if many_seeds else []
    optimum = run.optima.get((key[1], key[2]))
    return Group(key[0], ", ".join(about), items, optimum.qoe if optimum else None)


def _session(run: Run, trial: TrialRow) -> Session:
    names = ("chunks", "decisions", "stalls", "links")
    of_trial = {name: run.tables[name].filter(pl.col("trial_id") == trial.trial_id) for name in names}
    chunks = _structs(of_trial["chunks"].sort("index"), ChunkRow)
    end_s = chunks[-1].end_s if chunks else 0.0
    return Session(
        trial=trial,
        chunks=chunks,
        decisions=_structs(of_trial["decisions"].sort("chunk_index"), DecisionRow),
        stalls=_structs(of_trial["stalls"].sort("start_s"), StallRow),
        trace=run.traces.get(trial.trace_sha256),
        delivered=_rates(of_trial["links"], "down", ARRIVED_BYTES, end_s),
        up_allowed=_rates(of_trial["links"], "up", pl.col("allowed_bytes"), end_s),
        up_delivered=_rates(of_trial["links"], "up", ARRIVED_BYTES, end_s),
        optimum=run.optima.get((trial.trace_sha256, trial.offset_s)),
    )


def _structs(table: pl.DataFrame, row: type[_RowT]) -> list[_RowT]:
    return [row(**values) for values in table.to_dicts()]


def _rates(links: pl.DataFrame, direction: str, carried: pl.Expr, end_s: float) -> tuple[list[float], list[float]]:
    """Edges (s) and rates (bit/s) of one direction in bins of a second, from the trial's start to `end_s`; empty when nobody counted."""
    way = links.filter((pl.col("direction") == direction) & pl.col("start_s").is_between(0, end_s, closed="left"))
    if way.is_empty():
        return [], []
    bins = (way["start_s"].to_numpy() / DELIVERED_BIN_S + 1e-6).astype(int)
    seconds = np.maximum(np.bincount(bins), 1) * WINDOW_S  # the last bin may hold a few windows only
    rates = bits_from_bytes(1.0) * np.bincount(bins, weights=way.select(carried).to_series().to_numpy()) / seconds
    edges = [DELIVERED_BIN_S * i for i in range(len(rates) + 1)]
    return [*edges[:-1], min(edges[-1], end_s)], rates.tolist()
