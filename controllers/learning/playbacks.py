"""Many playbacks of several videos at once, with their past in columns: what policy networks are trained and validated on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controllers.api import AbrSession, Manifest
from controllers.ladder import LADDER_BPS, places
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.sim.batch import AbrBatch, Floats, Integers, Traces
from testbed.units import bits_from_bytes, bytes_per_s_from_bps, mbps_from_bps
from traces.trace import RateTrace

SLOTS = len(LADDER_BPS)
FUTURE_S = (*range(0, 65, 5), 120)
"""Ends of the spans whose mean rates a critic may be told, from now."""
LEAST_MBPS = 0.01


class Videos:
    """Videos of one length in slots of the ladder: empty slots hold zeros."""

    def __init__(self, videos: Sequence[Manifest], chunks: int) -> None:
        self.manifests, self.chunk_s = tuple(videos), videos[0].chunk_s
        self.bitrates_bps = np.zeros((len(videos), SLOTS))
        self.sizes_bytes = np.zeros((len(videos), len(videos[0].sizes_bytes), SLOTS))
        for i, video in enumerate(videos):
            filled, used = list(places(video.bitrates_bps).slots), list(places(video.bitrates_bps).levels)
            self.bitrates_bps[i, filled] = np.array(video.bitrates_bps)[used]
            self.sizes_bytes[i][:, filled] = np.array(video.sizes_bytes)[:, used]
        self.first_slot = np.argmax(self.bitrates_bps > 0, axis=1)  # (videos,): of level 0
        self.session = AbrSession("learning", videos[0], chunks)


class Pool:
    """Traces to play on, with what a critic may know of them."""

    def __init__(self, traces: Sequence[RateTrace]) -> None:
        self.traces = Traces(traces)
        lengths = [int(np.ceil(trace.duration_s)) + FUTURE_S[-1] + 1 for trace in traces]
        self._first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        self._passed = np.concatenate([_passed_bytes(trace, length) for trace, length in zip(traces, lengths, strict=True)])

    def future_mbps(self, which: Integers, trace_s: Floats) -> Floats:
        """Mean rates between now and each of `FUTURE_S`, to a second, (sessions, spans)."""
        at = (self._first[which] + trace_s.astype(np.int64))[:, None] + np.asarray(FUTURE_S)
        rates = np.diff(self._passed[at], axis=1) / np.diff(FUTURE_S)
        return np.maximum(mbps_from_bps(bits_from_bytes(rates)), LEAST_MBPS)


def _passed_bytes(trace: RateTrace, seconds: int) -> Floats:
    """Bytes carried since the trace began, at each whole second, laps included."""
    rates = bytes_per_s_from_bps(np.asarray(trace.rates_bps))
    edges_s = np.asarray(trace.edges_s)
    passed = np.append(0.0, np.cumsum(np.diff(edges_s) * rates))
    laps, at_s = np.divmod(np.arange(seconds), trace.duration_s)
    return laps * passed[-1] + np.interp(at_s, edges_s, passed)


class Playbacks:
    """Sessions side by side: `step(slots)` downloads the next chunk of each and gives its QoE; columns of the past are kept."""

    def __init__(
        self,
        pool: Pool,
        videos: Videos,
        which: Integers,
        offsets_s: Floats,
        video: Integers,
        session: AbrSession | None = None,
    ) -> None:
        self.pool, self.videos, self.video, self.which = pool, videos, video, which
        self.session = session or videos.session
        self.batch = AbrBatch(pool.traces, self.session, which, offsets_s, videos.sizes_bytes, video)
        shape = (self.session.chunks, len(which))
        self.slots = np.zeros(shape, np.int64)
        self.sizes_bytes, self.download_s, self.rebuffer_s, self.qoe = np.zeros((4, *shape))
        self.exists: NDArray[np.bool_] = (videos.bitrates_bps > 0)[video]  # (sessions, SLOTS)
        self.slot_mbps = mbps_from_bps(videos.bitrates_bps[video])  # (sessions, SLOTS)

    @property
    def chunk(self) -> int:
        """Number of the chunk that comes next."""
        return self.batch.chunk

    @property
    def done(self) -> bool:
        """Whether the sessions are over."""
        return self.batch.done

    @property
    def buffer_s(self) -> Floats:
        """Media in the buffers now, (sessions,)."""
        return self.batch.state.buffer_s

    @property
    def next_bytes(self) -> Floats:
        """Sizes of the next chunk, (sessions, SLOTS)."""
        return self.videos.sizes_bytes[self.video, self.chunk]

    def begin(self) -> None:
        """Download chunk 0 of each at its lowest level, as every session begins."""
        self.step(self.videos.first_slot[self.video])

    def step(self, chosen: Integers, noise: Floats | None = None) -> Floats:
        """Download the next chunk of each in slots `chosen` (sessions,); returns QoE_lin of the chunk, (sessions,).

        Raises `ValueError` for a slot that holds no level.
        """
        index, rows = self.chunk, np.arange(len(chosen))
        if not self.exists[rows, chosen].all():
            raise ValueError(f"chunk {index} was asked for in an empty slot")
        self.sizes_bytes[index] = self.videos.sizes_bytes[self.video, index, chosen]
        got = self.batch.step(chosen, noise)
        self.slots[index], self.download_s[index], self.rebuffer_s[index] = chosen, got.download_s, got.rebuffer_s
        mbps = self.slot_mbps[rows, chosen]
        before = self.slot_mbps[rows, self.slots[max(index - 1, 0)]]
        qoe: Floats = mbps - REBUF_PENALTY * got.rebuffer_s - SWITCH_PENALTY * np.abs(mbps - before)
        self.qoe[index] = qoe
        return qoe

    def past(self, columns: Floats, samples: int) -> Floats:
        """The last `samples` rows of one of the columns, (sessions, samples), newest last; zeros before the first chunk."""
        rows = columns[max(self.chunk - samples, 0) : self.chunk].T
        return np.pad(rows, ((0, 0), (samples - rows.shape[1], 0)))

    def future_mbps(self) -> Floats:
        """What only a critic may know, (sessions, spans)."""
        return self.pool.future_mbps(self.which, self.batch.state.trace_s)

    @property
    def mean_qoe(self) -> Floats:
        """QoE per decided chunk of each session, (sessions,)."""
        return self.qoe[1 : self.chunk].mean(axis=0)
