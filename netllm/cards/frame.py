"""The frame of a model card; what a task says in it stands in the task's module of this package."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
LOSSES = {"step": "step", "elapsed_s": "seconds", "train_loss": "training loss", "valid_loss": "validation loss"}
"""Columns that the learning curve of a task learnt from sessions begins with."""


def weights_kept(trained: Facts) -> str:
    """Which weights of a step the adapter has."""
    keep = trained["optimiser"].get("keep")
    return f"running mean, factor {keep} a step" if keep else "those of the step itself"


@dataclass(frozen=True)
class Card:
    """What a task says of its adapters. `facts` are those of `netllm.json`."""

    about: Callable[[Facts], str]
    """What it does, and on what it was trained."""
    training: Callable[[Facts], dict[str, str]]
    """Rows of the table of training."""
    validation: Callable[[Facts], list[str]]
    """Lines on the validation."""
    curve: Mapping[str, str]
    """Columns of the learning curve that are shown, with their headings."""
    unmeasured: str
    """Until an evaluation has written its results."""
    hidden: tuple[str, ...] = ()
    """Settings of the task that are not shown."""

    def lines(self, facts: Facts, curve: Path) -> list[str]:
        """All but the results."""
        return [*self._front(facts), *self._table(facts), *self._validated(facts, curve)]

    def _front(self, facts: Facts) -> list[str]:
        backbone = facts["backbone"]
        settings = ", ".join(f"{name} {value}" for name, value in facts["settings"].items() if name not in self.hidden)
        return [
            "---",
            "library_name: peft",
            f"base_model: {backbone['name']}",
            "tags: [netllm, networking, lora]",
            "---",
            f"# NetLLM adapter for {facts['task']}",
            "",
            f"LoRA, encoders and head for the frozen backbone `{backbone['name']}` (width {backbone['width']}). Use: the policy `netllm`,",
            f"or `netllm.adapter.load_adapter(FOLDER)`. {self.about(facts)} For research.",
            "",
            f"Task settings: {settings}; LoRA rank {facts['lora_rank']}.",
            "",
        ]

    def _table(self, facts: Facts) -> list[str]:
        trained = facts["trained"]
        rows = {
            "date, commit": f"{trained['utc']}, `{trained['commit'][:12]}`",
            "command": f"`{trained['command']}`",
            **self.training(facts),
            "seed": str(trained["seed"]),
            "hardware": f"{trained['hardware']}, {trained['dtype']}",
            "versions": ", ".join(f"{name} {version}" for name, version in trained["versions"].items()),
        }
        return ["## Training", "| | |", "| --- | --- |", *(f"| {name} | {said} |" for name, said in rows.items()), ""]

    def _validated(self, facts: Facts, curve: Path) -> list[str]:
        lines = ["## Validation", *self.validation(facts), ""]
        if not curve.is_file():
            return lines
        with curve.open(encoding="utf-8") as file:
            rows = [f"| {' | '.join(row[name] for name in self.curve)} |" for row in csv.DictReader(file)]
        return [*lines, f"| {' | '.join(self.curve.values())} |", f"|{' --- |' * len(self.curve)}", *rows, ""]
