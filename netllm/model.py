"""A task's model: encoders, the shared backbone with the task's adapter, and a head; and the reader that decides token by token.

A step is [return, state tokens ..., action]; the decision is read at the last state token, before the action is known. The tokens of a
whole session form one sequence, so that a single pass over it gives every decision of it to learn from (as in NetLLM, section 4.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from netllm.backbone import Backbone
from netllm.context import Context
from netllm.heads import ChoiceHead
from netllm.lora import LoraSettings, Switch

ACTION = "action"
"""The last token of every step."""
ALLOWED = "allowed"
STEP = "step"

Features = Mapping[str, np.ndarray]
"""One array per token name, plus `allowed` (choices that exist) and `step` (number of the decision); shape (B, T, ...)."""


class Task(Protocol):
    """What differs between tasks: which encoders, how many choices, how many steps."""

    @property
    def name(self) -> str:
        """`abr`, ..."""
        ...

    @property
    def choices(self) -> int:
        """Slots of the head."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps with an embedding of their own."""
        ...

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """One encoder per token of a step, in order; the last is `action`."""
        ...


@dataclass(frozen=True)
class StepLayout:
    """Where a step's tokens stand."""

    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return len(self.names)

    @property
    def decision(self) -> int:
        """Place in the step whose output gives the decision: the token before the action."""
        return self.tokens - 2


class TaskModel(nn.Module):
    """Encoders and head of one task around the shared, frozen backbone."""

    def __init__(self, backbone: Backbone, task: Task, lora: LoraSettings, adapter_name: str | None = None) -> None:
        super().__init__()
        self.task = task
        self.switch = Switch(backbone, lora, adapter_name or task.name)
        self._backbone = (backbone,)  # in a tuple, so that the backbone is no sub-module: its weights are not this task's
        encoders = task.encoders(backbone.width)
        self.layout = StepLayout(tuple(encoders))
        self.encoders = nn.ModuleDict(encoders)
        self.step = nn.Embedding(task.max_steps, backbone.width)
        self.norm = nn.LayerNorm(backbone.width)
        self.head = ChoiceHead(backbone.width, task.choices)
        nn.init.normal_(self.step.weight, std=0.02)
        nn.init.constant_(self.norm.weight, backbone.embedding_rms)

    @property
    def backbone(self) -> Backbone:
        """The shared backbone."""
        return self._backbone[0]

    def embed(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Every token of every step, (B, T, tokens, width), in the backbone's type."""
        tokens = torch.stack([self.encoders[name](features[name]) for name in self.layout.names], dim=2)
        steps = self.step(features[STEP].clamp(max=self.task.max_steps - 1)).unsqueeze(2)  # (B, T, 1, width)
        return self.norm(tokens + steps).to(self.backbone.dtype)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities (B, T, choices) of every decision of whole sessions, in one pass."""
        sequence = self.embed(features).flatten(1, 2)[:, :-1]  # (B, T * tokens - 1, width)
        with self.backbone.lock:
            self.switch.activate()
            hidden = self.backbone.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        return self.head(hidden[:, self.layout.decision :: self.layout.tokens], features[ALLOWED])

    def adapt_parameters(self) -> list[nn.Parameter]:
        """What training changes: this task's encoders, head and adapter, never the backbone."""
        return [*self.parameters(), *self.switch.parameters()]


class Reader:
    """Reads a batch of sessions that advance together, step by step, and gives the decision after each reading."""

    def __init__(self, model: TaskModel) -> None:
        self._model = model
        self._context = Context(model.backbone)
        self.steps = 0
        """Steps read, the last of them up to its decision."""

    @torch.inference_mode()
    def read(self, features: Features) -> np.ndarray:
        """Log-probabilities (B, choices) of the newest decision.

        `features` starts at step `max(steps - 1, 0)`: of that step, read before, only the action is new. The newest step's action is
        not known yet and is ignored.
        """
        model = self._model
        tokens = model.embed(as_tensors(features)).flatten(1, 2)[:, :-1]
        new = tokens[:, model.layout.decision + 1 :] if self.steps else tokens
        with model.backbone.lock:
            model.switch.activate()
            hidden = self._context.extend(new)[:, -1:]  # (B, 1, width)
        self.steps += features[STEP].shape[1] - bool(self.steps)
        return model.head(hidden, torch.from_numpy(features[ALLOWED][:, -1:])).squeeze(1).numpy()


def as_tensors(features: Features) -> dict[str, torch.Tensor]:
    """The same arrays as tensors, without copying."""
    return {name: torch.from_numpy(values) for name, values in features.items()}
