"""The parts of a training step that tasks share: optimiser and rates. What is learnt is the task's: batches and loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np
import torch

from netllm.model import TaskModel


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with warm-up and cosine decay."""

    lr_lora: float = 6e-4
    """Peak learning rate of the LoRA matrices."""
    lr_modules: float = 1e-3
    """Peak learning rate of encoders and head, which start from nothing."""
    weight_decay: float = 0.01
    warmup_steps: int = 40
    """Optimiser steps (not micro-batches) until the peak."""
    final_share: float = 0.03
    """Learning rate at the end relative to the peak."""
    clip: float = 1.0
    """Largest norm of the gradient, taken once per optimiser step."""
    keep: float = 0.98
    """Of the running mean of weights, per optimiser step; 0: the weights of the last step alone."""
    batch: int = 32
    """Sessions per micro-batch."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""


def make_optimiser(model: TaskModel, settings: OptimiserSettings) -> torch.optim.AdamW:
    """Two groups: LoRA, and encoders with head."""
    groups = [
        {"params": list(model.switch.parameters()), "peak": settings.lr_lora},
        {"params": list(model.parameters()), "peak": settings.lr_modules},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr_lora, weight_decay=settings.weight_decay, betas=(0.9, 0.98))


def set_rate(optimiser: torch.optim.Optimizer, settings: OptimiserSettings, step: int, done: float) -> float:
    """Warm up over the first steps, then follow a cosine of the share `done` of the budget; returns the factor."""
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    decay = settings.final_share + (1 - settings.final_share) * (1 + cos(pi * min(done, 1.0))) / 2
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * warm * decay
    return warm * decay


def learning_of(model: TaskModel) -> dict[str, torch.nn.Parameter]:
    """All that training changes, by name."""
    return dict(model.named_parameters()) | {f"lora.{number}": matrix for number, matrix in enumerate(model.switch.parameters())}


def train_step(
    model: TaskModel,
    optimiser: torch.optim.Optimizer,
    settings: OptimiserSettings,
    batches: Sequence[Any],
    loss_of: Callable[[Any, Any], torch.Tensor],
) -> float:
    """One optimiser step over the micro-batches; returns the mean loss. `loss_of` is the task's, of model and batch."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = loss_of(model, batch) / len(batches)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.adapt_parameters(), settings.clip)
    optimiser.step()
    return total


def pick(seed: int, step: int, count: int, pools: Sequence[int]) -> list[tuple[int, int]]:
    """(pool, session) of each of `count` places of step `step`: a pool in turn, then any of its `pools[i]` sessions."""
    rng = np.random.default_rng([seed, 7, step])
    return [(i % len(pools), int(rng.integers(pools[i % len(pools)]))) for i in range(count)]
