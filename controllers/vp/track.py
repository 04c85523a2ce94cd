"""TRACK: a recurrent network reads the head's movement, then writes the future sample by sample; it may see what is salient on screen."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpPolicy, VpSession
from controllers.headmoves import check_fitted, recent_deg
from controllers.weights import VP_SHIPPED, Weights, find_weights, read_story, read_weights
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.saliency import GRID, saliency
from traces.viewports import FRONT_DEG

SAMPLES = 10
"""Of history, 2 s."""
INPUTS = 7
CELLS = GRID[0] * GRID[1]
SCALE_DEG = np.array([20.0, 20.0, 40.0])
"""Roll, pitch, yaw: brings turns to order 1."""
STEP_DEG = SCALE_DEG / 4
"""The same for the turn from one sample to the next."""


def inputs(angles_deg: np.ndarray, newest_deg: np.ndarray) -> np.ndarray:
    """What the network is told of one sample, (N, INPUTS): where it is from the newest of the history, its roll and pitch, its yaw as sine
    and cosine from the front. Both (N, 3) degrees."""
    turn_deg = wrapped_deg(angles_deg - newest_deg)
    from_front = np.radians(angles_deg[:, 2] - FRONT_DEG)
    parts = [turn_deg / SCALE_DEG, angles_deg[:, :2] / SCALE_DEG[:2], np.sin(from_front)[:, None], np.cos(from_front)[:, None]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def lstm(weights: Weights, name: str, x: np.ndarray, state: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One step of a long short-term memory (gates in PyTorch's order): the new (hidden, cell), each (N, width)."""
    hidden, cell = state
    gates = x @ weights[f"{name}.weight_ih"].T + hidden @ weights[f"{name}.weight_hh"].T + weights[f"{name}.bias_ih"]
    enter, forget, content, leave = np.split(gates + weights[f"{name}.bias_hh"], 4, axis=1)
    cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(content)
    return _sigmoid(leave) * np.tanh(cell), cell


def predicted_deg(weights: Weights, history_deg: np.ndarray, horizon: int, maps: np.ndarray | None = None) -> np.ndarray:
    """(N, horizon, 3) of (N, SAMPLES, 3); `maps` (N, CELLS) for weights that have a saliency branch."""
    newest_deg = history_deg[:, -1]
    width = weights["out.weight"].shape[1]
    zero = np.zeros((len(history_deg), width), dtype=np.float32)
    state = fused = (zero, zero)
    for i in range(history_deg.shape[1] - 1):
        state = lstm(weights, "reader", inputs(history_deg[:, i], newest_deg), state)
    content = None if maps is None else np.maximum(maps @ weights["content.weight"].T + weights["content.bias"], 0)
    now_deg, found = newest_deg, []
    for _ in range(horizon):
        state = lstm(weights, "reader", inputs(now_deg, newest_deg), state)
        seen = state[0]
        if content is not None:
            fused = lstm(weights, "fusion", np.concatenate([seen, content], axis=1), fused)
            seen = fused[0]
        now_deg = now_deg + (seen @ weights["out.weight"].T + weights["out.bias"]) * STEP_DEG
        found.append(now_deg)
    return np.stack(found, axis=1)


class Track(VpPolicy):
    """TRACK's trajectory branch, and its saliency branch for weights trained with frames, by `scripts/train vp_track`.

    As published: a long short-term memory reads the past positions, goes on with what it predicts itself, and each of its answers is a
    turn from the sample before; with saliency, a second one joins the picture. Differs: the angles are the data set's, relative to the
    newest sample; reader and writer are one network; the absolute error is learnt; the saliency is that of the frame on screen (not of
    future ones), by spectral residual (`traces/saliency.py`), and its branch is simpler: the published one has a recurrent network for
    past and future maps and fuses in the encoder, too; here a dense layer reads the one frame, and only the decoder fuses.

    `weights` is a file or the name of one that ships.
    """

    label = "TRACK"
    colour = "#8c564b"
    citation = (
        "Rondon et al., TRACK: A New Method From a Re-Examination of Deep Architectures for Head Motion Prediction, IEEE TPAMI 44(9), 2022"
    )

    def __init__(self, weights: str = "") -> None:
        path = find_weights(weights, "track", VP_SHIPPED)
        self.weights = read_weights(path)
        shape = self.weights.get("reader.weight_ih", np.zeros(0)).shape
        if len(shape) != 2 or shape[1] != INPUTS or "out.weight" not in self.weights:
            raise UserError(f"{path}: the reader has shape {shape}, wanted a network from {INPUTS} inputs")
        self.horizon = int(read_story(path).get("horizon", 0))

    def reset(self, session: VpSession, seed: int) -> None:
        """Start `session`; refuses a rate or a horizon that it was not trained for."""
        super().reset(session, seed)
        check_fitted("track", session, self.horizon)

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[VpObservation]) -> np.ndarray:
        """(N, horizon, 3)"""
        history_deg = recent_deg(observations, SAMPLES)
        maps = np.stack([saliency(each.frame).ravel() for each in observations]) if "content.weight" in self.weights else None
        return predicted_deg(self.weights, history_deg, self.session.horizon, maps)
