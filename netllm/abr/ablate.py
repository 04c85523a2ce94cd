"""`scripts/ablate abr`: one training, repeated with one thing changed each time, over several seeds (`netllm/ablations.py`).

All runs of a seed read the same experience and take the same number of steps, so that what differs is the change alone.
`scripts/evaluate abr --adapters ...` compares them; the command is printed.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from controllers.loader import RANDOM
from netllm import ablations
from netllm.ablations import REFERENCE, Change
from netllm.abr.adapt import AdaptSettings, adapt
from netllm.abr.experience import collect, read_header
from testbed.errors import UserError

CHANGES: dict[str, Change[AdaptSettings]] = {
    REFERENCE: Change("nothing but what the command says", lambda full: full),
    "random-backbone": Change(
        "the backbone has the sizes and scales of the pre-trained one, and was never trained",
        lambda full: replace(full, llm=full.llm + RANDOM),
    ),
    "no-lora": Change("no LoRA: the backbone is what it was", lambda full: replace(full, lora=replace(full.lora, rank=0))),
    "rank-4": Change("LoRA of rank 4, alpha over rank as before", lambda full: replace(full, lora=replace(full.lora, rank=4, alpha=8))),
    "history-5": Change("each layer looks back on five chunks only", lambda full: replace(full, task=replace(full.task, context_steps=5))),
    "no-context": Change(
        "no chunk but the present one is in the context", lambda full: replace(full, task=replace(full.task, context_steps=1))
    ),
    "no-return": Change("the return still wanted is not told", lambda full: replace(full, task=replace(full.task, return_token=False))),
    "separate-tokens": Change(
        "a token for each modality, as in NetLLM, not one a chunk", lambda full: replace(full, task=replace(full.task, tokens="separate"))
    ),
}
"""What is changed, by name. The first five changes are those of NetLLM (section 5.4 and its appendix)."""


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

    def reference(seed: int) -> AdaptSettings:
        return replace(settings.adapt, collect=replace(settings.adapt.collect, seed=seed), steps=settings.steps)

    def train(full: AdaptSettings, seed: int, folder: Path, resume: bool) -> Path:
        return adapt(replace(full, out=folder, experience=_experience(settings.out, full), resume=resume), console)

    return ablations.run("abr", settings, CHANGES, reference, train, console)


def _experience(out: Path, full: AdaptSettings) -> Path:
    """What all runs of a seed read."""
    path = out / f"experience-{full.collect.seed}.parquet"
    if not path.is_file():
        collect(path, full.collect)
    asked = json.loads(json.dumps(asdict(full.collect)))
    if other := sorted(key for key, value in asked.items() if read_header(path)["settings"].get(key) != value):
        raise UserError(f"{path}: was collected with another {', '.join(other)}, wanted the settings the folder was begun with")
    return path
