"""One supervised training of a predictor of viewports: steps, mean weights, validations, and checkpoints that survive kill -9.

What learns is told by a subclass. What validates and is kept is an exponential mean of the weights; the best in validation is what a run
leaves. Every batch comes from the seed and the number of the step, so that equal seeds and settings give equal weights on one machine (with
a budget in minutes, as many steps as that machine does in them).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from controllers.learning.averaging import RunningMean
from controllers.learning.saved import add_row, cut_curve, write_tensors
from testbed.clock import now_s
from testbed.errors import UserError

CHECKPOINT, CURVE, STATE = "checkpoint.safetensors", "curve.csv", "state"


@dataclass(frozen=True)
class Budget:
    """How long to train, and how often to look."""

    steps: int
    """Optimiser steps; 0: as many as fit in `minutes`."""
    minutes: float
    validations: int
    """At equal distances; each leaves a checkpoint."""
    averaged: float
    """The factor of the mean weights, a step."""


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    step: int = 0
    elapsed_s: float = 0.0
    """Time spent in steps."""
    best_mae_deg: float = 1e9
    best_step: int = 0


class VpRun(ABC):
    """One run in one folder. `parameters` are what learns, by name; `asked` is what a resumed run must have been begun with."""

    def __init__(
        self,
        name: str,
        out: Path,
        budget: Budget,
        asked: Mapping[str, Any],
        parameters: Mapping[str, nn.Parameter],
        optimiser: torch.optim.Optimizer,
        console: Console | None = None,
    ) -> None:
        self.name, self.out, self.budget, self.console = name, out, budget, console or Console(stderr=True)
        self.parameters, self.optimiser = dict(parameters), optimiser
        self.mean = RunningMean(self.parameters)
        self.standing = Standing()
        self._asked = json.loads(json.dumps(dict(asked)))
        self._errors: list[float] = []

    @abstractmethod
    def step(self, number: int) -> float:
        """One optimiser step; returns the batch's mean absolute error in degrees."""

    @abstractmethod
    def validate(self) -> float:
        """The mean absolute error on the validation windows in degrees, of the weights as they are (the mean ones)."""

    @abstractmethod
    def keep(self) -> None:
        """Write the weights as they are (the mean ones): no other has validated better."""

    @property
    @abstractmethod
    def weights(self) -> Path:
        """Where the best weights so far are."""

    def train(self) -> Path:
        """All that is left of the budget; returns where the best weights are. What came after the last checkpoint is done again."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            row = bar.add_task(self.name, total=1.0, left="")
            while self.done < 1:
                self.advance()
                bar.update(row, completed=self.done, description=f"{self.name} step {self.standing.step}", left=self._left())
        return self.weights

    @property
    def done(self) -> float:
        """Share of the budget spent."""
        budget = self.budget
        return self.standing.step / budget.steps if budget.steps else self.standing.elapsed_s / 60 / budget.minutes

    def _left(self) -> str:
        left_s = self.standing.elapsed_s * (1 / self.done - 1) if self.done else 0.0
        return f"{left_s / 60:.0f} min left"

    def advance(self) -> None:
        """One step, and the validation after it if one is due."""
        began_s, before = now_s(), self._parts
        self._errors.append(self.step(self.standing.step))
        self.mean.update(self.budget.averaged)
        elapsed_s = self.standing.elapsed_s + now_s() - began_s
        self.standing = replace(self.standing, step=self.standing.step + 1, elapsed_s=elapsed_s)
        if self._parts > before:
            self._look()

    @property
    def _parts(self) -> int:
        """Validations that are due by now."""
        steps, count = self.budget.steps, self.budget.validations
        return self.standing.step * count // steps if steps else int(self.done * count)

    def _look(self) -> None:
        """Validation, curve and checkpoint."""
        step, error = self.standing.step, float(np.mean(self._errors))
        self._errors = []
        with self.mean.in_place():
            valid = self.validate()
            add_row(self.out / CURVE, {"step": step, "training_mae_deg": round(error, 4), "valid_mae_deg": round(valid, 4)})
            if valid < self.standing.best_mae_deg:
                self.standing = replace(self.standing, best_mae_deg=valid, best_step=step)
                self.keep()
        self.console.print(f"{self.name} step {step}: training {error:.3f}, validation {valid:.3f} degrees, {self._left()}")
        self._save()

    def _save(self) -> None:
        tensors = {f"newest/{key}": parameter.detach() for key, parameter in self.parameters.items()}
        tensors |= {f"mean/{key}": tensor for key, tensor in self.mean.weights.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{key}": tensor for key, tensor in state.items()}
        write_tensors(self.out / CHECKPOINT, tensors, STATE, {"standing": asdict(self.standing), "asked": self._asked})

    def resume(self) -> None:
        """Take up the checkpoint, if there is one. Raises `UserError` when it is another run's."""
        path = self.out / CHECKPOINT
        if not path.is_file():
            return  # stopped before the first one: begin anew
        try:
            with safe_open(str(path), framework="pt") as file:
                state = json.loads(file.metadata()[STATE])
            if differing := [name for name, value in self._asked.items() if state["asked"].get(name) != value]:
                raise ValueError(f"it was begun with {differing[0]} {state['asked'].get(differing[0])}")
            self._fill(load_file(path))
            self.standing = Standing(**state["standing"])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be resumed ({reason}), wanted the checkpoint of a run with the same settings") from error
        cut_curve(self.out / CURVE, self.standing.step)

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.copy_(tensors[f"newest/{key}"])
        self.mean.fill({key: tensors[f"mean/{key}"] for key in self.parameters})
        whole = self.optimiser.state_dict()
        for place, value in tensors.items():
            if place.startswith("adam/"):
                _, number, key = place.split("/")
                whole["state"].setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict(whole)
