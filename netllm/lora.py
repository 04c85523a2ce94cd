"""LoRA on the shared backbone, by peft: several adapters side by side, switched in place per request."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from netllm.backbone import Backbone
from testbed.errors import UserError


@dataclass(frozen=True)
class LoraSettings:
    """Rank and strength of the adapter (Hu et al., ICLR 2022); `alpha` over `rank` scales its output."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ()
    """Names of the adapted modules; empty: those that peft names for this architecture."""


def target_modules(backbone: Backbone) -> tuple[str, ...]:
    """The attention projections of this architecture: peft's table, else every linear layer inside an attention module."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(backbone.model.config.model_type)
    present = {name.rpartition(".")[2] for name, _ in _linear_layers(backbone.model)}
    chosen = tuple(name for name in known or () if name in present) or tuple(sorted(_in_attention(backbone.model)))
    if not chosen:
        architecture = backbone.model.config.model_type
        raise UserError(f"language model {backbone.name} ({architecture}) has no linear layer in an attention module, wanted one to adapt")
    return chosen


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return ((name.removesuffix(".base_layer"), module) for name, module in linear if ".lora_" not in name)


def _in_attention(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in _linear_layers(model) if "attn" in name or "attention" in name}


class Switch:
    """One named adapter on a backbone: `activate` makes the backbone compute with it."""

    def __init__(self, backbone: Backbone, settings: LoraSettings, name: str) -> None:
        self.name = name = f"netllm_{name}"  # peft makes it an attribute of torch modules, which have attributes such as `float`
        self._model, self._active = backbone.model, backbone.active
        targets = settings.targets or target_modules(backbone)
        self.config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=list(targets), inference_mode=False
        )
        with backbone.lock:
            if any(name in layer.lora_A for layer in self._layers()):
                raise ValueError(f"the backbone has an adapter named {name} already")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # peft warns of a second adapter, which is what we want
                inject_adapter_in_model(self.config, self._model, adapter_name=name)
            self._active.adapter = ""
            self.cast(torch.float32)

    def _layers(self) -> list[LoraLayer]:
        return [module for module in self._model.modules() if isinstance(module, LoraLayer)]

    def activate(self) -> None:
        """Compute with this adapter from now on. The caller holds the backbone's lock."""
        if self._active.adapter != self.name:
            for layer in self._layers():
                layer.set_adapter(self.name)
            self._active.adapter = self.name

    def parameters(self) -> Iterable[nn.Parameter]:
        """This adapter's matrices."""
        return [parameter for _, parameter in self._named()]

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._model.named_parameters() if "lora_" in name and f".{self.name}." in name]

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the matrices in `dtype`: float32 to train, the backbone's own to decide."""
        for _, parameter in self._named():
            parameter.data = parameter.data.to(dtype)

    def state(self) -> dict[str, torch.Tensor]:
        """The matrices under the names of PEFT's file format."""
        own = get_peft_model_state_dict(self._model, adapter_name=self.name, save_embedding_layers=False)  # True may ask the network
        return {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in own.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Set the matrices. Raises `ValueError` when names or shapes are not this adapter's."""
        wanted = {name: tuple(tensor.shape) for name, tensor in self.state().items()}
        seen = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if seen != wanted:
            name = sorted(set(seen.items()) ^ set(wanted.items()))[0][0]
            raise ValueError(f"{name} has shape {seen.get(name)}, wanted {wanted.get(name)}")
        set_peft_model_state_dict(
            self._model, {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}, adapter_name=self.name
        )

    def remove(self) -> None:
        """Take the adapter off the backbone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft warns that another adapter becomes active
            for layer in self._layers():
                layer.delete_adapter(self.name)
        self._active.adapter = ""
