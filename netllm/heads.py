"""Heads: what the backbone's output means for a task. No token is ever generated, so every answer is valid (NetLLM, section 4.2)."""

from collections.abc import Mapping

import torch
from torch import nn

ALLOWED = "allowed"
"""Feature: which choices exist."""
BASE = "base"
"""Feature: what a path is predicted to be without the model."""


class ChoiceHead(nn.Module):
    """One of several choices: a linear layer, with choices that don't exist masked out."""

    def __init__(self, width: int, choices: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, choices)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities (B, T, choices) from `hidden` (B, T, width); `allowed` (B, T, choices) is True where a choice exists."""
        logits = self.linear(self.norm(hidden.float()))
        return torch.log_softmax(logits.masked_fill(~features[ALLOWED], -torch.inf), dim=-1)


class PathHead(nn.Module):
    """All future samples of several axes at once: a linear layer that begins at zero, added to a prediction that is given."""

    def __init__(self, width: int, samples: int, axes: int) -> None:
        super().__init__()
        self.samples, self.axes = samples, axes
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, samples * axes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The path (B, T, H, axes), in units of the task, from `hidden` (B, T, width) and `base`, of the path's shape; H may be any number:
        what is added to the last of `samples` is added to all later ones.
        """
        added: torch.Tensor = self.linear(self.norm(hidden.float())).unflatten(-1, (self.samples, self.axes))
        places = torch.arange(features[BASE].shape[-2]).clamp(max=self.samples - 1)
        return features[BASE] + added[..., places, :]
