"""Sessions as batches to learn from, and the loss against their teachers' labels."""

from collections.abc import Sequence

import numpy as np
import torch

from controllers.ladder import places
from netllm.abr.experience import Episode
from netllm.heads import ALLOWED
from netllm.model import TaskModel, as_tensors
from netllm.tasks.abr import AbrTask, session_features

LABEL = "label"
WEIGHT = "weight"


def prepare(task: AbrTask, episodes: Sequence[Episode]) -> list[dict[str, np.ndarray]]:
    """Features and labels of each session, labels put into slots: one dictionary of arrays (T, ...) per session."""
    return [_prepared(task, episode) for episode in episodes]


def _prepared(task: AbrTask, episode: Episode) -> dict[str, np.ndarray]:
    features = session_features(task, episode.session, episode.chunks)
    labels = np.zeros((len(episode.chunks) - 1, task.choices), dtype=np.float32)
    for level, slot in enumerate(places(episode.session.video.bitrates_bps, task.ladder_bps).slot_of_level):
        labels[:, slot] += episode.labels[:, level]
    return features | {LABEL: labels, WEIGHT: np.ones(len(labels), dtype=np.float32)}


def stack(sessions: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A batch (B, T, ...). Shorter sessions are padded at their end, where attention to the past can't see it, with weight 0."""
    longest = max(len(each[WEIGHT]) for each in sessions)
    return {name: np.stack([_padded(each[name], longest, name) for each in sessions]) for name in sessions[0]}


def _padded(values: np.ndarray, length: int, name: str) -> np.ndarray:
    pad = np.zeros((length - len(values), *values.shape[1:]), dtype=values.dtype)
    if name == ALLOWED:
        pad[:] = True
    return np.concatenate([values, pad])


def loss_of(model: TaskModel, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """Mean cross-entropy against the teacher's probabilities over all decisions of the batch, in nats."""
    tensors = as_tensors(batch)
    log_probabilities = model(tensors)
    terms = torch.where(tensors[LABEL] > 0, tensors[LABEL] * log_probabilities, 0.0).sum(-1)  # (B, T)
    return -(terms * tensors[WEIGHT]).sum() / tensors[WEIGHT].sum()
