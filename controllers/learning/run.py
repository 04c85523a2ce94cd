"""A training run: iterations, validation, the learning curve, checkpoints that survive kill -9, and the weights that score best.

Equal seeds, versions and iterations give equal weights on one machine: every draw comes from the seed and the number of the iteration.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from controllers.learning.playbacks import Playbacks
from controllers.learning.ppo import Design, Learner, PpoSettings, play_out
from controllers.learning.saved import add_row, cut_curve, write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.learning.validation import ValidationSessions
from controllers.weights import HEADER
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.csv"
STATE = "state"
DECODINGS = 3
"""A policy that samples is validated as the mean over so many samplings."""
COUNTS = ("iterations", "sessions", "epochs", "minibatch")
"""Of `PpoSettings`, at least 1."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train a baseline."""

    seed: int = 1
    """Of everything random."""
    out: Path | None = None
    """Folder for checkpoint, learning curve and weights; default: results/train-NAME-SEED."""
    resume: bool = False
    """Go on from the checkpoint in OUT."""
    threads: int = 1
    """CPU threads."""
    validate_every: int = 20
    """Iterations between two validations; the weights of the best one are kept."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints."""
    ppo: PpoSettings = field(default_factory=PpoSettings)
    """The optimisation."""


class World(Protocol):
    """The sessions that a baseline learns on and is chosen on."""

    name: str
    """`pensieve`, ..."""
    sampled: bool
    """Whether the policy samples its actions when it is used."""
    validation: ValidationSessions
    """The sessions to choose on."""

    def prepare(self, learner: Learner, iteration: int) -> None:
        """Called before each iteration."""
        ...

    def sessions(self, iteration: int, rng: np.random.Generator, count: int) -> Sequence[Playbacks]:
        """`count` sessions to learn on, in parts."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the weights' story tells of the data, and what a resumed run has to know."""
        ...

    def restore(self, facts: dict[str, Any]) -> None:
        """Take up `facts` of a checkpoint."""
        ...


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    iteration: int = 0
    elapsed_s: float = 0.0
    best_qoe: float = -1e9
    best_iteration: int = 0


class Run:
    """One run in one folder."""

    def __init__(self, design: Design, world: World, settings: TrainSettings, console: Console | None = None) -> None:
        self.design, self.world, self.settings = design, world, settings
        self.console = console or Console(stderr=True)
        self.out = settings.out or Path("results") / f"train-{world.name}-{settings.seed}"
        check_least(settings, 0, ["seed"])
        check_least(settings, 1, ["threads", "validate_every", "checkpoint_every", *(f"ppo.{name}" for name in COUNTS)])
        open_folder(self.out, settings.resume)
        torch.set_num_threads(settings.threads)
        self.commit = checkout_commit()
        self.learner = Learner(design, settings.ppo, settings.seed)
        self.standing = Standing()
        self._begun_on = json.loads(json.dumps(world.facts() | {"validation": world.validation.sha256}))
        if settings.resume:
            self._load()
        self._state = self._taken()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{self.world.name}.safetensors"

    def train(self) -> Path:
        """All iterations that are left; returns the file with the best weights. Ctrl-C leaves a checkpoint."""
        total = self.settings.ppo.iterations
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.console) as bar:
            row = bar.add_task(self.world.name, total=total, completed=self.standing.iteration)
            try:
                while self.standing.iteration < total:
                    self._iterate(total)
                    state = f"{self.world.name} iteration {self.standing.iteration}  best QoE {max(self.standing.best_qoe, -9):.3f}"
                    bar.update(row, completed=self.standing.iteration, description=state)
            except KeyboardInterrupt:
                self._save()
                raise
        self._save()
        return self.weights

    def _iterate(self, total: int) -> None:
        started_s, number = now_s(), self.standing.iteration
        rng = np.random.default_rng([self.settings.seed, 4, number])
        self.world.prepare(self.learner, number)
        watched = self.learner.improve(self.world.sessions(number, rng, self.settings.ppo.sessions), rng, number / total)
        self.standing = replace(self.standing, iteration=number + 1, elapsed_s=self.standing.elapsed_s + now_s() - started_s)
        if (number + 1) % self.settings.validate_every == 0 or number + 1 == total:
            self._validate(watched)
        self._state = self._taken()
        if (number + 1) % self.settings.checkpoint_every == 0:
            self._save()

    def _validate(self, watched: dict[str, float]) -> None:
        started_s = now_s()
        if self.world.sampled:
            rngs = [np.random.default_rng([self.settings.seed, 5, draw]) for draw in range(DECODINGS)]
            plays = [play_out(self.design, self.learner.mean_actor, self.world.validation.playbacks(), rng) for rng in rngs]
            qoe = np.mean(plays, axis=0)
        else:
            qoe = play_out(self.design, self.learner.mean_actor, self.world.validation.playbacks())
        families = self.world.validation.by_family(qoe)
        mean = float(np.mean(list(families.values())))
        self.standing = replace(self.standing, elapsed_s=self.standing.elapsed_s + now_s() - started_s)
        self._record(mean, families, watched)
        if mean > self.standing.best_qoe:
            self.standing = replace(self.standing, best_qoe=mean, best_iteration=self.standing.iteration)
            write_tensors(self.weights, dict(self.learner.mean_actor.state_dict()), HEADER, self._story(mean, families))

    def _record(self, mean: float, families: dict[str, float], watched: dict[str, float]) -> None:
        row: dict[str, Any] = {"iteration": self.standing.iteration, "elapsed_s": round(self.standing.elapsed_s)}
        row |= {f"training_{name}": round(value, 4) for name, value in watched.items()}
        row |= {"valid_qoe": round(mean, 4), **{f"valid_qoe_{name}": round(value, 4) for name, value in families.items()}}
        add_row(self.out / CURVE, row)
        if not self.console.is_terminal:
            self.console.print(f"{self.world.name} iteration {row['iteration']}: validation QoE {mean:.4f}, training {watched['qoe']:.3f}")

    def _story(self, mean: float, families: dict[str, float]) -> dict[str, Any]:
        return {
            "policy": self.world.name,
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line("scripts/train", sys.argv[1:]),
            "seed": self.settings.seed,
            "iteration": self.standing.iteration,
            "minutes": round(self.standing.elapsed_s / 60, 1),
            "ppo": asdict(self.settings.ppo),
            "validation_qoe": {"mean": round(mean, 4), **{name: round(value, 4) for name, value in families.items()}},
            **self.world.facts(),
        }

    def _save(self) -> None:
        """Write the state after the last whole iteration: one that Ctrl-C cuts short is done again, its validation included."""
        write_tensors(self.out / CHECKPOINT, *self._state)

    def _taken(self) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
        """All that a resumed run has to know, as `write_tensors` takes it."""
        modules = {"actor": self.learner.actor, "mean": self.learner.mean_actor, "critic": self.learner.critic}
        tensors = {f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}
        for number, state in self.learner.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{key}": tensor for key, tensor in state.items()}
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return copies, STATE, {"standing": asdict(self.standing), "facts": self.world.facts(), "asked": self._asked()}

    def _asked(self) -> dict[str, Any]:
        """The settings that a run keeps from beginning to end."""
        return {"seed": self.settings.seed, "ppo": asdict(self.settings.ppo), "world": self._begun_on}

    def _load(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            return
        try:
            with safe_open(str(path), framework="pt") as file:
                state = json.loads(file.metadata()[STATE])
            if (begun := state["asked"]) != self._asked():
                other = _differing(begun["ppo"], self._asked()["ppo"]) or _differing(begun["world"], self._begun_on, "other data: ")
                raise ValueError(f"it was begun with seed {begun['seed']} and {other or 'the same settings'}")
            self._fill(load_file(path))
            self.standing = Standing(**state["standing"])
            self.world.restore(state["facts"])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be resumed ({reason}), wanted the checkpoint of a run with the same settings") from error
        cut_curve(self.out / CURVE, self.standing.iteration)

    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, module in (("actor", self.learner.actor), ("mean", self.learner.mean_actor), ("critic", self.learner.critic)):
            module.load_state_dict({key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")})
        whole = self.learner.optimiser.state_dict()
        for key, value in tensors.items():
            if key.startswith("adam/"):
                _, number, name = key.split("/")
                whole["state"].setdefault(int(number), {})[name] = value
        self.learner.optimiser.load_state_dict(whole)


def _differing(begun: dict[str, Any], now: dict[str, Any], prefix: str = "ppo.") -> str:
    return ", ".join(f"{prefix}{name} {str(value)[:80]}" for name, value in begun.items() if now.get(name) != value)
