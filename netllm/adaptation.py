"""What adapting the language model is for any task that is learnt from sessions: a budget, DAgger rounds, validations, checkpoints.

What a task adds is told by a subclass: its experience, a step's batches and loss, how a model is judged, its card. What is validated, kept
and sent to play in rounds is the running mean of weights.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from controllers.learning.saved import add_row, cut_curve
from controllers.learning.start import open_folder
from netllm.adapter import new_model, save_adapter
from netllm.backbone import load_backbone
from netllm.cards import write_card
from netllm.training import Progress, kept_share, load_checkpoint, make_optimiser, mean_of, save_checkpoint, set_rate
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field

CURVE = "curve.csv"


class Adaptation(ABC):
    """One training run: the model, the pools of experience, and how far it is. `asked` must be the same when it is resumed."""

    dagger_from: ClassVar[float]
    """Share of the budget at which DAgger begins."""
    dagger_to: ClassVar[float]
    """The same at which a round after the last would be due; the rounds begin at equal distances."""

    def __init__(self, settings: Any, console: Console, asked: dict[str, Any]) -> None:
        self.settings, self.console, self.asked = settings, console, asked
        open_folder(settings.out, settings.resume)
        self.commit = checkout_commit() or "unknown"
        load_backbone(settings.llm, settings.dtype)  # before the seed: the first load in a process draws random numbers
        torch.manual_seed(settings.collect.seed)
        self.model = new_model(settings.llm, settings.dtype, settings.task, settings.lora)
        self.optimiser = make_optimiser(self.model, settings.optimiser)
        self.mean = mean_of(self.model)
        self.progress = Progress()
        self.pools: list[list[Any]] = []
        self.seen_tokens, self.seen_s, self.losses = 0, 0.0, list[float]()
        self.last_checkpoint_s = 0.0

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
    def _learn(self, step: int) -> tuple[float, int]:
        """One optimiser step; returns its loss, and the tokens that it read."""

    @abstractmethod
    def _judge(self) -> tuple[float, dict[str, Any], dict[str, Any]]:
        """Validate the model as it is: a score (more is better), the curve's row, what the adapter's settings file tells of it."""

    @abstractmethod
    def _own_story(self) -> dict[str, Any]:
        """What the settings file tells of the training beyond what all tasks have in common."""

    def run(self) -> Path:
        """Train an adapter and return its folder, `settings.out / "adapter"`."""
        try:
            self.start()
            self.train()
            write_card(self.folder, self.curve)
            return self.folder
        finally:
            self.model.switch.remove()  # after Ctrl-C in a notebook, too: the backbone lives on

    @property
    def folder(self) -> Path:
        """That of the best adapter."""
        return self.settings.out / "adapter"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.settings.out / CURVE

    def train(self) -> None:
        """Until the budget is spent; Ctrl-C leaves a checkpoint."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[eta]}")
        with ProgressBar(*columns, console=self.console) as bar:
            row = bar.add_task("adapt", total=1.0, eta="")
            try:
                while self.done < 1:
                    self._advance()
                    bar.update(row, completed=self.done, description=self._state(), eta=f"{self._left_s() / 60:.0f} min left")
                if self.progress.validated < self.progress.step:  # the run that did the last step was cut in its validation
                    self._timed(self._validate)
            except KeyboardInterrupt:
                self._checkpoint()
                raise

    @property
    def done(self) -> float:
        """Share of the budget spent."""
        settings = self.settings
        return self.progress.step / settings.steps if settings.steps else self.progress.elapsed_s / 60 / settings.minutes

    @property
    def recent_loss(self) -> float:
        """Mean over the last steps; NaN before the first."""
        return float(np.mean(self.losses[-50:])) if self.losses else float("nan")

    @property
    def tokens_per_s(self) -> float:
        """Read in training steps."""
        return self.seen_tokens / self.seen_s if self.seen_s else 0.0

    def _left_s(self) -> float:
        return self.progress.elapsed_s * (1 / self.done - 1) if self.done else 0.0

    def _state(self) -> str:
        best = f"best {self.progress.best_score:.3f}  " if self.progress.validated else ""
        return f"step {self.progress.step}  loss {self.recent_loss:.3f}  {best}{self.tokens_per_s:.0f} tokens/s"

    def _take_up(self) -> None:
        """The last checkpoint and the rounds before it, if the run is resumed."""
        if self.settings.resume and (found := load_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.asked)):
            self.progress = found
            self.last_checkpoint_s = found.elapsed_s
            cut_curve(self.curve, found.validated)
            self.console.print(f"resumed at step {found.step}, {found.elapsed_s / 60:.1f} min of training done")
        for number in range(self.progress.rounds):
            self._add_round(self._read_round(self._round_file(number)))

    def _advance(self) -> None:
        """One optimiser step and whatever is due after it."""
        started_s, step = now_s(), self.progress.step
        set_rate(self.optimiser, self.settings.optimiser, step, self.done)
        self.model.train()
        loss, tokens = self._learn(step)
        self.losses.append(loss)
        self.mean.update(kept_share(self.settings.optimiser, step + 1))
        took_s = now_s() - started_s
        self.seen_tokens += tokens
        self.seen_s += took_s
        self.progress = replace(self.progress, step=step + 1, elapsed_s=self.progress.elapsed_s + took_s)
        self._timed(self._dagger_if_due)
        self._timed(self._validate_if_due)
        if self.progress.elapsed_s - self.last_checkpoint_s >= self.settings.checkpoint_minutes * 60:
            self._checkpoint()

    def _timed(self, work: Callable[[], None]) -> None:
        started_s = now_s()
        work()
        self.progress = replace(self.progress, elapsed_s=self.progress.elapsed_s + now_s() - started_s)

    def _dagger_if_due(self) -> None:
        number, rounds = self.progress.rounds, self.settings.rounds
        if number >= rounds or self.done < self.dagger_from + (self.dagger_to - self.dagger_from) * number / rounds:
            return
        self.model.eval()
        with self.mean.in_place():
            found = self._play_round(number, self._round_file(number))
        self._add_round(found)
        self.progress = replace(self.progress, rounds=number + 1)
        self._checkpoint()

    def _round_file(self, number: int) -> Path:
        return self.settings.out / f"experience-round-{number + 1}.parquet"

    def _validate_if_due(self) -> None:
        if self.done >= 1 or self.progress.elapsed_s - self.progress.last_validation_s >= self.settings.validate_minutes * 60:
            self._validate()

    def _validate(self) -> None:
        """Judge the mean of weights; keep it if it is the best so far."""
        self.model.eval()
        with self.mean.in_place():
            score, row, told = self._judge()
            add_row(self.curve, {"step": self.progress.step, "elapsed_s": round(self.progress.elapsed_s)} | row)
            if score > self.progress.best_score:
                save_adapter(self.model, self.folder, {"trained": self._story(), "validation": told})
        best = max(score, self.progress.best_score)
        self.progress = replace(self.progress, best_score=best, last_validation_s=self.progress.elapsed_s, validated=self.progress.step)

    def _checkpoint(self) -> None:
        save_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.progress, self.asked)
        self.last_checkpoint_s = self.progress.elapsed_s
        if not self.console.is_terminal:  # where the bar can't be seen
            self.console.print(f"{self._state()}  {self._left_s() / 60:.0f} min left")

    def _story(self) -> dict[str, Any]:
        """What the adapter's settings file tells of its making."""
        settings, program = self.settings, Path(sys.argv[0]).name
        by_script = program in ("adapt", "ablate")
        return {
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line(f"scripts/{program}", sys.argv[1:]) if by_script else f"{type(self).__module__}.adapt(...)",
            "seed": settings.collect.seed,
            "steps": self.progress.step,
            "minutes": round(self.progress.elapsed_s / 60, 1),
            "dagger_rounds": self.progress.rounds,
            "dtype": settings.dtype,
            "optimiser": asdict(settings.optimiser),
            "collect": self.asked["collect"],
            **self._own_story(),
            "hardware": f"{cpu_field('model name') or 'unknown processor'}, {settings.threads} threads",
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        }
