"""Encoders: one per modality, each turns numbers into one embedding (token) of the backbone's width (NetLLM, section 4.1)."""

import torch
from torch import nn


class ScalarEncoder(nn.Module):
    """Named scalars to one token: two linear layers."""

    def __init__(self, features: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, features) to (B, T, width)."""
        return self.layers(x)


class SeriesEncoder(nn.Module):
    """A short time series of several channels to one token: a 1-D convolution over time, then a linear layer over all positions."""

    def __init__(self, channels: int, length: int, width: int, hidden: int, kernel: int = 4) -> None:
        super().__init__()
        filters = hidden // 4
        self.convolution = nn.Conv1d(channels, filters, kernel)
        self.projection = nn.Sequential(
            nn.GELU(), nn.Flatten(), nn.Linear(filters * (length - kernel + 1), hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, channels, length) to (B, T, width)."""
        batch, steps = x.shape[:2]
        return self.projection(self.convolution(x.flatten(0, 1))).unflatten(0, (batch, steps))


class TableEncoder(nn.Module):
    """A table with one column per choice (next chunk's size at each level) to one token: two linear layers over all cells."""

    def __init__(self, rows: int, columns: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(2), nn.Linear(rows * columns, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, rows, columns) to (B, T, width)."""
        return self.layers(x)


class ChoiceEncoder(nn.Module):
    """What was chosen before, by number, to one token (the action token of NetLLM, section 4.3)."""

    def __init__(self, choices: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(choices, hidden), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T) of whole numbers to (B, T, width)."""
        return self.layers(x)
