"""Many playbacks at once on the virtual clock: exactly the steps of `testbed.sim.abr.AbrSimulator`, compiled.

All sessions of a batch play chunk k at the same call; each has its own trace, start and video. Equal to the simulator in every bit: the
same operations in the same order, which its tests hold.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.api import AbrSession
from testbed.sim.abr import DRAIN_STEP_S, PAYLOAD_SHARE, rates_of
from testbed.sim.compiled import compiled
from testbed.units import bytes_per_s_from_bps
from traces.trace import Trace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Downloads(NamedTuple):
    """What one step of each session gave; arrays of shape (sessions,), seconds. The names are those of `controllers.api.Chunk`."""

    download_s: Floats
    rebuffer_s: Floats
    buffer_s: Floats
    """When the chunk has arrived, before any wait."""
    waited_s: Floats


class State(NamedTuple):
    """Where each session stands; arrays of shape (sessions,), changed in place by a step."""

    segment: Integers
    """Of the trace, counted over all traces."""
    trace_s: Floats
    buffer_s: Floats

    def take(self, which: Integers) -> "State":
        """Copies of some sessions, in the order given."""
        return State(self.segment[which], self.trace_s[which], self.buffer_s[which])


class Traces:
    """Traces end to end, as the compiled step reads them."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        rates = [rates_of(trace) for trace in traces]
        self.durations_s = np.array([trace.duration_s for trace in rates])  # (traces,)
        counts = [len(trace.rates_bps) for trace in rates]
        self.first = np.concatenate([[0], np.cumsum(counts)])[:-1].astype(np.int64)  # (traces,)
        self._end_s = np.concatenate([trace.edges_s[1:] for trace in rates]).astype(np.float64)  # (segments,)
        self._begin_s = np.concatenate([trace.edges_s[:-1] for trace in rates]).astype(np.float64)
        self._bytes_per_s = np.concatenate([[bytes_per_s_from_bps(rate) for rate in trace.rates_bps] for trace in rates]).astype(np.float64)
        last = self.first + np.array(counts) - 1
        self._next = np.arange(1, len(self._end_s) + 1, dtype=np.int64)  # (segments,): the last of a trace is followed by its first
        self._next[last] = self.first
        self._counts = np.array(counts, np.int64)

    @property
    def columns(self) -> tuple[Any, ...]:
        """For the compiled step."""
        return self._end_s, self._begin_s, self._bytes_per_s, self._next

    def start(self, which: Integers, offsets_s: Floats) -> State:
        """Sessions on traces `which` (sessions,), each begun at its offset (seconds, wrapped)."""
        trace_s = np.asarray(offsets_s, np.float64) % self.durations_s[which]
        return State(_segments(self._begin_s, self.first, self._counts, which, trace_s), trace_s, np.zeros(len(which)))


class AbrBatch:
    """Sessions side by side: `step(levels)` downloads the next chunk of each.

    `session` says chunks, round trip and buffer cap for all; `sizes_bytes` (videos, chunks, levels) and `video` (sessions,) let sessions
    play different videos of one ladder, by default all play the session's.
    """

    def __init__(
        self,
        traces: Traces,
        session: AbrSession,
        which: Integers,
        offsets_s: Floats | float = 0.0,
        sizes_bytes: Floats | None = None,
        video: Integers | None = None,
    ) -> None:
        self.traces, self.session = traces, session
        self.which = np.asarray(which, np.int64)
        count = len(self.which)
        self.state = traces.start(self.which, np.broadcast_to(np.asarray(offsets_s, np.float64), count))
        own = np.asarray([session.video.sizes_bytes], np.float64)
        self.sizes_bytes = own if sizes_bytes is None else np.asarray(sizes_bytes, np.float64)
        self.video = np.zeros(count, np.int64) if video is None else np.asarray(video, np.int64)
        self.chunk = 0
        """Number of the chunk that comes next."""

    @property
    def done(self) -> bool:
        """Whether the last chunk has been downloaded."""
        return self.chunk >= self.session.chunks

    def step(self, levels: Integers, noise: Floats | None = None) -> Downloads:
        """Download the next chunk of each session at `levels` (sessions,); `noise` (sessions,) multiplies the download times.

        Raises `ValueError` when the sessions are over, and for a level outside the ladder.
        """
        if self.done:
            raise ValueError(f"chunk {self.chunk} was asked for, but the sessions have {self.session.chunks} chunks")
        levels = np.asarray(levels, np.int64)
        most = self.sizes_bytes.shape[2] - 1
        if levels.shape != self.which.shape or levels.min() < 0 or levels.max() > most:
            raise ValueError(
                f"chunk {self.chunk} was asked for at levels {levels}, wanted one of 0 to {most} for each of {len(self.which)}"
            )
        sizes = self.sizes_bytes[self.video, self.chunk, levels]
        self.chunk += 1
        return advance(self.traces, self.session, self.state, sizes, noise)


def advance(traces: Traces, session: AbrSession, state: State, sizes_bytes: Floats, noise: Floats | None = None) -> Downloads:
    """One chunk of `sizes_bytes` (sessions,) for each session; `state` is changed in place."""
    path = (session.rtt_s, session.video.chunk_s, session.buffer_cap_s)
    out = np.empty((4, len(sizes_bytes)))
    _advance(*traces.columns, *state, sizes_bytes, noise if noise is not None else np.ones(0), *path, out)
    return Downloads(*out)


@compiled
def _segments(begin_s, first, counts, which, trace_s):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found = np.empty(len(which), np.int64)
    for i in range(len(which)):
        begin = first[which[i]]
        found[i] = begin + np.searchsorted(begin_s[begin : begin + counts[which[i]]], trace_s[i], side="right") - 1
    return found


@compiled
def _advance(end_s, begin_s, bytes_per_s, following, segment, trace_s, buffer_s, sizes_bytes, noise, rtt_s, chunk_s, cap_s, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(sizes_bytes.size):
        here, now_s = segment[i], trace_s[i]
        sent_bytes, elapsed_s = 0.0, 0.0
        while True:
            left_s = end_s[here] - now_s
            segment_bytes = bytes_per_s[here] * left_s * PAYLOAD_SHARE
            if sent_bytes + segment_bytes > sizes_bytes[i]:
                needed_s = (sizes_bytes[i] - sent_bytes) / bytes_per_s[here] / PAYLOAD_SHARE
                now_s += needed_s
                break
            sent_bytes += segment_bytes
            elapsed_s += left_s
            here = following[here]
            now_s = begin_s[here]
        download_s = elapsed_s + needed_s + rtt_s
        if noise.size:
            download_s *= noise[i]
        rebuffer_s = max(download_s - buffer_s[i], 0.0)
        full_s = max(buffer_s[i] - download_s, 0.0) + chunk_s
        waited_s = 0.0
        if full_s > cap_s:
            waited_s = ceil((full_s - cap_s) / DRAIN_STEP_S) * DRAIN_STEP_S
            sleep_s = waited_s
            while end_s[here] - now_s <= sleep_s:
                sleep_s -= end_s[here] - now_s
                here = following[here]
                now_s = begin_s[here]
            now_s += sleep_s
        segment[i], trace_s[i], buffer_s[i] = here, now_s, full_s - waited_s
        out[0, i], out[1, i], out[2, i], out[3, i] = download_s, rebuffer_s, full_s, waited_s
