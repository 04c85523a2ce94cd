"""A small neural network predicts how far the head turns: the least that a language model has to beat."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpPolicy, VpSession
from controllers.headmoves import check_fitted, recent_deg
from controllers.weights import VP_SHIPPED, Weights, find_weights, read_weights
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.viewports import FRONT_DEG

SAMPLES = 10
"""Of history, 2 s."""
FEATURES = 6 * (SAMPLES - 1) + 4
LAYERS = 3
SCALE_DEG = np.array([20.0, 20.0, 40.0])
"""Roll, pitch, yaw: brings turns to order 1."""
STEP_DEG = SCALE_DEG / 4
"""The same for the turn from one sample to the next."""


def features(history_deg: np.ndarray) -> np.ndarray:
    """The network's input, (N, FEATURES), float32, of (N, SAMPLES, 3).

    Each earlier sample relative to the newest, the turns between samples, roll and pitch of the newest, its yaw as sine and cosine from
    the front.
    """
    count, newest_deg = len(history_deg), history_deg[:, -1]
    steps_deg = wrapped_deg(np.diff(history_deg, axis=1))  # (N, SAMPLES - 1, 3)
    relative_deg = -np.cumsum(steps_deg[:, ::-1], axis=1)[:, ::-1]
    from_front = np.radians(newest_deg[:, 2] - FRONT_DEG)
    parts = [
        (relative_deg / SCALE_DEG).reshape(count, -1),
        (steps_deg / STEP_DEG).reshape(count, -1),
        newest_deg[:, :2] / SCALE_DEG[:2],
        np.stack([np.sin(from_front), np.cos(from_front)], axis=1),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def turns_deg(weights: Weights, inputs: np.ndarray) -> np.ndarray:
    """How far each future sample is from the newest one, (N, horizon, 3), of (N, FEATURES): two hidden layers with ReLU."""
    x = inputs
    for i in range(LAYERS):
        x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        x = np.maximum(x, 0) if i < LAYERS - 1 else x
    return x.reshape(len(x), -1, 3) * SCALE_DEG


class Mlp(VpPolicy):
    """Newest sample plus what the network says of the last 2 s, trained for 6 s by `scripts/train vp_mlp` on every training window and its
    mirror image.

    `weights` is a file or the name of one that ships (`mlp-2` and `mlp-3` are other training seeds).
    """

    label = "MLP"
    colour = "#9467bd"
    citation = "this testbed: perceptron on relative head movement, absolute error (controllers/learning/vp_mlp.py)"

    def __init__(self, weights: str = "") -> None:
        path = find_weights(weights, "mlp", VP_SHIPPED)
        self.weights = read_weights(path)
        shapes = [self.weights[key].shape for i in range(LAYERS) if (key := f"layers.{i}.weight") in self.weights]
        if len(shapes) != LAYERS or shapes[0][1] != FEATURES or shapes[-1][0] % 3:
            raise UserError(f"{path}: layers have shapes {shapes}, wanted {LAYERS} from {FEATURES} inputs to 3 for each future sample")

    def reset(self, session: VpSession, seed: int) -> None:
        """Start `session`; refuses a rate or a horizon that it was not trained for."""
        super().reset(session, seed)
        check_fitted("mlp", session, len(self.weights[f"layers.{LAYERS - 1}.bias"]) // 3)

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[VpObservation]) -> np.ndarray:
        """(N, horizon, 3)"""
        history_deg = recent_deg(observations, SAMPLES)
        return history_deg[:, -1:] + turns_deg(self.weights, features(history_deg))[:, : self.session.horizon]
