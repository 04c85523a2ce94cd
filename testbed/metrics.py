"""How good a session was: QoE_lin per chunk of a playback, its mean and components; job completion times of a schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from controllers.api import Chunk, Manifest
from testbed.units import mbps_from_bps

REBUF_PENALTY = 4.3
"""QoE lost per second of stall: the ladder's highest bitrate in Mbit/s (mu of QoE_lin, Pensieve, SIGCOMM 2017, section 5.1; NetLLM too)."""

SWITCH_PENALTY = 1.0
"""QoE lost per Mbit/s of change between two chunks (Yin et al., SIGCOMM 2015, lambda = 1; Pensieve and NetLLM too)."""


def qoe_lin(bitrate_bps: float, rebuffer_s: float, previous_bps: float) -> float:
    """QoE of one chunk: Mbit/s - 4.3 per second of stall - |change in Mbit/s| (QoE_lin of Pensieve, SIGCOMM 2017, section 5.1).

    Bitrates are the ladder's nominal ones, not the chunk's actual size over its length (as in Pensieve's and NetLLM's code).
    """
    # This order of operations is the published code's, so that equal sequences tie to the last bit.
    return mbps_from_bps(bitrate_bps) - REBUF_PENALTY * rebuffer_s - SWITCH_PENALTY * mbps_from_bps(abs(bitrate_bps - previous_bps))


def chunk_qoe(chunks: Sequence[Chunk], video: Manifest) -> tuple[float, ...]:
    """QoE of every chunk. Chunk 0 has no change of level, and its start-up delay counts as stall: it is reported apart, not averaged."""
    bitrates_bps = [video.bitrates_bps[chunk.level] for chunk in chunks]
    previous_bps = [*bitrates_bps[:1], *bitrates_bps[:-1]]
    return tuple(qoe_lin(b, c.rebuffer_s, p) for b, c, p in zip(bitrates_bps, chunks, previous_bps, strict=True))


@dataclass(frozen=True)
class SessionSummary:
    """Means per chunk over chunks 1 .. N-1: `qoe = bitrate_mbps - 4.3 rebuffer_s - switch_mbps`; the start-up delay stands apart."""

    qoe: float
    bitrate_mbps: float
    rebuffer_s: float
    switch_mbps: float
    startup_s: float
    chunks: int
    """Chunks averaged: one fewer than were downloaded."""


def summarise(chunks: Sequence[Chunk], video: Manifest) -> SessionSummary:
    """The session's QoE and components. Raises `ValueError` when there are fewer than two chunks: nothing was decided then."""
    rated = len(chunks) - 1
    if rated < 1:
        raise ValueError(f"{len(chunks)} chunks were downloaded, wanted at least 2")
    mbps = [mbps_from_bps(video.bitrates_bps[chunk.level]) for chunk in chunks]
    return SessionSummary(
        qoe=sum(chunk_qoe(chunks, video)[1:]) / rated,
        bitrate_mbps=sum(mbps[1:]) / rated,
        rebuffer_s=sum(chunk.rebuffer_s for chunk in chunks[1:]) / rated,
        switch_mbps=sum(abs(b - a) for a, b in pairwise(mbps)) / rated,
        startup_s=chunks[0].rebuffer_s,
        chunks=rated,
    )


@dataclass(frozen=True)
class ScheduleSummary:
    """How one workload went. A job's completion time (JCT) is from its arrival to the end of its last task.

    Jobs that never ended count up to the end of the session: their true times are longer, so a schedule with any can't be compared.
    """

    avg_jct_s: float
    p50_jct_s: float
    p95_jct_s: float
    makespan_s: float
    """From 0 to the end of the last job, or of the session."""
    busy_share: float
    """Executor time spent on tasks, over all executor time until the makespan."""
    jobs: int
    unfinished: int


def summarise_schedule(
    arrived_s: Sequence[float], done_s: Sequence[float | None], busy_s: float, executors: int, end_s: float
) -> ScheduleSummary:
    """`done_s` has None for a job that never ended, `end_s` is when the session did. Raises `ValueError` when there is no job."""
    if not arrived_s:
        raise ValueError("no job arrived, wanted at least 1")
    ended_s = np.array([end_s if done is None else done for done in done_s])
    jct_s = ended_s - np.array(arrived_s)
    p50_s, p95_s = np.quantile(jct_s, (0.5, 0.95))
    makespan_s = float(ended_s.max())
    return ScheduleSummary(
        avg_jct_s=float(jct_s.mean()),
        p50_jct_s=float(p50_s),
        p95_jct_s=float(p95_s),
        makespan_s=makespan_s,
        busy_share=busy_s / (executors * makespan_s) if makespan_s > 0 else 0.0,
        jobs=len(jct_s),
        unfinished=sum(done is None for done in done_s),
    )
