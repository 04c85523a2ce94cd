"""The loop of every training run: a budget of steps or minutes, validations, a learning curve, checkpoints that survive kill -9.

After each whole step, round and validation the state is copied, and only such a copy is ever written: Ctrl-C and kill leave no half a step.
What was due when a run was cut is done first when it goes on. So a run of a number of steps ends with the same weights, cut or not.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from controllers.learning.saved import add_row, cut_curve, write_tensors
from testbed.clock import now_s
from testbed.errors import UserError

CHECKPOINT, CURVE, STATE = "checkpoint.safetensors", "curve.csv", "state"
FREE = ("out", "resume", "threads", "checkpoint_every", "checkpoint_minutes")
"""Settings that may differ when a run goes on, besides its budget."""
Figures = dict[str, float]
"""What one step tells of itself."""


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    step: int = 0
    """Whole steps done."""
    elapsed_s: float = 0.0
    """Time spent, over all resumed runs."""
    validated: int = 0
    """Steps done at the last validation."""
    validated_s: float = 0.0
    """`elapsed_s` at its end."""
    best: float = inf
    """Least cost in validation."""
    best_step: int = 0


@dataclass(frozen=True)
class Pace:
    """How long a run is, and how often it is validated and saved. Its end is validated; each validation leaves a checkpoint."""

    steps: int = 0
    """0: as many as fit in `minutes`."""
    minutes: float = 0.0
    validations: int = 0
    """At equal distances over the budget; 0: not so."""
    validate_every: int = 0
    """Steps between two validations; 0: not so."""
    validate_minutes: float = inf
    """Time between two validations."""
    validations_count: bool = True
    """Whether validations take their time from the budget."""
    save_every: int = 0
    """Steps between two checkpoints; 0: not so."""
    save_minutes: float = 2.0
    """Time between two checkpoints."""

    def done(self, standing: Standing) -> float:
        """Share of the budget spent."""
        return standing.step / self.steps if self.steps else standing.elapsed_s / 60 / self.minutes

    def validation_due(self, standing: Standing) -> bool:
        """Whether the weights as they are should be validated."""
        if standing.step == standing.validated:
            return False
        by_now, before = self._due(standing.step, standing.elapsed_s), self._due(standing.validated, standing.validated_s)
        waited_s = standing.elapsed_s - standing.validated_s
        return by_now > before or waited_s >= 60 * self.validate_minutes or self.done(standing) >= 1

    def _due(self, step: int, elapsed_s: float) -> int:
        """Validations that are due by then."""
        if self.validate_every:
            return step // self.validate_every
        return step * self.validations // self.steps if self.steps else int(elapsed_s / 60 / self.minutes * self.validations)

    def save_due(self, standing: Standing, saved: Standing) -> bool:
        """Whether a checkpoint is due after the one of `saved`."""
        counted = self.save_every and standing.step // self.save_every > saved.step // self.save_every
        return bool(counted) or standing.elapsed_s - saved.elapsed_s >= 60 * self.save_minutes


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    cost: float
    """Less is better; the least is kept."""
    row: dict[str, Any]
    """Of the learning curve; its first column is the number of the step."""
    said: str
    """In one line."""
    told: dict[str, Any]
    """For the story of the weights."""


class Trainee(ABC):
    """What a run trains, and how one step of it goes. Everything random comes from the seed and the number of the step."""

    name: str
    unit: str = "step"
    """What a step is called."""
    optimiser: torch.optim.Optimizer

    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All that steps change but the optimiser's state, as it is in memory."""

    @abstractmethod
    def step(self, number: int, done: float) -> Figures:
        """One whole step, after the share `done` of the budget."""

    def between(self, done: float) -> bool:
        """What is due between two steps; whether there was something, which is then saved at once."""
        return False

    @abstractmethod
    def validate(self, standing: Standing, figures: Sequence[Figures]) -> Validation:
        """Judge what would be kept now; `figures` are those of the steps since the last validation."""

    @abstractmethod
    def keep(self, standing: Standing, found: Validation) -> None:
        """Write what was validated: nothing has cost less."""

    def facts(self) -> dict[str, Any]:
        """What else a resumed run has to know."""
        return {}

    def restore(self, facts: dict[str, Any]) -> None:  # noqa: B027
        """Take up `facts` of a checkpoint."""


def asked_of(settings: Any, budget: Sequence[str]) -> dict[str, Any]:
    """The settings that a run keeps from beginning to end, by dotted name (`ppo.lr`); those named by `budget` may grow."""
    return {name: value for name, value in _flat(asdict(settings)).items() if name not in (*FREE, *budget)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


class Loop:
    """One run in one folder. `asked` must be the same when it is resumed."""

    def __init__(self, trainee: Trainee, out: Path, pace: Pace, asked: Mapping[str, Any], console: Console) -> None:
        self.trainee, self.out, self.pace, self.console = trainee, out, pace, console
        self._asked = json.loads(json.dumps(_flat(asked), default=str))
        self._figures: list[Figures] = []
        self.standing = self._saved = Standing()
        self._take()

    @property
    def done(self) -> float:
        """Share of the budget spent."""
        return self.pace.done(self.standing)

    def run(self) -> None:
        """All that is left of the budget; Ctrl-C leaves a checkpoint."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            row = bar.add_task(self.trainee.name, total=1.0, left="")
            try:
                self._settle()
                while self.done < 1:
                    self.advance()
                    bar.update(row, completed=self.done, description=self._described(), left=self._left())
            except KeyboardInterrupt:
                self._save()
                raise

    def advance(self) -> None:
        """One whole step, and what is due after it."""
        began_s = now_s()
        figures = self.trainee.step(self.standing.step, self.done)
        self.standing = replace(self.standing, step=self.standing.step + 1, elapsed_s=self.standing.elapsed_s + now_s() - began_s)
        self._figures = [*self._figures, figures]
        self._take()
        self._settle()

    def _settle(self) -> None:
        """What is due after a step: in a run that goes on, what the one before was cut in."""
        began_s = now_s()
        if self.trainee.between(self.done):
            self.standing = replace(self.standing, elapsed_s=self.standing.elapsed_s + now_s() - began_s)
            self._take()
            self._save()
        if self.pace.validation_due(self.standing):
            self._validate()
        elif self.pace.save_due(self.standing, self._saved):
            self._save()
            if not self.console.is_terminal:  # where the bar can't be seen
                self.console.print(f"{self._described()}  {self._left()}")

    def _validate(self) -> None:
        if self._saved != self.standing:
            self._save()  # a kill while it lasts loses nothing, and nothing that was kept is taken for worse than it is
        began_s, standing = now_s(), self.standing
        found = self.trainee.validate(standing, self._figures)
        elapsed_s = standing.elapsed_s + (now_s() - began_s if self.pace.validations_count else 0.0)
        standing = replace(standing, elapsed_s=elapsed_s, validated=standing.step, validated_s=elapsed_s)
        add_row(self.out / CURVE, found.row)
        if found.cost < standing.best:
            standing = replace(standing, best=found.cost, best_step=standing.step)
            self.trainee.keep(standing, found)
        self.standing, self._figures = standing, []
        self._take()
        self._save()
        self.console.print(f"{self.trainee.name} {self.trainee.unit} {standing.step}: {found.said}, {self._left()}")

    def _described(self) -> str:
        figures = (f"{name} {value:.4g}" for name, value in self._figures[-1].items()) if self._figures else ()
        return "  ".join([f"{self.trainee.name} {self.trainee.unit} {self.standing.step}", *figures])

    def _left(self) -> str:
        left_s = self.standing.elapsed_s * (1 / self.done - 1) if self.done else 0.0
        return f"{max(left_s, 0.0) / 60:.0f} min left"

    def _take(self) -> None:
        """Copy all that a resumed run has to know."""
        tensors = dict(self.trainee.tensors())
        for number, state in self.trainee.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{key}": tensor for key, tensor in state.items()}
        facts = {"figures": self._figures, "facts": self.trainee.facts(), "asked": self._asked}
        self._state = {name: tensor.detach().clone() for name, tensor in tensors.items()}, self.standing, facts

    def _save(self) -> None:
        """Write the state that was copied last."""
        tensors, standing, facts = self._state
        write_tensors(self.out / CHECKPOINT, tensors, STATE, {"standing": asdict(standing), **facts})
        self._saved = standing

    def resume(self) -> None:
        """Take up the checkpoint, if there is one: a run may be stopped before its first. Raises `UserError` when it is another run's."""
        path = self.out / CHECKPOINT
        if path.is_file():
            try:
                self._load(path)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path}: can't be resumed ({reason}), wanted the checkpoint of a run with the same settings") from error
            self._saved = self.standing
            self._take()
        cut_curve(self.out / CURVE, self.standing.validated)

    def _load(self, path: Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            state = json.loads(file.metadata()[STATE])
        if other := _differing(state["asked"], self._asked):
            raise ValueError(f"it was begun with {other}")
        self._fill(load_file(path))
        self.standing, self._figures = Standing(**state["standing"]), state["figures"]
        self.trainee.restore(state["facts"])

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self.trainee.tensors().items():
            if tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, wanted {tuple(tensor.shape)}")
            tensor.copy_(tensors[name])
        whole = self.trainee.optimiser.state_dict()
        for place, value in tensors.items():
            if place.startswith("adam/"):
                _, number, key = place.split("/")
                whole["state"].setdefault(int(number), {})[key] = value
        self.trainee.optimiser.load_state_dict(whole)


def _differing(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was: the names, and what they were at the beginning."""
    names = [name for name in sorted(begun.keys() | now.keys()) if begun.get(name) != now.get(name)]
    return ", ".join(f"{name} {str(begun.get(name))[:80]}" for name in names)
