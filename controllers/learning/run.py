"""A training run by policy optimisation in the simulator of playbacks; the weights that score best in validation are kept.

Equal seeds, versions and iterations give equal weights on one machine: every draw comes from the seed and the number of the iteration.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console

from controllers.learning.loop import Figures, Loop, Pace, Standing, Trainee, Validation, asked_of
from controllers.learning.playbacks import Playbacks
from controllers.learning.ppo import Design, Learner, PpoSettings, play_out
from controllers.learning.saved import write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.learning.validation import ValidationSessions
from controllers.weights import HEADER
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line

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


class Run(Trainee):
    """One run in one folder."""

    unit = "iteration"

    def __init__(self, design: Design, world: World, settings: TrainSettings, console: Console | None = None) -> None:
        self.design, self.world, self.settings, self.name = design, world, settings, world.name
        self.out = settings.out or Path("results") / f"train-{world.name}-{settings.seed}"
        check_least(settings, 0, ["seed"])
        check_least(settings, 1, ["threads", "validate_every", "checkpoint_every", *(f"ppo.{name}" for name in COUNTS)])
        open_folder(self.out, settings.resume)
        torch.set_num_threads(settings.threads)
        self.commit = checkout_commit()
        self.learner = Learner(design, settings.ppo, settings.seed)
        self.optimiser = self.learner.optimiser
        pace = Pace(settings.ppo.iterations, validate_every=settings.validate_every, save_every=settings.checkpoint_every, save_minutes=inf)
        asked = asked_of(settings, ["ppo.iterations"]) | {"world": world.facts() | {"validation": world.validation.sha256}}
        self.loop = Loop(self, self.out, pace, asked, console or Console(stderr=True))
        if settings.resume:
            self.loop.resume()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{self.world.name}.safetensors"

    def train(self) -> Path:
        """All iterations that are left; returns the file with the best weights."""
        self.loop.run()
        return self.weights

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Trainee`."""
        modules = {"actor": self.learner.actor, "mean": self.learner.mean_actor, "critic": self.learner.critic}
        return {f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}

    def step(self, number: int, done: float) -> Figures:
        """One iteration."""
        rng = np.random.default_rng([self.settings.seed, 4, number])
        self.world.prepare(self.learner, number)
        return self.learner.improve(self.world.sessions(number, rng, self.settings.ppo.sessions), rng, done)

    def validate(self, standing: Standing, figures: Sequence[Figures]) -> Validation:
        """See `Trainee`."""
        if self.world.sampled:
            rngs = [np.random.default_rng([self.settings.seed, 5, draw]) for draw in range(DECODINGS)]
            plays = [play_out(self.design, self.learner.mean_actor, self.world.validation.playbacks(), rng) for rng in rngs]
            qoe = np.mean(plays, axis=0)
        else:
            qoe = play_out(self.design, self.learner.mean_actor, self.world.validation.playbacks())
        families = self.world.validation.by_family(qoe)
        mean, watched = float(np.mean(list(families.values()))), figures[-1]
        told = {"mean": round(mean, 4), **{name: round(value, 4) for name, value in families.items()}}
        row: dict[str, Any] = {"iteration": standing.step, "elapsed_s": round(standing.elapsed_s)}
        row |= {f"training_{name}": round(value, 4) for name, value in watched.items()}
        row |= {"valid_qoe": told["mean"], **{f"valid_qoe_{name}": told[name] for name in families}}
        return Validation(-mean, row, f"validation QoE {mean:.4f}, training {watched['qoe']:.3f}", told)

    def keep(self, standing: Standing, found: Validation) -> None:
        """See `Trainee`."""
        write_tensors(self.weights, dict(self.learner.mean_actor.state_dict()), HEADER, self._story(standing, found))

    def _story(self, standing: Standing, found: Validation) -> dict[str, Any]:
        return {
            "policy": self.world.name,
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line("scripts/train", sys.argv[1:]),
            "seed": self.settings.seed,
            "iteration": standing.step,
            "minutes": round(standing.elapsed_s / 60, 1),
            "ppo": asdict(self.settings.ppo),
            "validation_qoe": found.told,
            **self.world.facts(),
        }

    def facts(self) -> dict[str, Any]:
        """See `Trainee`."""
        return self.world.facts()

    def restore(self, facts: dict[str, Any]) -> None:
        """See `Trainee`."""
        self.world.restore(facts)
