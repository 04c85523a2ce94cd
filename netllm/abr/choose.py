"""`scripts/adapt abr-choose`: which of several adapters for ABR to ship, by their QoE in the same validation sessions.

A run of `scripts/adapt abr` keeps the best of its own looks, each at a few hundred sessions: enough to choose within a run, too few between
runs. Here each adapter plays the same sessions, more of them, of the same families, none of a test split. Adapters that held out other
traces in training are refused: they may have learnt from what they would be judged on.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from controllers.api import Chunk
from controllers.learning.loop import CURVE
from controllers.learning.start import check_least
from netllm.abr import experience
from netllm.abr.adapt import Score, by_family, score_of
from netllm.abr.experience import CollectSettings, Job
from netllm.adapter import LORA, LORA_SETTINGS, MODULES, SETTINGS, load_adapter, read_settings
from netllm.backbone import DEFAULT_DTYPE
from netllm.cards import write_card
from netllm.tasks.abr import AbrTask, student_of
from testbed.commit import checkout_commit
from testbed.errors import UserError
from testbed.metrics import summarise

TOGETHER = 128
"""Sessions played in step: what the context of more would take in memory brings no speed."""


@dataclass(frozen=True)
class ChooseSettings:
    """Choose among adapters by validation."""

    adapters: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of adapters, at least two; of equally good ones the first is chosen."""
    sessions: int = 512
    """Validation sessions of each family (units and logs held out, fcc/valid, synthetic)."""
    into: Path | None = None
    """Folder that the chosen adapter is copied into, with what was tried in its settings and card."""
    dtype: str = DEFAULT_DTYPE
    """Type of the frozen weights, bfloat16 or float32; default: the quicker one here."""
    threads: int = 1
    """CPU threads."""
    collect: CollectSettings = field(default_factory=CollectSettings)
    """Where validation sessions are drawn from: the settings that the adapters were trained with."""


@dataclass(frozen=True)
class Tried:
    """One adapter in the validation sessions."""

    folder: Path
    score: Score
    qoe: np.ndarray
    """Of each session."""

    def facts(self) -> dict[str, Any]:
        """For the settings file of the adapter that is chosen."""
        trained = read_settings(self.folder)["trained"]
        return {"command": trained["command"], "seed": trained["seed"], "commit": trained["commit"], **self.score.as_facts()}


def choose(settings: ChooseSettings, console: Console | None = None) -> Path:
    """Play the validation sessions with each adapter, print them side by side, copy the best if asked; returns its folder."""
    console = console or Console(stderr=True)
    check_least(settings, 1, ["sessions", "threads"])
    if len(settings.adapters) < 2:
        raise UserError(f"{len(settings.adapters)} adapter is given, wanted at least two to choose from")
    sources = experience.sources_of(settings.collect)
    for folder in settings.adapters:
        _check(folder, sources.held_out_groups)
    torch.set_num_threads(settings.threads)
    commit = checkout_commit() or "unknown"  # of the code that plays, whatever is committed meanwhile
    jobs = experience.validation_jobs(settings.collect, sources, settings.sessions)
    tried = [_tried(folder, jobs, settings.dtype, console) for folder in settings.adapters]
    best = max(tried, key=lambda each: each.score.qoe)
    _show(tried, best, jobs, console)
    if settings.into:
        _ship(best, tried, settings.into, {"sessions": len(jobs), "commit": commit})
        console.print(f"{best.folder} is in {settings.into}", markup=False, soft_wrap=True)
    return best.folder


def _check(folder: Path, held_out: Sequence[str]) -> None:
    content = read_settings(folder)
    if content["task"] != AbrTask.name:
        raise UserError(f"adapter {folder} is for task {content['task']}, wanted {AbrTask.name}")
    if content["trained"]["experience"]["held_out"] != list(held_out):
        raise UserError(f"adapter {folder} held out other traces in training than these are validated on, wanted the same traces and share")


def _tried(folder: Path, jobs: Sequence[Job], dtype: str, console: Console) -> Tried:
    model = load_adapter(folder, dtype=dtype)
    assert isinstance(model.task, AbrTask)
    played: list[Sequence[Chunk]] = []
    for start in track(range(0, len(jobs), TOGETHER), description=str(folder), console=console, disable=not console.is_terminal):
        sims = experience.play_together(jobs[start : start + TOGETHER], student_of(model, model.task))
        played += [sim.history for sim in sims]
    qoe = [summarise(chunks, job.session.video).qoe for chunks, job in zip(played, jobs, strict=True)]
    return Tried(folder, score_of(jobs, played), np.array(qoe))


def _show(tried: Sequence[Tried], best: Tried, jobs: Sequence[Job], console: Console) -> None:
    """Each adapter's QoE per chunk, and how far it is from the best one's on the same sessions."""
    table = Table(title=f"{len(jobs)} validation sessions, QoE per chunk, mean over families", box=SIMPLE_HEAD)
    for name in ("", "QoE", *best.score.families, "minus the best", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, each in enumerate(tried, 1):
        console.print(f"{number}: {each.folder}", markup=False, soft_wrap=True, highlight=False)
        families = [f"{qoe:.3f}" for qoe in each.score.families.values()]
        gap = [] if each is best else _gap(each, best, jobs)
        table.add_row(str(number), f"{each.score.qoe:.4f}", *families, *gap, style="bold" if each is best else "")
    console.print(table)


def _gap(one: Tried, other: Tried, jobs: Sequence[Job]) -> list[str]:
    """Paired difference and its interval, families counting alike."""
    parts = list(by_family(jobs, (one.qoe - other.qoe).tolist()).values())
    mean = float(np.mean([part.mean for part in parts if part.mean is not None]))
    half = float(np.linalg.norm([part.half_width for part in parts])) / len(parts)
    return [f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}"]


def _ship(best: Tried, tried: Sequence[Tried], into: Path, facts: dict[str, Any]) -> None:
    """Copy the best adapter's files, with what was tried; an adapter that lay there before is replaced."""
    content = read_settings(best.folder)
    content["chosen"] = {**facts, "tried": [each.facts() for each in tried]}
    into.mkdir(parents=True, exist_ok=True)
    if best.folder.resolve() != into.resolve():
        for name in (LORA_SETTINGS, LORA, MODULES, CURVE):
            (into / name).unlink(missing_ok=True)
            if (best.folder / name).is_file():
                shutil.copy(best.folder / name, into / name)
    (into / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_card(into)
