"""What adapting the language model is for any task that is learnt from sessions, with DAgger rounds.

What a task adds is told by a subclass: its experience, a step's batches and loss, how a model is judged, its card. What is validated, kept
and sent to play in rounds is the running mean of weights.
"""

import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

from controllers.learning.averaging import RunningMean, kept_share
from controllers.learning.loop import CURVE, Figures, Loop, Pace, Standing, Trainee, Validation, asked_of
from controllers.learning.start import open_folder
from netllm.adapter import new_model, save_adapter
from netllm.backbone import load_backbone
from netllm.cards import write_card
from netllm.training import learning_of, make_optimiser, set_rate
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field

RECENT = 50
"""The training loss that is told is a mean over so many steps, at most."""


class Adaptation(Trainee):
    """One training run: the model, and the pools of experience."""

    loop: Loop
    dagger_from: ClassVar[float]
    """Share of the budget at which DAgger begins."""
    dagger_to: ClassVar[float]
    """The same at which a round after the last would be due; the rounds begin at equal distances."""

    def __init__(self, settings: Any, console: Console) -> None:
        self.settings, self.console, self.name = settings, console, f"adapt {settings.task.name}"
        self.out: Path = settings.out
        open_folder(self.out, settings.resume)
        self.commit = checkout_commit() or "unknown"
        load_backbone(settings.llm, settings.dtype)  # before the seed: the first load in a process draws random numbers
        torch.manual_seed(settings.collect.seed)
        self.model = new_model(settings.llm, settings.dtype, settings.task, settings.lora)
        self.optimiser = make_optimiser(self.model, settings.optimiser)
        self.learning = learning_of(self.model)
        self.mean = RunningMean(self.learning)
        self.pools: list[list[Any]] = []
        self.rounds = 0

    @abstractmethod
    def start(self) -> None:
        """Collect or read experience, `_take_up` the last checkpoint, make ready to validate."""

    @abstractmethod
    def _read_round(self, path: Path) -> Sequence[Any]:
        """The sessions of a round that was played before."""

    @abstractmethod
    def _play_round(self, number: int, path: Path) -> Sequence[Any]:
        """Let the student play, have it labelled, write it to `path`; returns the sessions."""

    @abstractmethod
    def _add_round(self, episodes: Sequence[Any]) -> None:
        """Learn from these sessions, too, from now on."""

    @abstractmethod
    def _learn(self, number: int, done: float) -> tuple[float, int]:
        """One optimiser step; returns its loss, and the tokens that it read."""

    @abstractmethod
    def _judge(self, told: Figures) -> Validation:
        """Validate the model as it is; `told` is the training `loss`, and `tokens_per_s` read."""

    @abstractmethod
    def _own_story(self) -> dict[str, Any]:
        """What the settings file tells of the training beyond what all tasks have in common."""

    def run(self) -> Path:
        """Train an adapter and return its folder, `settings.out / "adapter"`."""
        try:
            self.start()
            self.loop.run()
            write_card(self.folder, self.curve)
            return self.folder
        finally:
            self.model.switch.remove()  # after Ctrl-C in a notebook, too: the backbone lives on

    @property
    def folder(self) -> Path:
        """That of the best adapter."""
        return self.out / "adapter"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.out / CURVE

    def _take_up(self, headers: Sequence[dict[str, Any]]) -> None:
        """The loop over what experience files with these headers hold, and the last checkpoint if the run is resumed."""
        settings = self.settings
        looks = {"validations": settings.validations} if settings.steps else {"validate_minutes": settings.validate_minutes}
        pace = Pace(settings.steps, settings.minutes, save_minutes=settings.checkpoint_minutes, **looks)
        asked = asked_of(settings, ["steps", "minutes"]) | {"llm": self.model.backbone.name, "experience": list(headers)}
        self.loop = Loop(self, self.out, pace, asked, self.console)
        if settings.resume:
            self.loop.resume()

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Trainee`."""
        newest = {f"newest/{name}": parameter for name, parameter in self.learning.items()}
        return newest | {f"mean/{name}": tensor for name, tensor in self.mean.weights.items()}

    def step(self, number: int, done: float) -> Figures:
        """One optimiser step."""
        began_s = now_s()
        set_rate(self.optimiser, self.settings.optimiser, number, done)
        self.model.train()
        loss, tokens = self._learn(number, done)
        self.mean.update(kept_share(self.settings.optimiser.keep, number + 1))
        return {"loss": loss, "tokens_per_s": tokens / (now_s() - began_s)}

    def between(self, done: float) -> bool:
        """A round of DAgger."""
        number, rounds = self.rounds, self.settings.rounds
        if number >= rounds or done < self.dagger_from + (self.dagger_to - self.dagger_from) * number / rounds:
            return False
        self.model.eval()
        with self.mean.in_place():
            found = self._play_round(number, self._round_file(number))
        self._add_round(found)
        self.rounds = number + 1
        return True

    def _round_file(self, number: int) -> Path:
        return self.out / f"experience-round-{number + 1}.parquet"

    def facts(self) -> dict[str, Any]:
        """See `Trainee`."""
        return {"rounds": self.rounds}

    def restore(self, facts: dict[str, Any]) -> None:
        """See `Trainee`."""
        for number in range(facts["rounds"]):
            self._add_round(self._read_round(self._round_file(number)))
        self.rounds = facts["rounds"]

    def validate(self, standing: Standing, figures: Sequence[Figures]) -> Validation:
        """Judge the mean of weights."""
        told = {name: float(np.mean([each[name] for each in figures[-RECENT:]])) for name in ("loss", "tokens_per_s")}
        self.model.eval()
        with self.mean.in_place():
            found = self._judge(told)
        return replace(found, row={"step": standing.step, "elapsed_s": round(standing.elapsed_s)} | found.row)

    def keep(self, standing: Standing, found: Validation) -> None:
        """Write the adapter."""
        with self.mean.in_place():
            save_adapter(self.model, self.folder, {"trained": self._story(standing), "validation": found.told})

    def _story(self, standing: Standing) -> dict[str, Any]:
        """What the adapter's settings file tells of its making."""
        settings, program = self.settings, Path(sys.argv[0]).name
        by_script = program in ("adapt", "ablate")
        return {
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line(f"scripts/{program}", sys.argv[1:]) if by_script else f"{type(self).__module__}.adapt(...)",
            "seed": settings.collect.seed,
            "steps": standing.step,
            "minutes": round(standing.elapsed_s / 60, 1),
            "dagger_rounds": self.rounds,
            "dtype": settings.dtype,
            "optimiser": asdict(settings.optimiser),
            "collect": asdict(settings.collect),
            **self._own_story(),
            "hardware": f"{cpu_field('model name') or 'unknown processor'}, {settings.threads} threads",
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        }
