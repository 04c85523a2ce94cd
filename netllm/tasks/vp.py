"""VP as the language model sees it: one token for every few samples of history; the answer is the whole horizon at once.

| modality | content |
| --- | --- |
| motion | the last samples up to the token's newest: each relative to the newest, the turn from one to the next, whether there was one |
| heading | roll and pitch of the newest; its yaw as sine and cosine from the front, or that no front is known |
| image | features of the frame on screen, or that there is none; only with `image_features` |

The answer is a turn from the newest sample, in units that bring turns to order 1: what the model adds to a base, the prediction of a small
predictor that ships, or, where no front is known, to a head that stays. One pass gives all future samples (NetLLM's code takes 20 passes,
each with a sample more). Beyond the samples learnt the base goes on, and what is added stays.
A token sees the tokens before it, so that a sequence of T tokens teaches T histories in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from controllers.vp import linear_l1, mlp
from controllers.weights import VP_SHIPPED, Weights, find_weights, read_weights
from netllm.encoders import ScalarEncoder, SeriesEncoder
from netllm.heads import BASE, PathHead
from netllm.model import STEP, Reader, TaskModel
from testbed.vp_metrics import wrapped_deg
from traces.viewports import ANGLES, FRONT_DEG

SCALE_DEG = np.array([20.0, 20.0, 40.0], dtype=np.float32)
"""Roll, pitch, yaw: brings turns to order 1."""
STEP_DEG = SCALE_DEG / 4
"""The same for the turn from one sample to the next."""
CHANNELS = 2 * len(ANGLES) + 1
HEADING = 5
MOTION, HEADING_NAME, IMAGE = "motion", "heading", "image"
MODALITIES = (MOTION, HEADING_NAME, IMAGE)


@dataclass(frozen=True)
class VpTask:
    """The task's settings, kept in the adapter."""

    horizon: int = 20
    """Future samples that the head answers: 4 s, the usual horizon of NetLLM's evaluation."""
    samples: int = 10
    """Samples that a token tells, its newest included: 2 s, the usual history."""
    stride: int = 5
    """Samples from one token's newest to the next one's."""
    tokens: int = 2
    """Tokens at most: what lies further back is not told."""
    hidden: int = 256
    """Width inside the encoders."""
    heading: bool = True
    """Tell the yaw from the front, where the data set has one."""
    base: Literal["mlp", "linear_l1", "last"] = "mlp"
    """What the model adds to: one of the small predictors that ship, or the newest sample."""
    image_features: int = 0
    """Width of the image features (768 for ViT-B); 0: no image is told."""
    name: ClassVar[str] = "vp"
    context_steps: ClassVar[int] = 0

    @property
    def max_steps(self) -> int:
        """Tokens with an embedding of their own."""
        return self.tokens

    @property
    def longest(self) -> int:
        """Samples of history that make a difference."""
        return self.stride * (self.tokens - 1) + self.samples

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """One token a step, the sum of its modalities."""
        return (MODALITIES if self.image_features else MODALITIES[:-1],)

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """One per modality that is told."""
        made = {
            MOTION: SeriesEncoder(CHANNELS, self.samples - 1, width, self.hidden),
            HEADING_NAME: ScalarEncoder(HEADING, width, self.hidden),
        }
        return made | ({IMAGE: ScalarEncoder(self.image_features + 1, width, self.hidden)} if self.image_features else {})

    def head(self, width: int) -> nn.Module:
        """The whole horizon, three axes."""
        return PathHead(width, self.horizon, len(ANGLES))


def features(
    task: VpTask, history_deg: np.ndarray, front: np.ndarray | bool = True, images: np.ndarray | None = None, horizon: int = 0
) -> dict[str, np.ndarray]:
    """The tokens of N histories of equal length, (N, T, ...), of (N, H, 3) degrees; the newest sample is the last token's.

    `front` says where the yaw of the front is known, (N,); `images` are the features of the frames at the newest samples,
    (N, image_features), told with the last token, NaN where there is no frame. `horizon` is the number of future samples wanted; 0: those
    learnt.
    """
    known_deg = history_deg[:, -task.longest :]
    count, length = known_deg.shape[:2]
    steps = min(-(-length // task.stride), task.tokens)
    ends = length - task.stride * np.arange(steps - 1, -1, -1)  # (T,)
    rows = ends[:, None] + np.arange(-task.samples, 0)  # (T, samples)
    seen_deg = known_deg[:, np.maximum(rows, 0)]  # (N, T, samples, 3): before the oldest the head stood still
    told = task.heading & np.broadcast_to(np.asarray(front), count)
    made = {
        MOTION: _motion(seen_deg, rows >= 0),
        HEADING_NAME: _heading(seen_deg[:, :, -1], told),
        STEP: np.broadcast_to(np.arange(steps), (count, steps)).copy(),
        BASE: _base(task, seen_deg, np.broadcast_to(np.asarray(front), count), horizon or task.horizon),
    }
    return made | ({IMAGE: _images(task, images, count, steps)} if task.image_features else {})


def _motion(seen_deg: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N, T, CHANNELS, samples - 1) of (N, T, samples, 3); `known` (T, samples)."""
    turns_deg = wrapped_deg(np.diff(seen_deg, axis=2))
    relative_deg = -np.cumsum(turns_deg[:, :, ::-1], axis=2)[:, :, ::-1]
    flags = np.broadcast_to(known[:, :-1, None], (*turns_deg.shape[:3], 1))
    return np.concatenate([relative_deg / SCALE_DEG, turns_deg / STEP_DEG, flags], axis=3).swapaxes(2, 3).astype(np.float32)


def _heading(newest_deg: np.ndarray, told: np.ndarray) -> np.ndarray:
    """(N, T, HEADING) of (N, T, 3); `told` (N,)."""
    from_front = np.radians(newest_deg[:, :, 2] - FRONT_DEG)
    flag = np.broadcast_to(told[:, None], from_front.shape)
    parts = [*np.moveaxis(newest_deg[:, :, :2] / SCALE_DEG[:2], -1, 0), flag * np.sin(from_front), flag * np.cos(from_front), flag]
    return np.stack(parts, axis=-1).astype(np.float32)


def _base(task: VpTask, seen_deg: np.ndarray, front: np.ndarray, horizon: int) -> np.ndarray:
    """(N, T, horizon, 3) of (N, T, samples, 3); `front` (N,)."""
    count, steps, samples, axes = seen_deg.shape
    base = np.zeros((count, steps, horizon, axes), dtype=np.float32)
    if task.base == "last" or not front.any():
        return base
    wanted = (mlp if task.base == "mlp" else linear_l1).SAMPLES
    lacking = max(wanted - samples, 0)
    told_deg = np.concatenate([np.repeat(seen_deg[:, :, :1], lacking, axis=2), seen_deg[:, :, -wanted:]], axis=2)
    told_deg = told_deg.reshape(-1, wanted, axes)
    weights = _weights(task.base)
    if task.base == "mlp":
        turns_deg = mlp.turns_deg(weights, mlp.features(told_deg))
    else:
        turns_deg = linear_l1.features(told_deg) @ weights["coefficients"]
    base[:] = extended(turns_deg.reshape(count * steps, -1, axes), horizon).reshape(base.shape) / SCALE_DEG
    base[~front] = 0.0
    return base


@cache
def _weights(base: str) -> Weights:
    return read_weights(find_weights("", base, VP_SHIPPED))


def _images(task: VpTask, images: np.ndarray | None, count: int, steps: int) -> np.ndarray:
    """(N, T, image_features + 1): zeros where there is no frame, and whether there is one."""
    told = np.zeros((count, steps, task.image_features + 1), dtype=np.float32)
    if images is not None:
        told[:, -1, -1] = there = np.isfinite(images).all(axis=1)
        told[:, -1, :-1] = np.where(there[:, None], images, 0.0)
    return told


@torch.inference_mode()
def predict_turns_deg(model: TaskModel, told: dict[str, np.ndarray]) -> np.ndarray:
    """How far each future sample is from the newest one, (N, horizon, 3) degrees, of `features` with that horizon."""
    return Reader(model).read(told) * SCALE_DEG


def extended(turns_deg: np.ndarray, horizon: int) -> np.ndarray:
    """Turns (N, learnt, 3) for `horizon` samples, (N, horizon, 3): after those learnt the head stays where it is."""
    return turns_deg[:, np.minimum(np.arange(horizon), turns_deg.shape[1] - 1)]


def alike(lengths: Sequence[int]) -> dict[int, list[int]]:
    """The rows of each length: what has one length is computed together."""
    rows: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows.setdefault(length, []).append(row)
    return rows
