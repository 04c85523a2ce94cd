"""One supervised training of a predictor of viewports. What learns is told by a subclass.

What validates and is kept is an exponential mean of the weights; the best in validation is what a run leaves. Every batch comes from the
seed and the number of the step, so that equal seeds and settings give equal weights on one machine (with a budget in minutes, as many steps
as that machine does in them).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from controllers.learning.averaging import RunningMean, kept_share
from controllers.learning.loop import Figures, Loop, Pace, Standing, Trainee, Validation


class VpRun(Trainee):
    """One run in one folder. `parameters` are what learns, by name; `averaged` is the factor of the mean weights, a step."""

    def __init__(
        self,
        name: str,
        out: Path,
        pace: Pace,
        averaged: float,
        asked: Mapping[str, Any],
        parameters: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        console: Console | None = None,
    ) -> None:
        self.name, self.out, self.averaged, self.optimiser = name, out, averaged, optimiser
        self.parameters = dict(parameters)
        self.mean = RunningMean(self.parameters)
        self.loop = Loop(self, out, pace, asked, console or Console(stderr=True))

    @abstractmethod
    def learn(self, number: int, done: float) -> float:
        """One optimiser step; returns the batch's mean absolute error in degrees."""

    @abstractmethod
    def error_deg(self) -> float:
        """The mean absolute error on the validation windows, of the weights as they are (the mean ones)."""

    @abstractmethod
    def write(self, standing: Standing) -> None:
        """Write the weights as they are (the mean ones): no other has validated better."""

    @property
    @abstractmethod
    def weights(self) -> Path:
        """Where the best weights so far are."""

    def train(self) -> Path:
        """All that is left of the budget; returns where the best weights are."""
        self.loop.run()
        return self.weights

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Trainee`."""
        newest = {f"newest/{key}": parameter for key, parameter in self.parameters.items()}
        return newest | {f"mean/{key}": tensor for key, tensor in self.mean.weights.items()}

    def step(self, number: int, done: float) -> Figures:
        """See `Trainee`."""
        error_deg = self.learn(number, done)
        self.mean.update(kept_share(self.averaged, number + 1))
        return {"mae_deg": error_deg}

    def validate(self, standing: Standing, figures: Sequence[Figures]) -> Validation:
        """See `Trainee`."""
        with self.mean.in_place():
            valid = self.error_deg()
        error = float(np.mean([each["mae_deg"] for each in figures]))
        row = {"step": standing.step, "training_mae_deg": round(error, 4), "valid_mae_deg": round(valid, 4)}
        return Validation(valid, row, f"training {error:.3f}, validation {valid:.3f} degrees", {})

    def keep(self, standing: Standing, found: Validation) -> None:
        """See `Trainee`."""
        with self.mean.in_place():
            self.write(standing)
