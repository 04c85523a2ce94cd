"""Heads: what the backbone's output means for a task. No token is ever generated, so every answer is valid (NetLLM, section 4.2)."""

import torch
from torch import nn


class ChoiceHead(nn.Module):
    """One of several choices: a linear layer, with choices that don't exist masked out."""

    def __init__(self, width: int, choices: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, choices)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, T, choices) from `hidden` (B, T, width); `allowed` (B, T, choices) is True where a choice exists."""
        logits = self.linear(self.norm(hidden.float()))
        return torch.log_softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1)
