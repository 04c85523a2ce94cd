"""`scripts/ablate vp`: one training, repeated with one thing changed each time, over several seeds (`netllm/ablations.py`).

All runs take the same number of steps with the same batches in the same order. `scripts/evaluate vp --adapters ...` compares them; the
command is printed.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from controllers.loader import RANDOM
from netllm import ablations
from netllm.ablations import REFERENCE, Change
from netllm.vp.adapt import VpAdaptSettings, adapt

CHANGES: dict[str, Change[VpAdaptSettings]] = {
    REFERENCE: Change("nothing but what the command says", lambda full: full),
    "random-backbone": Change("a *random* backbone", lambda full: replace(full, llm=full.llm + RANDOM)),
    "no-lora": Change("no LoRA: the backbone is what it was", lambda full: replace(full, lora=replace(full.lora, rank=0))),
    "random-no-lora": Change(
        "a *random* backbone, no LoRA", lambda full: replace(full, llm=full.llm + RANDOM, lora=replace(full.lora, rank=0))
    ),
    "rank-4": Change("LoRA of rank 4, alpha over rank as before", lambda full: replace(full, lora=replace(full.lora, rank=4, alpha=8))),
    "no-context": Change(
        "one token, no past ones (a batch teaches half as many histories)", lambda full: replace(full, task=replace(full.task, tokens=1))
    ),
    "linear-base": Change("it adds to `linear_l1`", lambda full: replace(full, task=replace(full.task, base="linear_l1"))),
    "no-base": Change("it adds to the newest sample alone", lambda full: replace(full, task=replace(full.task, base="last"))),
    "no-heading": Change(
        "the yaw from the front is not told to the model (an `mlp` or `linear_l1` that it adds to knows it)",
        lambda full: replace(full, task=replace(full.task, heading=False)),
    ),
}
"""What is changed, by name. The first ones are those of NetLLM (section 5.4 and its appendix)."""


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

    def reference(seed: int) -> VpAdaptSettings:
        return replace(settings.adapt, seed=seed, steps=settings.steps)

    def train(full: VpAdaptSettings, seed: int, folder: Path, resume: bool) -> Path:
        return adapt(replace(full, out=folder, resume=resume), console)

    return ablations.run("vp", settings, CHANGES, reference, train, console)
