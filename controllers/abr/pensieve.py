"""Pensieve: a small policy network, trained by reinforcement learning in the simulator, chooses the level."""

from typing import Literal, NamedTuple

import numpy as np

from controllers.api import AbrObservation, AbrPolicy
from controllers.ladder import LADDER_BPS, places
from controllers.weights import Weights, find_weights, read_weights
from testbed.errors import UserError
from testbed.units import bits_from_bytes, mbps_from_bps

SAMPLES = 8
"""Past chunks in the state (Pensieve, section 4.2)."""
HARMONIC = 5
"""Chunks in the harmonic mean of throughput (Yin et al., SIGCOMM 2015, section 6.1)."""
AHEAD = 5
"""Chunks after the next one whose relative sizes are told."""
SLOTS = len(LADDER_BPS)
FEATURES = 3 + SLOTS + 3 + 2 + 3 * SLOTS + AHEAD + 3 * SAMPLES + 4 + 2 * SLOTS
LEAST_TRANSFER_S = 1e-3
NO_RATE_LOG = -4.0
"""Log Mbit/s where there is no sample."""


class Seen(NamedTuple):
    """What is known of N sessions at the same chunk. Slots are places in `LADDER_BPS`; a slot without a level holds zeros."""

    past_bytes: np.ndarray
    """Sizes of the last chunks, (N, SAMPLES), newest last; 0 where there was none."""
    past_s: np.ndarray
    """Their download times, (N, SAMPLES)."""
    buffer_s: np.ndarray
    """(N,)"""
    last_slot: np.ndarray
    """Slot of the chunk downloaded last, (N,)."""
    slot_mbps: np.ndarray
    """Bitrates, (N, SLOTS)."""
    next_bytes: np.ndarray
    """Size of the next chunk, (N, SLOTS)."""
    ahead: np.ndarray
    """Log size over nominal of the chunks after the next, mean over levels, (N, AHEAD); 0 beyond the end."""
    chunk: int
    chunks: int
    chunk_s: float
    rtt_s: float
    buffer_cap_s: float


def features(seen: Seen) -> np.ndarray:
    """The network's input, (N, FEATURES), float32."""
    known = seen.past_s > 0  # (N, SAMPLES)
    transfer_s = np.where(known, np.maximum(seen.past_s - seen.rtt_s, LEAST_TRANSFER_S), 1.0)
    log_rates = np.where(known, np.log(np.maximum(mbps_from_bps(bits_from_bytes(seen.past_bytes)), 1e-9) / transfer_s), NO_RATE_LOG)
    log_times = np.where(known, np.log(transfer_s), 0.0)
    recent = known[:, -HARMONIC:]
    harmonic_mbps = recent.sum(1) / np.where(recent, np.exp(-log_rates[:, -HARMONIC:]), 0.0).sum(1)  # (N,)
    mean = np.where(known, log_rates, 0.0).sum(1) / known.sum(1)
    spread = np.sqrt(np.where(known, (log_rates - mean[:, None]) ** 2, 0.0).sum(1) / known.sum(1))
    lowest = np.where(recent, log_rates[:, -HARMONIC:], np.inf).min(1)

    exists = seen.slot_mbps > 0  # (N, SLOTS)
    log_mbps = np.log(np.where(exists, seen.slot_mbps, 1.0))
    next_mbit = np.where(exists, mbps_from_bps(bits_from_bytes(seen.next_bytes)), 1.0)
    relative = np.where(exists, np.log(next_mbit / (seen.chunk_s * np.exp(log_mbps))), 0.0)
    expected_s = next_mbit / harmonic_mbps[:, None]
    over_buffer = np.where(exists, np.clip(np.log(expected_s / (seen.buffer_s[:, None] + 0.1)), -3, 3), 0.0)
    one = np.ones(len(seen.buffer_s))
    columns = [
        np.stack([seen.buffer_s / 10, np.log1p(seen.buffer_s), seen.buffer_s / seen.buffer_cap_s], 1),
        np.eye(SLOTS)[seen.last_slot],
        one[:, None] * [seen.chunk / seen.chunks, min(seen.chunk, SAMPLES) / SAMPLES, min(seen.chunks - seen.chunk, 10) / 10],
        one[:, None] * [seen.rtt_s * 10, seen.buffer_cap_s / 60],
        exists,
        log_mbps,
        relative,
        seen.ahead,
        log_rates,
        log_times,
        known,
        np.stack([np.log(harmonic_mbps), mean, spread, lowest], 1),
        np.where(exists, np.log(expected_s), 0.0),
        over_buffer,
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


def seen_of(observation: AbrObservation) -> Seen:
    """One observation as a batch of one."""
    session, video, recent = observation.session, observation.video, observation.history[-SAMPLES:]
    place = places(video.bitrates_bps)
    filled, used = list(place.slots), list(place.levels)
    past = np.zeros((2, 1, SAMPLES))
    past[:, 0, SAMPLES - len(recent) :] = [chunk.size_bytes for chunk in recent], [chunk.download_s for chunk in recent]
    slot_mbps, next_bytes = np.zeros((2, 1, SLOTS))
    bitrates_bps, sizes_bytes = np.array([video.bitrates_bps], dtype=float)[:, used], np.array([video.sizes_bytes], dtype=float)[..., used]
    slot_mbps[0, filled] = mbps_from_bps(bitrates_bps[0])
    next_bytes[0, filled] = sizes_bytes[0, observation.chunk_index]
    last_slot = np.array([place.slot_of_level[observation.last_level]])
    ahead = relative_sizes(sizes_bytes, bitrates_bps, video.chunk_s)
    after = ahead_of(ahead, observation.chunk_index, session.chunks)
    constants = observation.chunk_index, session.chunks, video.chunk_s, session.rtt_s, session.buffer_cap_s
    return Seen(past[0], past[1], np.array([observation.buffer_s]), last_slot, slot_mbps, next_bytes, after, *constants)


def relative_sizes(sizes_bytes: np.ndarray, bitrates_bps: np.ndarray, chunk_s: float) -> np.ndarray:
    """Log size over nominal, mean over the levels there are, (videos, chunks), of (videos, chunks, levels) and (videos, levels)."""
    there = bitrates_bps[:, None, :] > 0
    logs = np.log(np.where(there, bits_from_bytes(sizes_bytes), 1.0) / np.where(there, bitrates_bps[:, None, :] * chunk_s, 1.0))
    return np.where(there, logs, 0.0).sum(2) / there.sum(2)


def ahead_of(relative: np.ndarray, chunk: int, chunks: int) -> np.ndarray:
    """The AHEAD columns after `chunk` of (videos, chunks); zeros from the session's end on."""
    after = np.zeros((len(relative), AHEAD))
    end = max(min(chunk + 1 + AHEAD, chunks), chunk + 1)
    after[:, : end - chunk - 1] = relative[:, chunk + 1 : end]
    return after


def log_probabilities(weights: Weights, inputs: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """The actor, (N, SLOTS): two hidden layers with ReLU; slots without a level have none."""
    hidden = np.maximum(inputs @ weights["actor.0.weight"].T + weights["actor.0.bias"], 0)
    hidden = np.maximum(hidden @ weights["actor.1.weight"].T + weights["actor.1.bias"], 0)
    logits = np.where(exists, hidden @ weights["actor.2.weight"].T + weights["actor.2.bias"], -np.inf)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Pensieve(AbrPolicy):
    """Pensieve (Mao et al., SIGCOMM 2017), trained here with PPO (Schulman et al., 2017) instead of A3C, on train splits only.

    The state is the paper's (last 8 throughputs and download times, next sizes, buffer, chunks left, last bitrate) with a few features
    derived from it, relative to the ladder, so that other ladders can be played (six of their levels at most). The paper samples in use;
    here use is greedy by default, which scores a little higher.

    | option | meaning |
    | --- | --- |
    | `weights` | a file made by `scripts/train pensieve`, or `pensieve-2`, `pensieve-3`: other seeds that ship; default: `pensieve` |
    | `decode` | `greedy`: the most probable level; `sample`: drawn from the probabilities |
    """

    label = "Pensieve"
    colour = "#ff7f0e"
    citation = "Mao et al., Neural Adaptive Video Streaming with Pensieve, SIGCOMM 2017 (PPO, as in its later releases)"

    def __init__(self, weights: str = "", decode: Literal["greedy", "sample"] = "greedy") -> None:
        path = find_weights(weights, "pensieve")
        self._weights = read_weights(path)
        first = self._weights.get("actor.0.weight")
        if first is None or first.shape[1] != FEATURES:
            raise UserError(f"policy pensieve: {path} holds no actor with {FEATURES} inputs, wanted a file made by scripts/train pensieve")
        self.decode = decode

    def decide(self, observation: AbrObservation) -> int:
        """A level of the actor's."""
        chances = self.probabilities(observation)
        return int(np.argmax(chances)) if self.decode == "greedy" else int(self.rng.choice(len(chances), p=chances))

    def probabilities(self, observation: AbrObservation) -> np.ndarray:
        """The actor's, (levels,)."""
        seen = seen_of(observation)
        place = places(observation.video.bitrates_bps)
        chances = np.zeros(observation.video.levels)
        chances[list(place.levels)] = np.exp(log_probabilities(self._weights, features(seen), seen.slot_mbps > 0)[0, list(place.slots)])
        return chances / chances.sum()
