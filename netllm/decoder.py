"""A few new tokens, the pass that a live decision waits for, for decoders built as Llama is.

transformers' own pass is right for any model and any batch, and is what training and large batches use. For few rows its Python takes
longer than the products, and these read every weight in 16 or 32 bits. Here the products that share an input are one, weights of 16 levels
are read in 4 bits (`netllm.quantised`), and nothing else is done. Other models and larger batches go through transformers' pass as before.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from netllm.lora import Adapted
from netllm.quantised import Packed, pack

ARCHITECTURES = ("llama", "mistral")


class Decoder:
    """`model` with the adapter `adapter` merged into it, for few new tokens in all. `exact`: in the model's type throughout."""

    def __init__(self, model: PreTrainedModel, adapter: str, exact: bool = False) -> None:
        config = model.config
        self._width, self._epsilon = config.hidden_size, config.rms_norm_eps
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._layers = [_Layer(layer, adapter, exact) for layer in cast(nn.ModuleList, model.layers)]
        self._rotary, self._last_norm = model.get_submodule("rotary_emb"), model.get_parameter("norm.weight")

    @torch.inference_mode()
    def read(self, embeddings: torch.Tensor, past: Cache, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The outputs (B, T, width) for the tokens (B, T, width) after `past`, which they enter; without a `mask` they see all of it.

        The mask (T, all tokens) is added to what attention weighs. Several tokens need one, for none may see those after it.
        """
        batch, new, width = embeddings.shape
        heads, groups = self._heads, self._groups
        shared = heads // groups
        positions = past.get_seq_length() + torch.arange(new)[None]
        cos, sin = (each[0, :, None] for each in self._rotary(embeddings, position_ids=positions))  # (T, 1, size)
        size = cos.shape[-1]
        sin = torch.cat([-sin[..., : size // 2], sin[..., size // 2 :]], -1)
        seen_by_heads = mask.repeat(shared, 1) if mask is not None else None  # (shared * T, all tokens)
        hidden = embeddings.reshape(batch * new, width)
        for i, layer in enumerate(self._layers):
            mixed = layer.query_key_value(self._norm(hidden, layer.first_norm)).view(batch, new, heads + 2 * groups, size)
            rotating = mixed[:, :, : heads + groups]
            rotated = torch.addcmul(rotating * cos, rotating.roll(size // 2, -1), sin)
            keys, values = past.update(rotated[:, :, heads:].transpose(1, 2), mixed[:, :, heads + groups :].transpose(1, 2), i)
            queries = rotated[:, :, :heads].view(batch, new, groups, shared, size).permute(0, 2, 3, 1, 4)
            queries = queries.reshape(batch, groups, shared * new, size)  # heads that share keys are rows, like tokens
            seen = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen_by_heads, scale=layer.scale)
            seen = seen.view(batch, groups, shared, new, size).permute(0, 3, 1, 2, 4)
            hidden = hidden + layer.output(seen.reshape(batch * new, heads * size))
            gate, up = layer.gate_up(self._norm(hidden, layer.second_norm)).chunk(2, 1)
            hidden = hidden + layer.down(nn.functional.silu(gate) * up)
        return self._norm(hidden, self._last_norm).view(batch, new, width)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, (self._width,), weight, self._epsilon)


class _Layer:
    """The products of one layer."""

    def __init__(self, layer: nn.Module, adapter: str, exact: bool) -> None:
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        self.first_norm = layer.get_parameter("input_layernorm.weight")
        self.second_norm = layer.get_parameter("post_attention_layernorm.weight")
        self.scale = cast(float, attention.scaling)
        self.query_key_value = _Products([attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")], adapter, exact)
        self.output = _Products([attention.get_submodule("o_proj")], adapter, exact)
        self.gate_up = _Products([mlp.get_submodule(name) for name in ("gate_proj", "up_proj")], adapter, exact)
        self.down = _Products([mlp.get_submodule("down_proj")], adapter, exact)


class _Products:
    """Linear layers that share an input, for few rows; their outputs end to end."""

    def __init__(self, layers: Sequence[nn.Module], adapter: str, exact: bool) -> None:
        self._packed = None if exact else _packed(layers)
        self._low_rank = _low_rank(layers, adapter) if self._packed else None
        self._weights = [layer.weight_with(adapter) if isinstance(layer, Adapted) else _weight(layer) for layer in layers]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs) to (B, all outputs)."""
        if not self._packed:
            return torch.cat([nn.functional.linear(x, weight) for weight in self._weights], 1)
        if not self._low_rank:
            return self._packed(x)
        a, b = self._low_rank
        return torch.addmm(self._packed(x), nn.functional.linear(x, a), b)


def _base(layer: nn.Module) -> nn.Module:
    return layer.base_layer if isinstance(layer, Adapted) else layer


def _weight(layer: nn.Module) -> torch.Tensor:
    """As it came, (outputs, inputs)."""
    return _base(layer).get_parameter("weight")


def _packed(layers: Sequence[nn.Module]) -> Packed | None:
    """One for all adapters: kept with the first of the layers."""
    kept: dict[str, Packed | None] = vars(_base(layers[0]))
    if "packed" not in kept:
        kept["packed"] = pack(torch.cat([_weight(layer) for layer in layers]))
    return kept["packed"]


def _low_rank(layers: Sequence[nn.Module], adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The adapter's matrices as one pair, (all ranks, inputs) and (all ranks, all outputs); None when it adds nothing here."""
    pairs = [_matrices(layer, adapter) for layer in layers]
    a = torch.cat([a for a, _ in pairs])
    b = torch.block_diag(*(b for _, b in pairs))  # type: ignore[no-untyped-call]
    dtype = _weight(layers[0]).dtype
    return (a.to(dtype), b.T.to(dtype).contiguous()) if len(a) else None


def _matrices(layer: nn.Module, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(rank, inputs) and (outputs, rank); of rank 0 where the adapter has none."""
    if isinstance(layer, Adapted) and adapter in layer.lora_a:
        return layer.matrices(adapter)
    outputs, inputs = _weight(layer).shape
    return torch.zeros(0, inputs), torch.zeros(outputs, 0)


def suits(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what this model does."""
    config = model.config
    if config.model_type not in ARCHITECTURES or config.hidden_act != "silu":
        return False
    return not any(getattr(config, more, None) for more in ("attention_bias", "mlp_bias", "sliding_window"))
