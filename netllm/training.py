"""The training loop's parts: batches, loss, optimiser, checkpoints that survive kill -9. What to learn is decided in `adapt.py`."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from controllers.ladder import places
from controllers.learning.averaging import RunningMean
from netllm.experience import Episode
from netllm.heads import ALLOWED
from netllm.model import TaskModel, as_tensors
from netllm.tasks.abr import AbrTask, session_features
from testbed.errors import UserError

LABEL = "label"
WEIGHT = "weight"
POINTER = "checkpoint.json"


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


@dataclass(frozen=True)
class Progress:
    """How far training is; all that a resumed run has to know besides weights and moments."""

    step: int = 0
    """Optimiser steps done."""
    elapsed_s: float = 0.0
    """Time spent, over all runs."""
    rounds: int = 0
    """DAgger rounds done."""
    best_score: float = -1e9
    """Best in validation so far; more is better."""
    last_validation_s: float = 0.0
    """`elapsed_s` at the last validation."""
    validated: int = 0
    """Optimiser steps done at the last validation."""


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


def mean_of(model: TaskModel) -> RunningMean:
    """A running mean of all that training changes."""
    return RunningMean({str(i): parameter for i, parameter in enumerate(model.adapt_parameters())})


def kept_share(settings: OptimiserSettings, step: int) -> float:
    """Of the running mean at its update after `step` steps, 1 or more; its memory is short at first."""
    return min(settings.keep, step / (step + 10))


def train_step(
    model: TaskModel,
    optimiser: torch.optim.Optimizer,
    settings: OptimiserSettings,
    batches: Sequence[Any],
    loss_of: Callable[[Any, Any], torch.Tensor] = loss_of,
) -> float:
    """One optimiser step over the micro-batches; returns the mean loss. `loss_of` is the task's, of model and batch."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = loss_of(model, batch) / len(batches)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.adapt_parameters(), settings.clip)
    optimiser.step()
    return total


def pick(seed: int, step: int, count: int, pools: Sequence[int]) -> list[tuple[int, int]]:
    """(pool, session) of each of `count` places of step `step`: a pool in turn, then any of its `pools[i]` sessions."""
    rng = np.random.default_rng([seed, 7, step])
    return [(i % len(pools), int(rng.integers(pools[i % len(pools)]))) for i in range(count)]


def save_checkpoint(
    folder: Path, model: TaskModel, optimiser: torch.optim.Optimizer, mean: RunningMean, progress: Progress, asked: dict[str, Any]
) -> None:
    """Write a new folder, then let the pointer name it: at any moment one whole checkpoint exists. `asked` must be the same on resuming."""
    target = folder / f"checkpoint-{progress.step}"
    if _pointed_at(folder) == target:  # saved twice without a step between: the first must live until the pointer leaves it
        target = folder / f"checkpoint-{progress.step}-again"
    scratch = folder / f".checkpoint-{os.getpid()}"
    for stale in (scratch, target):
        shutil.rmtree(stale, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(_weights(model), scratch / "weights.safetensors")
    save_file(_moments(optimiser), scratch / "moments.safetensors")
    save_file(mean.weights, scratch / "mean.safetensors")
    os.replace(scratch, target)
    pointer = folder / f".{POINTER}"
    pointer.write_text(json.dumps({"folder": target.name, "model": _what(model, asked), **asdict(progress)}), encoding="utf-8")
    os.replace(pointer, folder / POINTER)
    for old in folder.glob("checkpoint-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def _pointed_at(folder: Path) -> Path | None:
    try:
        return folder / json.loads((folder / POINTER).read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_checkpoint(
    folder: Path, model: TaskModel, optimiser: torch.optim.Optimizer, mean: RunningMean, asked: dict[str, Any]
) -> Progress | None:
    """Set weights, moments and mean from the newest checkpoint; None when there is none. Raises `UserError` when it is another's."""
    if not (folder / POINTER).is_file():
        return None
    try:
        return _load_newest(folder, model, optimiser, mean, _what(model, asked))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / POINTER}: can't be resumed ({reason}), wanted the settings the run was started with") from error


def _load_newest(folder: Path, model: TaskModel, optimiser: torch.optim.Optimizer, mean: RunningMean, wanted: dict[str, Any]) -> Progress:
    facts: dict[str, Any] = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    newest = folder / facts.pop("folder")
    if (other := facts.pop("model")) != wanted:
        differing = sorted(name for name, value in wanted.items() if other.get(name) != value)
        raise ValueError(f"{', '.join(differing)} differ")
    weights = load_file(newest / "weights.safetensors")
    model.load_state_dict({name.removeprefix("modules."): tensor for name, tensor in weights.items() if name.startswith("modules.")})
    model.switch.load({name.removeprefix("lora."): tensor for name, tensor in weights.items() if name.startswith("lora.")})
    _set_moments(optimiser, load_file(newest / "moments.safetensors"))
    mean.fill(load_file(newest / "mean.safetensors"))
    return Progress(**facts)


def _what(model: TaskModel, asked: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint fits, as JSON gives it back."""
    what = {"task": asdict(model.task), "lora": asdict(model.switch.settings), "llm": model.backbone.name}  # type: ignore[call-overload]
    return json.loads(json.dumps(what | asked))


def _weights(model: TaskModel) -> dict[str, torch.Tensor]:
    modules = {f"modules.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    return modules | {f"lora.{name}": tensor for name, tensor in model.switch.state().items()}


def _trained(optimiser: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = {}
    for i, parameter in enumerate(_trained(optimiser)):
        for name, tensor in optimiser.state.get(parameter, {}).items():
            found[f"{i}.{name}"] = tensor.contiguous()
    return found


def _set_moments(optimiser: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    parameters = _trained(optimiser)
    for key, tensor in moments.items():
        number, _, name = key.partition(".")
        optimiser.state[parameters[int(number)]][name] = tensor
