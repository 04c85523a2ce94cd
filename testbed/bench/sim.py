"""`scripts/bench sim`: chunk steps a second of the ABR simulator: compiled batches, one session at a time, NetLLM's own environment.

All play the same traces from their beginnings under the same policy, a linear map from buffer to level, on one core; they must agree on the
stall of every chunk, else nothing is reported. A repetition measures each once, in turn; ratios are taken within a repetition.
"""

import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controllers.api import AbrSession
from players.media import DEFAULT_VIDEO, load_manifest
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError
from testbed.host import host_facts
from testbed.sim.abr import AbrSimulator, rates_of
from testbed.sim.batch import AbrBatch, Traces
from testbed.sim.optimum import offline_optimum
from testbed.units import mbps_from_bps, ms_from_s
from traces.store import find_video, resolve
from traces.trace import Trace

RESERVOIR_S, CUSHION_S = 5.0, 10.0
CHUNKS = 48
OPTIMA = 10
"""Traces whose offline optimum is timed, about."""
TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class SimSettings:
    """Measure the ABR simulator on one core. No root."""

    trace: str = "fcc/test"
    """The traces played."""
    sessions: int = 4096
    """In a batch."""
    repetitions: int = 5
    """Of everything, in turn."""
    netllm: Path | None = None
    """A checkout of NetLLM's published code: its environment is measured beside ours."""
    write: Path | None = None
    """Also write the page (Markdown) to this file."""

    def __post_init__(self) -> None:
        if self.sessions < 1 or self.repetitions < 1:
            raise UserError(f"{self.sessions} sessions and {self.repetitions} repetitions are asked for, wanted at least 1")


Stalls = list[list[float]]
"""Seconds, of each trace and chunk."""


def sim(settings: SimSettings) -> str:
    """Measure; the page as text."""
    traces = resolve(settings.trace).traces
    session = AbrSession("bench", load_manifest(DEFAULT_VIDEO), CHUNKS)
    joined = Traces(traces)
    contenders: dict[str, Callable[[], tuple[int, Stalls]]] = {
        "compiled batches": lambda: in_batches(joined, session, settings.sessions),
        "one session at a time": lambda: one_by_one(traces, session),
    }
    if settings.netllm:
        make = published(settings.netllm, traces)
        contenders["NetLLM's environment"] = lambda: in_published(make(), len(traces))
    first = {name: play() for name, play in contenders.items()}  # compiles, and warms up
    agree({name: stalls for name, (_, stalls) in first.items()})
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(settings.repetitions):
        for name, play in contenders.items():
            begin_s = now_s()
            steps, _ = play()
            rates[name].append(steps / (now_s() - begin_s))
    text = page(rates, settings, len(traces)) + optimum_line(traces[:: max(len(traces) // OPTIMA, 1)], session)
    if settings.write:
        settings.write.write_text(text, encoding="utf-8")
    return text


def level_of(buffer_s: float) -> int:
    """The policy of all: level 0 up to the reservoir, then evenly up to level 5."""
    return int(min(max(5 * (buffer_s - RESERVOIR_S) / CUSHION_S, 0), 5))


def in_batches(traces: Traces, session: AbrSession, sessions: int) -> tuple[int, Stalls]:
    """Steps taken, and the stalls of the first session on each trace."""
    count = len(traces.durations_s)
    which = np.arange(max(sessions, count)) % count
    batch, stalls = AbrBatch(traces, session, which), []
    levels = np.zeros(len(which), np.int64)
    while not batch.done:
        stalls.append(batch.step(levels).rebuffer_s[:count])
        levels = np.clip(5 * (batch.state.buffer_s - RESERVOIR_S) / CUSHION_S, 0, 5).astype(np.int64)
    return len(which) * session.chunks, np.stack(stalls, axis=1).tolist()


def one_by_one(traces: Sequence[Trace], session: AbrSession) -> tuple[int, Stalls]:
    """The same in plain Python."""
    stalls = []
    for trace in traces:
        simulator, level, row = AbrSimulator(trace, session), 0, []
        while not simulator.done:
            row.append(simulator.step(level).rebuffer_s)
            level = level_of(simulator.buffer_s)
        stalls.append(row)
    return len(traces) * session.chunks, stalls


def published(checkout: Path, traces: Sequence[Trace]) -> Callable[[], Any]:
    """Makes the environment of `adaptive_bitrate_streaming/baseline_special/env.py`, without noise, each trace from its beginning."""
    folder = checkout / "adaptive_bitrate_streaming"
    if not (folder / "baseline_special" / "env.py").is_file():
        raise UserError(f"--netllm {checkout}: has no adaptive_bitrate_streaming/baseline_special/env.py, wanted a checkout of NetLLM")
    sizes = find_video(DEFAULT_VIDEO)
    if sizes is None:
        raise UserError(f"video {DEFAULT_VIDEO} is not on this machine: run scripts/fetch_data {DEFAULT_VIDEO}")
    sys.path.insert(0, str(folder))
    environment = importlib.import_module("baseline_special.env").Environment
    rates = [rates_of(trace) for trace in traces]
    times = [list(trace.edges_s) for trace in rates]
    mbps = [[0.0, *map(mbps_from_bps, trace.rates_bps)] for trace in rates]
    return lambda: environment(
        times, mbps, all_mahimahi_ptrs=[1] * len(traces), video_size_dir=f"{sizes}/", fixed=True, trace_num=len(traces)
    )


def in_published(environment: Any, traces: int) -> tuple[int, Stalls]:
    """The same there."""
    stalls = []
    for _ in range(traces):
        level, row, over = 0, [], False
        while not over:
            _, _, buffer_s, rebuffer_s, _, _, over, _ = environment.get_video_chunk(level)
            row.append(float(rebuffer_s))
            level = level_of(buffer_s)
        stalls.append(row)
    return sum(map(len, stalls)), stalls


def agree(stalls: dict[str, Stalls]) -> None:
    """TestbedError unless all of them are the same."""
    names = list(stalls)
    for name in names[1:]:
        if not np.allclose(stalls[name], stalls[names[0]], rtol=0, atol=TOLERANCE_S):
            limit = f"{ms_from_s(TOLERANCE_S):g} ms"
            raise TestbedError(f"{name} and {names[0]} differ in a chunk's stall by more than {limit}: they don't play the same")


def optimum_line(traces: Sequence[Trace], session: AbrSession) -> str:
    """How long the offline optimum takes."""
    offline_optimum(traces[0], session)  # compiles
    took_s = []
    for trace in traces:
        begin_s = now_s()
        offline_optimum(trace, session)
        took_s.append(now_s() - begin_s)
    spread = f"{statistics.median(took_s):.2f} s ({min(took_s):.2f} to {max(took_s):.2f})"
    return f"\nThe offline optimum of a trace takes {spread}, on {len(traces)} of them.\n"


def page(rates: dict[str, list[float]], settings: SimSettings, traces: int) -> str:
    """A table: medians, ranges, ratios within repetitions to the slowest."""
    slowest = list(rates)[-1]
    lines = [
        "# The simulator's pace",
        f"`{' '.join(['scripts/bench', *sys.argv[1:]])}`, {utc_now():%Y-%m-%d}, commit `{checkout_commit()[:12]}`, "
        f"{host_facts()['cpu_model']}, one core. {traces} traces of {settings.trace}, {CHUNKS} chunks each, "
        f"{settings.sessions} sessions in a batch, median of {settings.repetitions} repetitions "
        "(least to most). All agreed on every stall.",
        "",
        f"| simulator | chunk steps a second | times {slowest} |",
        "| --- | --- | --- |",
    ]
    for name, seen in rates.items():
        ratios = [a / b for a, b in zip(seen, rates[slowest], strict=True)]
        spread = f"{statistics.median(seen):,.0f} ({min(seen):,.0f} to {max(seen):,.0f})"
        lines.append(f"| {name} | {spread} | {statistics.median(ratios):,.1f} ({min(ratios):,.1f} to {max(ratios):,.1f}) |")
    return "\n".join(lines) + "\n"
