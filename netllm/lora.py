"""LoRA on the shared backbone: several adapters side by side, switched by name; on disk they are PEFT's.

The matrices are kept in float32 to train and used in the backbone's type, so that no layer converts its input and back. Who only decides
merges them: then a layer computes with a weight of its adapter's own, one product instead of three.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from netllm.backbone import Active, Backbone
from testbed.errors import UserError, suggestion

PREFIX = "base_model.model."
"""Begins every name in PEFT's files."""


@dataclass(frozen=True)
class LoraSettings:
    """Rank and strength of the adapter (Hu et al., ICLR 2022); `alpha` over `rank` scales its output."""

    rank: int = 16
    """0: no LoRA at all, the backbone computes as it came and only encoders and head learn."""
    alpha: int = 32
    targets: tuple[str, ...] = ()
    """Names of the adapted modules; empty: those that peft names for this architecture."""


def target_modules(backbone: Backbone) -> tuple[str, ...]:
    """The attention projections of this architecture: peft's table, else every linear layer inside an attention module."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(backbone.model.config.model_type)
    present = {_last(name) for name, _ in _linear_layers(backbone.model)}
    chosen = tuple(name for name in known or () if name in present) or tuple(sorted(_in_attention(backbone.model)))
    if not chosen:
        architecture = backbone.model.config.model_type
        raise UserError(f"language model {backbone.name} ({architecture}) has no linear layer in an attention module, wanted one to adapt")
    return chosen


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return ((name.removesuffix(".base_layer"), module) for name, module in linear)


def _in_attention(model: nn.Module) -> set[str]:
    return {_last(name) for name, _ in _linear_layers(model) if "attn" in name or "attention" in name}


class Adapted(nn.Module):
    """A frozen linear layer, and the low-rank additions to it by adapter; computes with the active one, if that has matrices here."""

    def __init__(self, base_layer: nn.Linear | Conv1D, active: Active) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        self._active, self._scale = active, dict[str, float]()
        self._merged = dict[str, torch.Tensor]()
        weight = base_layer.weight
        self.inputs, self.outputs = weight.shape if isinstance(base_layer, Conv1D) else weight.shape[::-1]

    def add(self, name: str, rank: int, scale: float) -> None:
        """New matrices: `a` drawn as in PEFT, `b` zero, so that nothing changes yet."""
        a = torch.empty(rank, self.inputs)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_a[name], self.lora_b[name] = nn.Parameter(a), nn.Parameter(torch.zeros(self.outputs, rank))
        self._scale[name] = scale

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        del self.lora_a[name], self.lora_b[name], self._scale[name]
        self.separate(name)

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Compute with one weight, (outputs, inputs), for this adapter: added up in float32, then rounded to the base layer's type."""
        base = self.base_layer.weight
        weight = (base.T if isinstance(self.base_layer, Conv1D) else base).float()
        added = self.lora_b[name].float() @ self.lora_a[name].float()
        self._merged[name] = torch.add(weight, added, alpha=self._scale[name]).to(base.dtype).contiguous()

    def separate(self, name: str) -> None:
        """Undo `merge`: compute with the matrices as they are now."""
        self._merged.pop(name, None)

    def weight_with(self, name: str) -> torch.Tensor:
        """The weight, (outputs, inputs), to compute with for an adapter that is merged, or has no matrices here."""
        return self._merged.get(name, self.base_layer.weight)

    def matrices(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added for an adapter: `a` (rank, inputs), and `b` (outputs, rank) times its scale; copies, float32."""
        return self.lora_a[name].detach().float(), self.lora_b[name].detach().float() * self._scale[name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        name = self._active.adapter
        if name in self._merged and not torch.is_grad_enabled():  # what is merged learns nothing
            return nn.functional.linear(x, self._merged[name], self.base_layer.bias)
        if name not in self._scale:
            return self.base_layer(x)
        a, b = self.lora_a[name].to(x.dtype), self.lora_b[name].to(x.dtype)
        added = nn.functional.linear(nn.functional.linear(x, a), b)
        return torch.add(self.base_layer(x), added, alpha=self._scale[name])


class Switch:
    """One named adapter on a backbone: `activate` makes the backbone compute with it."""

    def __init__(self, backbone: Backbone, settings: LoraSettings, name: str) -> None:
        self.name = name = f"netllm_{name}".replace(".", "_")
        self.settings = settings
        self.merged = False
        """Whether the backbone's weights hold this adapter's matrices as they are now."""
        self._model, self._active, self._lock = backbone.model, backbone.active, backbone.lock
        self.targets = settings.targets or target_modules(backbone)
        present = {_last(place) for place, _ in _linear_layers(backbone.model)}
        if unknown := sorted(set(self.targets) - present):  # else it would train without LoRA and not say so
            raise UserError(f"LoRA target {unknown[0]!r} is unknown in {backbone.name}: {suggestion(unknown[0], present)}")
        with backbone.lock:
            if name in backbone.active.known:
                raise ValueError(f"the backbone has an adapter named {name} already")
            backbone.active.known.add(name)
            try:
                if settings.rank:
                    self._inject()
            except BaseException:  # else the name would be taken for ever
                self.remove()
                raise

    def _inject(self) -> None:
        chosen = [(place, module) for place, module in _linear_layers(self._model) if _last(place) in self.targets]
        for place, _ in chosen:
            parent, _, attribute = place.rpartition(".")
            holder = self._model.get_submodule(parent)
            layer = getattr(holder, attribute)
            if not isinstance(layer, Adapted):
                layer = Adapted(layer, self._active)
                setattr(holder, attribute, layer)
            layer.add(self.name, self.settings.rank, self.settings.alpha / self.settings.rank)

    def _layers(self) -> list[tuple[str, Adapted]]:
        """Those that have matrices of this adapter, by place."""
        adapted = ((place, module) for place, module in self._model.named_modules() if isinstance(module, Adapted))
        return [(place, module) for place, module in adapted if self.name in module.lora_a]

    def activate(self) -> None:
        """Compute with this adapter from now on. The caller holds the backbone's lock. Raises `RuntimeError` when it was removed."""
        if self.name not in self._active.known:
            raise RuntimeError(f"adapter {self.name} was taken off the backbone")
        self._active.adapter = self.name

    def parameters(self) -> Iterable[nn.Parameter]:
        """This adapter's matrices."""
        return [matrix for _, layer in self._layers() for matrix in (layer.lora_a[self.name], layer.lora_b[self.name])]

    def merge(self) -> None:
        """Decide from now on with a private copy of the adapted weights, to which the matrices are added; `load` undoes it.

        What is adapted takes its memory twice (27 MB of SmolLM2's 212 in bfloat16); other adapters and training keep the shared weights.
        """
        with self._lock:
            for _, layer in self._layers():
                layer.merge(self.name)
            self.merged = True

    @property
    def config(self) -> LoraConfig:
        """The settings as PEFT's file holds them."""
        settings = self.settings
        return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=sorted(self.targets))

    def _named(self) -> dict[str, nn.Parameter]:
        """The matrices under the names of PEFT's file format."""
        found = {}
        for place, layer in self._layers():
            found[f"{PREFIX}{place}.lora_A.weight"] = layer.lora_a[self.name]
            found[f"{PREFIX}{place}.lora_B.weight"] = layer.lora_b[self.name]
        return found

    def state(self) -> dict[str, torch.Tensor]:
        """The matrices under the names of PEFT's file format, detached."""
        return {name: matrix.detach().contiguous() for name, matrix in self._named().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Set the matrices. Raises `ValueError` when names or shapes are not this adapter's."""
        own = self._named()
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        seen = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if seen != wanted:
            name = sorted(set(seen.items()) ^ set(wanted.items()))[0][0]
            raise ValueError(f"{name} has shape {seen.get(name)}, wanted {wanted.get(name)}")
        with self._lock, torch.no_grad():
            self.merged = False
            for _, layer in self._layers():
                layer.separate(self.name)
            for name, matrix in own.items():
                matrix.copy_(state[name])

    def remove(self) -> None:
        """Take the adapter off the backbone."""
        with self._lock:
            for _, layer in self._layers():
                layer.remove(self.name)
            self._active.known.discard(self.name)
            if self._active.adapter == self.name:
                self._active.adapter = ""
