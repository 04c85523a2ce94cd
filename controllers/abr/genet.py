"""Genet: a policy network that goes one level down, stays or goes one up, trained by an automatic curriculum."""

from typing import Literal, NamedTuple

import numpy as np

from controllers.api import AbrObservation, AbrPolicy
from controllers.weights import Weights, find_weights, read_weights
from testbed.errors import UserError

SAMPLES = 6
"""Past chunks in the state, and sizes of the next chunk."""
ROWS = ("last_bitrate", "buffer", "throughput", "delay", "next_sizes", "chunks_left")
"""Rows of the state; each has a branch of the network."""
WHOLE_ROWS = ("throughput", "delay", "next_sizes")
"""Rows read as a whole; of the others only the newest column is."""
HIDDEN = 128
ACTIONS = 3
"""Down, stay, up."""
TENS_S = 10.0
MEGA = 1e6
LONGEST = 48
"""Chunks left beyond this many are not told apart."""
DRAWS = 1000
"""A draw is u / 1000 with u from 1 to 999, as in Pensieve's and Genet's code."""


class Seen(NamedTuple):
    """What is known of N sessions at the same chunk."""

    past_bytes: np.ndarray
    """Sizes of the last chunks, (N, SAMPLES), newest last; 0 where there was none."""
    past_s: np.ndarray
    """Their download times, round trip included, (N, SAMPLES)."""
    buffer_s: np.ndarray
    """(N,)"""
    last_share: np.ndarray
    """Bitrate of the chunk downloaded last over the ladder's highest, (N,)."""
    next_bytes: np.ndarray
    """Sizes of the next chunk, (N, SAMPLES), from the lowest level to the highest."""
    chunks_left: int


def features(seen: Seen) -> np.ndarray:
    """The state, (N, 6, 6), float32: rows as in `ROWS`, the newest column last.

    | row | holds | unit | columns used |
    | --- | --- | --- | --- |
    | last_bitrate | bitrate of the last chunk | the ladder's highest (4300 kbit/s) | newest |
    | buffer | media in the buffer | 10 s | newest |
    | throughput | size over download time | Mbyte/s | 6 |
    | delay | download time | 10 s | 6 |
    | next_sizes | the next chunk at each level | Mbyte | 6 levels |
    | chunks_left | chunks to come | 48 | newest |
    """
    state = np.zeros((len(seen.buffer_s), len(ROWS), SAMPLES), np.float32)
    known = seen.past_s > 0
    state[:, 0, -1] = seen.last_share
    state[:, 1, -1] = seen.buffer_s / TENS_S
    state[:, 2] = np.where(known, seen.past_bytes / MEGA / np.where(known, seen.past_s, 1.0), 0.0)
    state[:, 3] = seen.past_s / TENS_S
    state[:, 4] = seen.next_bytes / MEGA
    state[:, 5, -1] = min(seen.chunks_left, LONGEST) / LONGEST
    return state


def seen_of(observation: AbrObservation) -> Seen:
    """One observation as a batch of one. A ladder of other than six levels lends the sizes of its levels nearest to six even steps."""
    video, recent = observation.video, observation.history[-SAMPLES:]
    past = np.zeros((2, 1, SAMPLES))
    past[:, 0, SAMPLES - len(recent) :] = [chunk.size_bytes for chunk in recent], [chunk.download_s for chunk in recent]
    share = video.bitrates_bps[observation.last_level] / video.bitrates_bps[-1]
    steps = np.round(np.linspace(0, video.levels - 1, SAMPLES)).astype(int)
    next_bytes = np.asarray(observation.next_sizes_bytes, dtype=float)[None, steps]
    return Seen(past[0], past[1], np.array([observation.buffer_s]), np.array([share]), next_bytes, observation.chunks_left)


def actor(weights: Weights, state: np.ndarray) -> np.ndarray:
    """Probabilities of down, stay and up, (N, 3), of states (N, 6, 6).

    A branch for each row, all joined into one hidden layer. The published code's convolutions along a row see a single step of six
    channels, which makes them dense layers too.
    """
    branches = [_dense(weights, name, state[:, i] if name in WHOLE_ROWS else state[:, i, -1:]) for i, name in enumerate(ROWS)]
    hidden = _dense(weights, "merge", np.concatenate(branches, axis=1))
    logits = hidden @ weights["out.weight"].T + weights["out.bias"]
    raised = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    chances: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return chances


def _dense(weights: Weights, name: str, inputs: np.ndarray) -> np.ndarray:
    return np.maximum(inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], 0)


def drawn(chances: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The action of each session, (N,): the first whose cumulated probability exceeds draw / 1000; draws (N,) are from 1 to 999."""
    return np.argmax(np.cumsum(chances, axis=1) > draws[:, None] / DRAWS, axis=1)


SHAPES = {
    **{f"{name}.weight": (HIDDEN, SAMPLES if name in WHOLE_ROWS else 1) for name in ROWS},
    **{f"{name}.bias": (HIDDEN,) for name in (*ROWS, "merge")},
    "merge.weight": (HIDDEN, HIDDEN * len(ROWS)),
    "out.weight": (ACTIONS, HIDDEN),
    "out.bias": (ACTIONS,),
}
"""Arrays of a weights file."""


class Genet(AbrPolicy):
    """Genet (Xia et al., SIGCOMM 2022): Pensieve's network with three actions, one level down, stay, one level up.

    Trained here, with Genet's curriculum (see `controllers/learning/genet.py`) but PPO instead of A3C, on train splits only. Use is
    sampled as in the published code: greedy, the authors' own weights lose a fifth of their QoE. Ours gain a little, but Genet samples.

    | option | meaning |
    | --- | --- |
    | `weights` | a file made by `scripts/train genet`, or the name of one that ships; default: `genet` |
    | `decode` | `sample`: drawn from the probabilities; `greedy`: the most probable action |

    Trained on a ladder of six levels; on any other it still goes one level at a time, and is shown six of its sizes.
    """

    label = "Genet"
    colour = "#17becf"
    citation = "Xia et al., Genet: Automatic Curriculum Generation for Learning Adaptation in Networking, SIGCOMM 2022"

    def __init__(self, weights: str = "", decode: Literal["sample", "greedy"] = "sample") -> None:
        path = find_weights(weights, "genet")
        self._weights = read_weights(path)
        for name, shape in SHAPES.items():
            if name not in self._weights or self._weights[name].shape != shape:
                found = self._weights[name].shape if name in self._weights else "none"
                raise UserError(f"policy genet: {path} holds {name} {found}, wanted {shape} (a file made by scripts/train genet)")
        self.decode = decode

    def decide(self, observation: AbrObservation) -> int:
        """One level from the last at most."""
        chances = actor(self._weights, features(seen_of(observation)))
        action = np.argmax(chances, axis=1) if self.decode == "greedy" else drawn(chances, self.rng.integers(1, DRAWS, size=1))
        return moved(observation.last_level, int(action[0]), observation.video.levels)

    def probabilities(self, observation: AbrObservation) -> np.ndarray:
        """The network's, (levels,); a move beyond the ladder stays."""
        chances = actor(self._weights, features(seen_of(observation)))[0]
        levels = np.zeros(observation.video.levels)
        for action, chance in enumerate(chances):
            levels[moved(observation.last_level, action, len(levels))] += chance
        return levels


def moved(last_level: int, action: int, levels: int) -> int:
    """The level that an action leads to: 0 down, 1 stay, 2 up, kept within the ladder."""
    return min(max(last_level + action - 1, 0), levels - 1)
