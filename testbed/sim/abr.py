"""The simulator twin of an ABR session: Pensieve's and NetLLM's chunk-level model on a virtual clock.

| rule | as in Pensieve `sim/fixed_env.py` and NetLLM `baseline_special/env.py` |
| --- | --- |
| transfer | the trace's rate x 0.95 goes to the chunk; the trace wraps at its end |
| round trip | `session.rtt_s` is added to every download; the trace's time does NOT advance meanwhile |
| stall | what the download takes beyond the buffer; chunk 0 starts with an empty buffer, so all of it is start-up delay |
| cap | with more than `session.buffer_cap_s` in the buffer the player sleeps in steps of 0.5 s; the trace's time advances |
| end | after `session.chunks` chunks; chunk 0 has `session.first_level` |

Here a `RateTrace` is what both codes read from a cooked file. Their start pointer p (row p is served first) is `offset_s = edges_s[p - 1]`:
pointer 1, Pensieve's test setting, is offset 0. Their random start pointers are therefore offsets drawn from `edges_s[:-1]`.
"""

from bisect import bisect_right
from itertools import pairwise
from math import ceil
from operator import index
from typing import Any

import numpy as np

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk
from testbed.errors import AnswerError, UserError
from testbed.units import bytes_per_s_from_bps
from traces.formats import to_rates
from traces.trace import OpportunityTrace, RateTrace, Trace

PAYLOAD_SHARE = 0.95
"""Share of the link's bytes that is media, the rest being headers (PACKET_PAYLOAD_PORTION in both codes)."""

DRAIN_STEP_S = 0.5
"""Step of the pause at a full buffer (DRAIN_BUFFER_SLEEP_TIME in both codes; dash.js polls at the same interval)."""

OPPORTUNITY_BIN_S = 0.1
"""Delivery opportunities are averaged over bins this long: a chunk takes many, and the link's counters have the same grain."""

OPTIMUM_GRID_S = 0.2
"""Of trace time: playbacks within one cell compete in the search for the offline optimum (`testbed.sim.optimum`). On fcc/test, cells of
0.02 s find the same to the last digit, and on norway/test cells of 0.05 s."""


class AbrSimulator:
    """One playback on the virtual clock: `step(level)` downloads the next chunk.

    `noise` multiplies each download time by U(1 - noise, 1 + noise) drawn from `rng`, leaving the trace's time alone (Pensieve's training
    environment: 0.1; its test environment: none).
    """

    def __init__(
        self, trace: Trace, session: AbrSession, offset_s: float = 0.0, noise: float = 0.0, rng: np.random.Generator | None = None
    ) -> None:
        _check_session(session)
        if noise and rng is None:
            raise ValueError(f"noise of {noise} needs a random generator")
        self.session = session
        self.history: tuple[Chunk, ...] = ()
        self.buffer_s = 0.0
        self.wraps = 0
        self._noise, self._rng = noise, rng
        rates = rates_of(trace)
        self._edges_s = rates.edges_s
        self._bytes_per_s = tuple(bytes_per_s_from_bps(rate) for rate in rates.rates_bps)
        self.trace_s = float(offset_s) % rates.duration_s
        self._segment = bisect_right(self._edges_s, self.trace_s) - 1

    @property
    def done(self) -> bool:
        """Whether the last chunk has been downloaded."""
        return len(self.history) >= self.session.chunks

    @property
    def observation(self) -> AbrObservation:
        """What a policy is told now."""
        return AbrObservation(self.session, self.history, self.buffer_s)

    def step(self, level: int) -> Chunk:
        """Download the next chunk at `level` and wait if the buffer is full. Raises `ValueError` for a level outside the ladder."""
        number = len(self.history)
        if self.done:
            raise ValueError(f"chunk {number} was asked for, but the session has {self.session.chunks} chunks")
        if not 0 <= level < self.session.video.levels:
            raise ValueError(f"chunk {number} was asked for at level {level}, wanted 0 to {self.session.video.levels - 1}")
        size_bytes = self.session.video.sizes_bytes[number][level]
        download_s = self._transfer(size_bytes) + self.session.rtt_s
        if self._noise and self._rng is not None:
            download_s *= self._rng.uniform(1 - self._noise, 1 + self._noise)
        rebuffer_s = max(download_s - self.buffer_s, 0.0)
        full_s = max(self.buffer_s - download_s, 0.0) + self.session.video.chunk_s
        waited_s = 0.0
        if full_s > self.session.buffer_cap_s:
            waited_s = ceil((full_s - self.session.buffer_cap_s) / DRAIN_STEP_S) * DRAIN_STEP_S
            self._sleep(waited_s)
        self.buffer_s = full_s - waited_s
        chunk = Chunk(number, level, size_bytes, download_s, rebuffer_s, full_s, waited_s)
        self.history = (*self.history, chunk)
        return chunk

    def _transfer(self, size_bytes: float) -> float:
        """Seconds until `size_bytes` have passed; the trace's time advances by as much."""
        sent_bytes, elapsed_s = 0.0, 0.0
        while True:
            rate = self._bytes_per_s[self._segment]
            left_s = self._edges_s[self._segment + 1] - self.trace_s
            segment_bytes = rate * left_s * PAYLOAD_SHARE
            if sent_bytes + segment_bytes > size_bytes:
                needed_s = (size_bytes - sent_bytes) / rate / PAYLOAD_SHARE
                self.trace_s += needed_s
                return elapsed_s + needed_s
            sent_bytes += segment_bytes
            elapsed_s += left_s
            self._next_segment()

    def _sleep(self, seconds: float) -> None:
        """Let the trace's time advance with nothing to send."""
        while (left_s := self._edges_s[self._segment + 1] - self.trace_s) <= seconds:
            seconds -= left_s
            self._next_segment()
        self.trace_s += seconds

    def _next_segment(self) -> None:
        self._segment += 1
        if self._segment == len(self._bytes_per_s):
            self._segment = 0
            self.wraps += 1
        self.trace_s = self._edges_s[self._segment]


def run_session(
    trace: Trace, session: AbrSession, policy: AbrPolicy, seed: int, offset_s: float = 0.0, noise: float = 0.0
) -> tuple[Chunk, ...]:
    """The whole session under `policy`, which is reset with `seed`; chunk 0 has the session's first level.

    Raises `AnswerError` when the policy answers anything but a level of the ladder.
    """
    simulator = AbrSimulator(trace, session, offset_s, noise, np.random.default_rng([seed, 1]))
    policy.reset(session, seed)
    simulator.step(session.first_level)
    while not simulator.done:
        simulator.step(level_number(policy.decide(simulator.observation), session.video.levels))
    return simulator.history


def level_number(answer: Any, levels: int) -> int:
    """A policy's answer as a plain number (numpy's integers are levels, too). Raises `AnswerError` when it is none of `levels`."""
    try:
        level = int(index(answer))
    except TypeError:
        level = -1
    if not 0 <= level < levels:
        raise AnswerError(f"answered {answer!r:.200}, wanted a level of 0 to {levels - 1}")
    return level


def rates_of(trace: Trace) -> RateTrace:
    """What the simulator plays: delivery opportunities averaged over `OPPORTUNITY_BIN_S`."""
    return to_rates(trace, OPPORTUNITY_BIN_S) if isinstance(trace, OpportunityTrace) else trace


def _check_session(session: AbrSession) -> None:
    video = session.video
    if not 1 <= session.chunks <= len(video.sizes_bytes):
        raise UserError(f"{session.chunks} chunks were asked for, wanted 1 to the {len(video.sizes_bytes)} of video {video.name}")
    for a, b in pairwise(video.bitrates_bps):
        if not b > a:
            raise UserError(f"video {video.name}: bitrate {b} bit/s follows {a} bit/s, wanted a ladder that rises")
