"""Attention for short sequences on a CPU: plain batched products, each key head shared by its group of query heads without being copied.

PyTorch's fused kernel is made for long sequences: on 47 tokens in bfloat16 its backward pass takes eight times as long as these products.
For a single new token it is the faster one: one kernel instead of six, 13 us instead of 34 us on 47 tokens in bfloat16.
"""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "netllm_short"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: `query` (B, heads, T, size), `key` and `value` (B, groups, S, size); returns (B, T, heads, size).

    `attention_mask` (1 or B, 1, T, S) is added to the scores; None lets every token see all. There is no dropout: a frozen model has none.
    """
    batch, heads, new, size = query.shape
    groups, total = key.shape[1:3]
    shared = query.reshape(batch, groups, heads // groups * new, size)
    if new == 1 and not torch.is_grad_enabled():
        mask = None if attention_mask is None else attention_mask[..., :total].expand(-1, -1, heads // groups, -1)
        return nn.functional.scaled_dot_product_attention(shared, key, value, mask, scale=scaling).view(batch, 1, heads, size), None
    scores = torch.matmul(shared, key.transpose(2, 3)).view(batch, heads, new, total) * (scaling or size**-0.5)
    if attention_mask is not None:
        scores = scores + attention_mask[..., :total]
    weights = torch.softmax(scores, dim=-1).view(batch, groups, heads // groups * new, total)
    return torch.matmul(weights, value).view(batch, heads, new, size).transpose(1, 2), None


def register() -> str:
    """Make it known to transformers; returns its name."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
