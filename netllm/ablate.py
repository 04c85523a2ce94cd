"""`scripts/ablate abr`: one training, repeated with one thing changed each time, over several seeds.

All runs of a seed read the same experience and take the same number of steps, so that what differs is the change alone. A run that is
complete is kept, one that was cut goes on from its checkpoint. `scripts/evaluate abr --adapters ...` compares them; the command is printed.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from controllers.learning.start import check_least
from netllm.adapt import AdaptSettings, adapt
from netllm.backbone import RANDOM
from netllm.cards import CARD
from netllm.experience import collect, read_header
from testbed.errors import UserError, suggestion

REFERENCE = "reference"
Change = Callable[[AdaptSettings], AdaptSettings]

CHANGES: dict[str, Change] = {
    REFERENCE: lambda full: full,
    "random-backbone": lambda full: replace(full, llm=full.llm + RANDOM),
    "no-lora": lambda full: replace(full, lora=replace(full.lora, rank=0)),
    "rank-4": lambda full: replace(full, lora=replace(full.lora, rank=4, alpha=8)),
    "history-5": lambda full: replace(full, task=replace(full.task, context_steps=5)),
    "no-context": lambda full: replace(full, task=replace(full.task, context_steps=1)),
    "no-return": lambda full: replace(full, task=replace(full.task, return_token=False)),
    "separate-tokens": lambda full: replace(full, task=replace(full.task, tokens="separate")),
}
"""What is changed, by name. The first five changes are those of NetLLM (section 5.4 and its appendix); rank 4 keeps alpha over rank."""


@dataclass(frozen=True)
class AblateSettings:
    """Which runs, and how each is trained."""

    names: tuple[str, ...] = ("reference", "random-backbone", "no-lora", "rank-4", "history-5", "no-context", "no-return")
    """Changes to try: reference, random-backbone, no-lora, rank-4, history-5, no-context, no-return, separate-tokens."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run of each change per seed."""
    steps: int = 600
    """Optimiser steps of each run."""
    out: Path = Path("results/ablate-abr")
    """Folder for all runs: OUT/NAME-SEED."""
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    """The training that is changed."""


def ablate(settings: AblateSettings | None = None, console: Console | None = None) -> list[Path]:
    """Train what is missing; returns the adapters' folders."""
    settings, console = settings or AblateSettings(), console or Console(stderr=True)
    check_least(settings, 1, ["steps"])
    for name in settings.names:
        if name not in CHANGES:
            raise UserError(f"scripts/ablate: change {name!r} is unknown: {suggestion(name, tuple(CHANGES))}")
    made = {(name, seed): _trained(settings, name, seed, console) for seed in settings.seeds for name in settings.names}
    groups = [f"{name}={','.join(str(made[name, seed]) for seed in settings.seeds)}" for name in settings.names]
    console.print(f"compare them: scripts/evaluate abr --reference {settings.names[0]} --adapters {' '.join(groups)}", soft_wrap=True)
    return list(made.values())


def _trained(settings: AblateSettings, name: str, seed: int, console: Console) -> Path:
    folder = settings.out / f"{name}-{seed}"
    if (folder / "adapter" / CARD).is_file():
        return folder / "adapter"
    console.print(f"{name}, seed {seed}")
    full = replace(settings.adapt, collect=replace(settings.adapt.collect, seed=seed), steps=settings.steps)
    experience = settings.out / f"experience-{seed}.parquet"
    if not experience.is_file():
        collect(experience, full.collect)
    asked = json.loads(json.dumps(asdict(full.collect)))
    if other := sorted(key for key, value in asked.items() if read_header(experience)["settings"].get(key) != value):
        raise UserError(f"{experience}: was collected with another {', '.join(other)}, wanted the settings the folder was begun with")
    begun = folder.is_dir() and any(folder.iterdir())
    return adapt(replace(CHANGES[name](full), out=folder, experience=experience, resume=begun), console)
