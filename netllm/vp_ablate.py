"""`scripts/ablate vp`: one training, repeated with one thing changed each time, over several seeds.

All runs take the same number of steps with the same batches in the same order. A run that is complete is kept, one that was cut goes on
from its checkpoint. `scripts/evaluate vp --adapters ...` compares them; the command is printed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from controllers.learning.start import check_least
from netllm.backbone import RANDOM
from netllm.vp_adapt import VpAdaptSettings, adapt
from testbed.errors import UserError, suggestion

DONE = "done"
"""A file that says that a run has taken all its steps."""

CHANGES: dict[str, Callable[[VpAdaptSettings], VpAdaptSettings]] = {
    "reference": lambda full: full,
    "random-backbone": lambda full: replace(full, llm=full.llm + RANDOM),
    "no-lora": lambda full: replace(full, lora=replace(full.lora, rank=0)),
    "random-no-lora": lambda full: replace(full, llm=full.llm + RANDOM, lora=replace(full.lora, rank=0)),
    "rank-4": lambda full: replace(full, lora=replace(full.lora, rank=4, alpha=8)),
    "no-context": lambda full: replace(full, task=replace(full.task, tokens=1)),
    "linear-base": lambda full: replace(full, task=replace(full.task, base="linear_l1")),
    "no-base": lambda full: replace(full, task=replace(full.task, base="last")),
    "no-heading": lambda full: replace(full, task=replace(full.task, heading=False)),
}
"""What is changed, by name. The first ones are those of NetLLM (section 5.4 and its appendix); without LoRA the backbone is what it was."""


@dataclass(frozen=True)
class VpAblateSettings:
    """Which runs, and how each is trained."""

    names: tuple[str, ...] = tuple(CHANGES)
    """Changes to try: reference, random-backbone, no-lora, random-no-lora, rank-4, no-context, linear-base, no-base, no-heading."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run of each change per seed."""
    steps: int = 300
    """Optimiser steps of each run."""
    out: Path = Path("results/ablate-vp")
    """Folder for all runs: OUT/NAME-SEED."""
    adapt: VpAdaptSettings = field(default_factory=lambda: VpAdaptSettings(validations=4))
    """The training that is changed."""


def ablate(settings: VpAblateSettings | None = None, console: Console | None = None) -> list[Path]:
    """Train what is missing; returns the adapters' folders."""
    settings, console = settings or VpAblateSettings(), console or Console(stderr=True)
    check_least(settings, 1, ["steps"])
    for name in settings.names:
        if name not in CHANGES:
            raise UserError(f"scripts/ablate: change {name!r} is unknown: {suggestion(name, tuple(CHANGES))}")
    made = {(name, seed): _trained(settings, name, seed, console) for seed in settings.seeds for name in settings.names}
    groups = [f"{name}={','.join(str(made[name, seed]) for seed in settings.seeds)}" for name in settings.names]
    console.print(f"compare them: scripts/evaluate vp --reference {settings.names[0]} --adapters {' '.join(groups)}", soft_wrap=True)
    return list(made.values())


def _trained(settings: VpAblateSettings, name: str, seed: int, console: Console) -> Path:
    folder = settings.out / f"{name}-{seed}"
    if (folder / DONE).is_file():
        return folder / "adapter"
    console.print(f"{name}, seed {seed}")
    begun = folder.is_dir() and any(folder.iterdir())
    full = replace(settings.adapt, seed=seed, steps=settings.steps, out=folder, resume=begun)
    made = adapt(CHANGES[name](full), console)
    (folder / DONE).touch()
    return made
