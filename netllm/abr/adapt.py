"""`scripts/adapt abr`: train an adapter on teachers' labels over whole sessions, with DAgger rounds (Ross et al., AISTATS 2011).

A session is one sequence, so one pass gives 47 decisions to learn from. Rounds of DAgger let the student play, ask the teachers what they
would have done in the states met, and add them to the pool. The model kept is the one with the best QoE in validation sessions, where
held-out measurement units and logs, fcc/valid, and synthetic traces count alike. Test splits are never read but to prove that training
shares nothing with them.

Equal seeds, versions and thread counts give equal data, order and initial weights. With `--steps` the result repeats to the last bit on one
machine; with `--minutes` the number of steps, and so the weights, depend on its speed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from controllers.api import Chunk
from controllers.learning.loop import Figures, Validation
from controllers.learning.start import check_least
from netllm.abr import experience
from netllm.abr.experience import CollectSettings, Episode, Job
from netllm.abr.lessons import loss_of, prepare, stack
from netllm.adaptation import Adaptation
from netllm.backbone import DEFAULT_DTYPE, EMBEDDED
from netllm.lora import LoraSettings
from netllm.tasks.abr import AbrTask, student_of
from netllm.training import OptimiserSettings, pick, train_step
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.stats import Estimate, estimate
from traces.training import Sources, group_of

FAMILIES = ("held_out", "valid", "synthetic")
"""Of validation sessions (`traces/training.py`)."""


@dataclass(frozen=True)
class AdaptSettings:
    """How to adapt the language model."""

    minutes: float = 45.0
    """Time budget for training, over all resumed runs; collecting the first experience comes on top."""
    steps: int = 0
    """Optimiser steps instead of a time budget, for a run that repeats exactly."""
    out: Path = Path("results/adapt-abr")
    """Folder for checkpoints, learning curve and the adapter (`OUT/adapter`)."""
    resume: bool = False
    """Go on from the last checkpoint in OUT."""
    llm: str = EMBEDDED
    """Backbone: the embedded one, or a folder with a Hugging Face causal language model; with `:random` after it, one of its sizes that was
    never trained."""
    dtype: str = DEFAULT_DTYPE
    """Type of the frozen weights, bfloat16 or float32 (default: the quicker one here); what is trained is kept in float32."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 3
    """DAgger rounds, spread over the budget from three fifths of it on."""
    round_sessions: int = 240
    """Sessions that the student plays in each."""
    validate_minutes: float = 5.0
    """Of a time budget: time between two validations."""
    validations: int = 1
    """Of a number of steps: validations at equal distances, the last at the end. They may not hang on the machine's pace."""
    validation_sessions: int = 128
    """Sessions of each family to validate with. Few stalls weigh much: with 32, two looks at one model differ by 0.05."""
    checkpoint_minutes: float = 2.0
    """Time between two checkpoints."""
    experience: Path | None = None
    """An experience file that another run left in its OUT, instead of collecting."""
    collect: CollectSettings = field(default_factory=CollectSettings)
    """What to collect, and the seed of everything."""
    task: AbrTask = field(default_factory=AbrTask)
    """What the model is told, and in how many tokens."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """The adapter's size."""
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    """How to train it."""


@dataclass(frozen=True)
class Score:
    """QoE per chunk in validation: the mean over families, so that none counts for its number of sessions."""

    qoe: float
    ci95: float
    """Half width of the 95 % interval."""
    families: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{family} {qoe:.3f}" for family, qoe in self.families.items())
        return f"{self.qoe:.3f} ± {self.ci95:.3f} ({parts})"

    def as_facts(self) -> dict[str, Any]:
        """For the adapter's settings file."""
        families = {family: round(qoe, 4) for family, qoe in self.families.items()}
        return {"qoe": round(self.qoe, 4), "ci95": round(self.ci95, 4), "families": families}


def score_of(batch: Sequence[Job], played: Sequence[Sequence[Chunk]]) -> Score:
    """The score of sessions of `batch` that went as `played`."""
    qoe = [summarise(chunks, job.session.video).qoe for job, chunks in zip(batch, played, strict=True)]
    found = by_family(batch, qoe)
    families = {family: each.mean for family, each in found.items() if each.mean is not None}
    half_widths = [each.half_width for each in found.values()]  # NaN where too little was measured
    return Score(float(np.mean(list(families.values()))), float(np.linalg.norm(half_widths)) / len(families), families)


def by_family(batch: Sequence[Job], values: Sequence[float]) -> dict[str, Estimate]:
    """Mean of a value per session in each family. Sessions on one household's or ride's traces are not taken for independent."""
    families: dict[str, dict[int, float]] = {}
    for number, (job, value) in enumerate(zip(batch, values, strict=True)):
        families.setdefault(job.family, {})[number] = value
    measured = [number if job.family == "synthetic" else group_of(job.trace) for number, job in enumerate(batch)]
    return {family: estimate(list(each.values()), [measured[number] for number in each]) for family, each in families.items()}


def adapt(settings: AdaptSettings | None = None, console: Console | None = None) -> Path:
    """Train an adapter and return its folder, `settings.out / "adapter"`."""
    settings = settings or AdaptSettings()
    _check(settings)
    torch.set_num_threads(settings.threads)
    return Run(settings, console or Console(stderr=True)).run()


def _check(settings: AdaptSettings) -> None:
    check_least(settings, 0, ["steps", "rounds", "collect.seed", "lora.rank"])
    check_least(settings, 1, ["threads", "validation_sessions", "round_sessions", "collect.sessions"])
    check_least(settings, 1, ["optimiser.batch", "optimiser.accumulation"])
    check_least(settings, 2, ["collect.chunks"])
    for name in ("teachers", "behaviours", "traces", "videos", "validation_videos"):
        if not getattr(settings.collect, name):
            raise UserError(f"--collect.{name} is empty, wanted at least one")
    if not settings.steps and not settings.minutes > 0:
        raise UserError(f"--minutes is {settings.minutes:g}, wanted more than 0 (or --steps)")


class Run(Adaptation):
    """One training run for ABR."""

    dagger_from, dagger_to = 0.6, 0.95
    settings: AdaptSettings

    def __init__(self, settings: AdaptSettings, console: Console) -> None:
        self.sources: Sources = experience.sources_of(settings.collect)
        self.validation: list[Job] = experience.validation_jobs(settings.collect, self.sources, settings.validation_sessions)
        self.task = settings.task
        super().__init__(settings, console)

    def start(self) -> None:
        """See `Adaptation`."""
        first = self.settings.experience or self._first_pool()
        self.header = self._checked(first)
        self.pools.append(prepare(self.task, experience.read(first)))
        self._take_up([self.header])
        taught = experience.play(experience.as_teacher(self.validation), self.settings.collect.teachers)
        self.held_out = stack(prepare(self.task, taught))
        self.teacher_score = score_of(self.validation, [each.chunks for each in taught])
        self.console.print(f"{sum(map(len, self.pools))} sessions; the teacher reaches {self.teacher_score} in validation")

    def _first_pool(self) -> Path:
        path = self.settings.out / "experience.parquet"
        if not path.is_file():
            self.console.print(f"collecting {self.settings.collect.sessions} sessions")
            experience.collect(path, self.settings.collect)
        return path

    def _checked(self, path: Path) -> dict[str, Any]:
        """The header of an experience file that keeps validation apart from it, and has the teachers of this run."""
        header, teachers = experience.read_header(path), list(self.settings.collect.teachers)
        if header["held_out"] != self.sources.held_out_groups:
            raise UserError(f"{path}: holds back other traces than this run validates on, wanted the same traces and share")
        if header["teachers"] != teachers:
            raise UserError(f"{path}: was labelled by {', '.join(header['teachers'])}, wanted {', '.join(teachers)} as in this run")
        asked = json.loads(json.dumps(asdict(self.settings.collect)))
        if self.settings.experience is None and (other := sorted(name for name in asked if header["settings"].get(name) != asked[name])):
            raise UserError(f"{path}: was collected with another {', '.join(other)}, wanted the settings the run was begun with")
        return header

    def _learn(self, number: int, done: float) -> tuple[float, int]:
        """See `Adaptation`."""
        batches = self._batches(number)
        tokens = sum(batch["weight"].size for batch in batches) * self.model.step_tokens
        return train_step(self.model, self.optimiser, self.settings.optimiser, batches, loss_of), tokens

    def _batches(self, step: int) -> list[dict[str, np.ndarray]]:
        """Half of each batch from the first pool, half from the DAgger rounds once there are any."""
        optimiser = self.settings.optimiser
        places = pick(self.settings.collect.seed, step, optimiser.batch * optimiser.accumulation, [len(pool) for pool in self.pools])
        chosen = [self.pools[pool][session] for pool, session in places]
        return [stack(chosen[i : i + optimiser.batch]) for i in range(0, len(chosen), optimiser.batch)]

    def _read_round(self, path: Path) -> list[Episode]:
        """See `Adaptation`."""
        return experience.read(path)

    def _play_round(self, number: int, path: Path) -> list[Episode]:
        """See `Adaptation`."""
        seed = self.settings.collect.seed + 1000 * (number + 1)
        collect = replace(self.settings.collect, seed=seed, sessions=self.settings.round_sessions)
        batch = experience.jobs(collect, self.sources, behaviours=("student",))
        found = experience.play(batch, collect.teachers, student_of(self.model, self.task))
        experience.write(path, found, experience.header(collect, self.sources, dagger_round=number + 1))
        return found

    def _add_round(self, episodes: Sequence[Episode]) -> None:
        prepared = prepare(self.task, episodes)
        if len(self.pools) == 1:
            self.pools.append([])
        self.pools[1].extend(prepared)

    def _judge(self, told: Figures) -> Validation:
        """QoE of the student in the validation sessions, and its loss on the teacher's."""
        sims = experience.play_together(self.validation, student_of(self.model, self.task))
        score = score_of(self.validation, [sim.history for sim in sims])
        with torch.inference_mode():
            valid_loss = loss_of(self.model, self.held_out).item()
        said = f"validation QoE {score} (teacher {self.teacher_score.qoe:.3f}), loss {valid_loss:.3f}"
        facts = score.as_facts() | {
            "sessions": len(self.validation),
            "teacher_qoe": round(self.teacher_score.qoe, 4),
            "teacher_families": self.teacher_score.as_facts()["families"],
        }
        return Validation(-score.qoe, self._row(told, score, valid_loss), said, facts)

    def _row(self, told: Figures, score: Score, valid_loss: float) -> dict[str, Any]:
        optimiser = self.settings.optimiser
        row = {
            "sessions": self.loop.standing.step * optimiser.batch * optimiser.accumulation,
            "train_loss": told["loss"],
            "valid_loss": valid_loss,
            "valid_qoe": score.qoe,
            "valid_qoe_ci95": score.ci95,
            **{f"valid_qoe_{family}": score.families.get(family, "") for family in FAMILIES},
            "teacher_qoe": self.teacher_score.qoe,
            "tokens_per_s": told["tokens_per_s"],
            "dagger_rounds": self.rounds,
        }
        return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}

    def _own_story(self) -> dict[str, Any]:
        """See `Adaptation`."""
        return {"experience": self.header, "sessions": [len(pool) for pool in self.pools]}
