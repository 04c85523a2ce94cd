"""The exponential mean of weights over optimiser steps, which is validated and kept: the newest weights are those of lucky batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


def kept_share(keep: float, step: int) -> float:
    """Of a running mean at its update after `step` steps, 1 or more; its memory is short at first, or the untrained weights would stay."""
    return min(keep, step / (step + 10))


class RunningMean:
    """Of `parameters`, by name; begins as they are now."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, keep: float) -> None:
        """Take in the weights as they are now: of the mean, the share `keep` stays."""
        for name, mean in self.weights.items():
            mean.lerp_(self._parameters[name], 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the mean; its own weights come back afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            self._put(self.weights)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def fill(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the mean. Raises `KeyError` or `RuntimeError` when these are another model's."""
        for name, mean in self.weights.items():
            mean.copy_(weights[name])

    @torch.no_grad()
    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
