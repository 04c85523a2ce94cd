"""A task's model: encoders, the shared backbone with the task's adapter, and a head; and the reader that decides step by step.

A step is one token per group of modalities: each modality has its own encoder, and what the encoders of a group say is added. The action
taken enters with the step after it, so a decision is always read at its step's last token. The tokens of a whole session form one
sequence: a single pass over it gives every decision of it to learn from (as in NetLLM, section 4.3).
"""

from collections.abc import Mapping
from dataclasses import Field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from netllm.backbone import Backbone
from netllm.context import Context, band
from netllm.decoder import Decoder, suits
from netllm.lora import LoraSettings, Switch

STEP = "step"

Features = Mapping[str, np.ndarray]
"""One array per modality, plus `step` (number of the decision) and what the head asks for (`allowed`); shape (B, T, ...)."""


class Task(Protocol):
    """What differs between tasks: which encoders, how they share tokens, which head, how many steps. A dataclass, kept in the adapter."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """`abr`, ..."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps with an embedding of their own."""
        ...

    @property
    def context_steps(self) -> int:
        """Steps that a token attends to, its own included; 0: all of the session."""
        ...

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The tokens of a step, in order, each with the modalities added up in it."""
        ...

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """One encoder per modality."""
        ...

    def head(self, width: int) -> nn.Module:
        """What turns the backbone's outputs (B, T, width) and the features into answers (B, T, ...)."""
        ...


class TaskModel(nn.Module):
    """Encoders and head of one task around the shared, frozen backbone."""

    def __init__(self, backbone: Backbone, task: Task, lora: LoraSettings, adapter_name: str | None = None) -> None:
        super().__init__()
        self.task = task
        self.switch = Switch(backbone, lora, adapter_name or task.name)
        self._decoder: Decoder | None = None
        self._backbone = (backbone,)  # in a tuple, so that the backbone is no sub-module: its weights are not this task's
        try:
            self._build(backbone, task)
        except BaseException:  # Ctrl-C, too: a model that was never made must not keep its name on the shared backbone
            self.switch.remove()
            raise

    def _build(self, backbone: Backbone, task: Task) -> None:
        self.encoders = nn.ModuleDict(task.encoders(backbone.width))
        self.step = nn.Embedding(task.max_steps, backbone.width)
        self.norm = nn.LayerNorm(backbone.width)
        self.head = task.head(backbone.width)
        nn.init.normal_(self.step.weight, std=0.02)
        nn.init.constant_(self.norm.weight, backbone.embedding_rms)

    @property
    def backbone(self) -> Backbone:
        """The shared backbone."""
        return self._backbone[0]

    @property
    def step_tokens(self) -> int:
        """Tokens a step."""
        return len(self.task.groups)

    def embed(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tokens of all steps in one sequence, (B, T * step_tokens, width), in the backbone's type."""
        steps = self.step(features[STEP].clamp(max=self.task.max_steps - 1))  # (B, T, width)
        tokens = [sum((self.encoders[name](features[name]) for name in group), start=steps) for group in self.task.groups]
        sequence: torch.Tensor = self.norm(torch.stack(tokens, dim=2).flatten(1, 2))
        return sequence.to(self.backbone.dtype)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The head's answers (B, T, ...) to every decision of whole sessions, in one pass."""
        sequence = self.embed(features)
        tokens = sequence.shape[1]
        limits = band(tokens, tokens, self.task.context_steps, self.step_tokens, sequence.dtype)
        with self.backbone.lock:
            self.switch.activate()
            hidden = self.backbone.model(inputs_embeds=sequence, use_cache=False, **limits).last_hidden_state
        return self.head(hidden[:, self.step_tokens - 1 :: self.step_tokens], features)

    def new_context(self) -> Context:
        """An empty context for a batch of sessions."""
        decoder = self._decoder if self.switch.merged else None  # it was made of the matrices that were merged
        return Context(self.backbone, self.task.context_steps, self.step_tokens, decoder)

    def merge(self, exact: bool = False) -> None:
        """Decide from now on with the matrices as they are merged into the backbone's weights, and by the quicker pass if there is one.

        `exact`: in the backbone's type throughout, where that pass would read some weights in 4 bits.
        """
        self.switch.merge()
        self._decoder = Decoder(self.backbone.model, self.switch.name, exact) if suits(self.backbone.model) else None

    def adapt_parameters(self) -> list[nn.Parameter]:
        """What training changes: this task's encoders, head and adapter, never the backbone."""
        return [*self.parameters(), *self.switch.parameters()]


class Reader:
    """Reads a batch of sessions that advance together, step by step, and gives the head's answer after each reading."""

    def __init__(self, model: TaskModel) -> None:
        self._model = model
        self._context = model.new_context()
        self.steps = 0
        """Steps read."""

    @torch.inference_mode()
    def read(self, features: Features) -> np.ndarray:
        """The head's answer (B, ...) to the newest decision; `features` starts with the first step not read yet."""
        model = self._model
        with model.backbone.lock:
            model.switch.activate()
            hidden = self._context.extend(model.embed(as_tensors(features)))[:, -1:]  # (B, 1, width)
        self.steps += features[STEP].shape[1]
        newest = as_tensors({name: values[:, -1:] for name, values in features.items()})
        answers: torch.Tensor = model.head(hidden, newest)
        return answers.squeeze(1).numpy()


def as_tensors(features: Features) -> dict[str, torch.Tensor]:
    """The same arrays as tensors, without copying."""
    return {name: torch.from_numpy(values) for name, values in features.items()}
