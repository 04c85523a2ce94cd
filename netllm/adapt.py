"""`scripts/adapt abr`: train an adapter on teachers' labels over whole sessions, with DAgger rounds (Ross et al., AISTATS 2011).

A session is one sequence, so one pass gives 47 decisions to learn from. Rounds of DAgger let the student play, ask the teachers what they
would have done in the states met, and add them to the pool. The model kept is the one with the best QoE in validation sessions, where
held-out measurement units and logs, fcc/valid, and synthetic traces count alike. Test splits are never read but to prove that training
shares nothing with them.

Equal seeds, versions and thread counts give equal data, order and initial weights. With `--steps` the result repeats to the last bit on one
machine; with `--minutes` the number of steps, and so the weights, depend on its speed.
"""

import csv
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from controllers.api import AbrObservation, Chunk
from controllers.learning.start import check_least, open_folder
from netllm import experience
from netllm.adapter import new_model, save_adapter
from netllm.backbone import DEFAULT_DTYPE, EMBEDDED, load_backbone
from netllm.card import write_card
from netllm.experience import CollectSettings, Episode, Job
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.abr import AbrReader, AbrTask, choose
from netllm.training import (
    OptimiserSettings,
    Progress,
    RunningMean,
    load_checkpoint,
    loss_of,
    make_optimiser,
    pick,
    prepare,
    save_checkpoint,
    set_rate,
    stack,
    train_step,
)
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.stats import estimate
from traces.training import Sources

CURVE = "curve.csv"
FAMILIES = ("held_out", "valid", "synthetic")
"""Of validation sessions (`traces/training.py`)."""
DAGGER_FROM, DAGGER_TO = 0.6, 0.95
"""Share of the budget at which DAgger begins, and at which a round after the last would be due."""
COLUMNS = (
    "step",
    "elapsed_s",
    "sessions",
    "train_loss",
    "valid_loss",
    "valid_qoe",
    "valid_qoe_ci95",
    *(f"valid_qoe_{family}" for family in FAMILIES),
    "teacher_qoe",
    "tokens_per_s",
    "dagger_rounds",
)


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
    """Type of the frozen weights, bfloat16 or float32; what is trained is kept in float32."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 3
    """DAgger rounds, spread over the last third of the budget."""
    round_sessions: int = 240
    """Sessions that the student plays in each."""
    validate_minutes: float = 5.0
    """Time between two validations."""
    validation_sessions: int = 128
    """Sessions of each family to validate with. Few stalls weigh much: with 32, two looks at one model differ by 0.05."""
    checkpoint_minutes: float = 2.0
    """Time between two checkpoints."""
    experience: Path | None = None
    """An experience file made by `netllm.collect`, instead of collecting."""
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
    by_family: dict[str, list[float]] = {}
    for job, chunks in zip(batch, played, strict=True):
        by_family.setdefault(job.family, []).append(summarise(chunks, job.session.video).qoe)
    half_widths = [estimate(values).half_width for values in by_family.values()]  # NaN where there are too few sessions
    families = {family: float(np.mean(values)) for family, values in by_family.items()}
    return Score(float(np.mean(list(families.values()))), float(np.linalg.norm(half_widths)) / len(families), families)


def adapt(settings: AdaptSettings | None = None, console: Console | None = None) -> Path:
    """Train an adapter and return its folder, `settings.out / "adapter"`."""
    settings = settings or AdaptSettings()
    _check(settings)
    torch.set_num_threads(settings.threads)
    run = Run(settings, console or Console(stderr=True))
    try:
        run.start()
        run.train()
        return run.finish()
    finally:
        run.model.switch.remove()  # after Ctrl-C in a notebook, too: the backbone lives on


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


class Run:
    """One training run: the model, the pools of experience, and how far it is."""

    def __init__(self, settings: AdaptSettings, console: Console) -> None:
        self.settings, self.console, self.commit = settings, console, checkout_commit() or "unknown"
        open_folder(settings.out, settings.resume)
        self.sources: Sources = experience.sources_of(settings.collect)
        self.validation: list[Job] = experience.validation_jobs(settings.collect, self.sources, settings.validation_sessions)
        load_backbone(settings.llm, settings.dtype)  # before the seed: the first load in a process draws random numbers
        torch.manual_seed(settings.collect.seed)
        self.task, self.asked = settings.task, {"collect": asdict(settings.collect)}
        self.model = new_model(settings.llm, settings.dtype, self.task, settings.lora)
        self.optimiser = make_optimiser(self.model, settings.optimiser)
        self.mean = RunningMean(self.model.adapt_parameters(), settings.optimiser.keep)
        self.progress = Progress()
        self.pools: list[list[dict[str, np.ndarray]]] = []
        self.seen_tokens, self.seen_s, self.losses = 0, 0.0, list[float]()
        self.last_checkpoint_s = 0.0

    def start(self) -> None:
        """Collect or read experience, and take up the last checkpoint."""
        first = self.settings.experience or self._first_pool()
        self.header = self._checked(first)
        self.pools.append(prepare(self.task, experience.read(first)))
        if self.settings.resume and (found := load_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.asked)):
            self.progress = found
            self.last_checkpoint_s = found.elapsed_s
            self._cut_curve()
            self.console.print(f"resumed at step {found.step}, {found.elapsed_s / 60:.1f} min of training done")
        for number in range(self.progress.rounds):
            self._add_round(experience.read(self._round_file(number)))
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

    def _left_s(self) -> float:
        return self.progress.elapsed_s * (1 / self.done - 1) if self.done else 0.0

    def _state(self) -> str:
        loss = float(np.mean(self.losses[-50:])) if self.losses else float("nan")
        speed = self.seen_tokens / self.seen_s if self.seen_s else 0.0
        return f"step {self.progress.step}  loss {loss:.3f}  best QoE {max(self.progress.best_qoe, -9):.3f}  {speed:.0f} tokens/s"

    def _advance(self) -> None:
        """One optimiser step and whatever is due after it."""
        started_s = now_s()
        step = self.progress.step
        set_rate(self.optimiser, self.settings.optimiser, step, self.done)
        batches = self._batches(step)
        self.model.train()
        self.losses.append(train_step(self.model, self.optimiser, self.settings.optimiser, batches))
        self.mean.update(step + 1)
        took_s = now_s() - started_s
        self.seen_tokens += sum(batch["weight"].size * self.model.step_tokens for batch in batches)
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

    def _batches(self, step: int) -> list[dict[str, np.ndarray]]:
        """Half of each batch from the first pool, half from the DAgger rounds once there are any."""
        optimiser = self.settings.optimiser
        places = pick(self.settings.collect.seed, step, optimiser.batch * optimiser.accumulation, [len(pool) for pool in self.pools])
        chosen = [self.pools[pool][session] for pool, session in places]
        return [stack(chosen[i : i + optimiser.batch]) for i in range(0, len(chosen), optimiser.batch)]

    def _dagger_if_due(self) -> None:
        """The rounds begin at equal distances from `DAGGER_FROM` on."""
        number = self.progress.rounds
        if number >= self.settings.rounds or self.done < DAGGER_FROM + (DAGGER_TO - DAGGER_FROM) * number / self.settings.rounds:
            return
        seed = self.settings.collect.seed + 1000 * (number + 1)
        collect = replace(self.settings.collect, seed=seed, sessions=self.settings.round_sessions)
        self.model.eval()
        batch = experience.jobs(collect, self.sources, behaviours=("student",))
        with self.mean.in_place():
            found = experience.play(batch, collect.teachers, student_of(self.model, self.task))
        experience.write(self._round_file(number), found, experience.header(collect, self.sources, dagger_round=number + 1))
        self._add_round(found)
        self.progress = replace(self.progress, rounds=number + 1)
        self._checkpoint()

    def _round_file(self, number: int) -> Path:
        return self.settings.out / f"experience-round-{number + 1}.parquet"

    def _add_round(self, episodes: Sequence[Episode]) -> None:
        prepared = prepare(self.task, episodes)
        if len(self.pools) == 1:
            self.pools.append([])
        self.pools[1].extend(prepared)

    def _validate_if_due(self) -> None:
        if self.done >= 1 or self.progress.elapsed_s - self.progress.last_validation_s >= self.settings.validate_minutes * 60:
            self._validate()

    def _validate(self) -> None:
        """QoE of the student in the validation sessions and its loss on the teacher's; keeps the best model. All of the mean of weights."""
        self.model.eval()
        with self.mean.in_place():
            sims = experience.play_together(self.validation, student_of(self.model, self.task))
            score = score_of(self.validation, [sim.history for sim in sims])
            with torch.inference_mode():
                valid_loss = loss_of(self.model, self.held_out).item()
            self._record(score, valid_loss)
            if score.qoe > self.progress.best_qoe:
                save_adapter(self.model, self.settings.out / "adapter", self._facts(score))
        best = max(score.qoe, self.progress.best_qoe)
        self.progress = replace(self.progress, best_qoe=best, last_validation_s=self.progress.elapsed_s, validated=self.progress.step)

    def _record(self, score: Score, valid_loss: float) -> None:
        path = self.settings.out / CURVE
        new = not path.exists()
        sessions = self.progress.step * self.settings.optimiser.batch * self.settings.optimiser.accumulation
        speed = self.seen_tokens / max(self.seen_s, 1e-9)
        loss = float(np.mean(self.losses[-50:])) if self.losses else float("nan")
        families = [score.families.get(family, "") for family in FAMILIES]
        row = (self.progress.step, round(self.progress.elapsed_s), sessions, loss, valid_loss, score.qoe, score.ci95, *families)
        row = (*row, self.teacher_score.qoe, speed, self.progress.rounds)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in row])
        self.console.print(
            f"step {self.progress.step}: validation QoE {score} (teacher {self.teacher_score.qoe:.3f}), loss {valid_loss:.3f}"
        )

    def _cut_curve(self) -> None:
        """Forget validations that the checkpoint knows nothing of: they will come again."""
        path = self.settings.out / CURVE
        if path.is_file():
            head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text(
                "".join([head, *(row for row in rows if int(row.partition(",")[0]) <= self.progress.validated)]), encoding="utf-8"
            )

    def _checkpoint(self) -> None:
        save_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.progress, self.asked)
        self.last_checkpoint_s = self.progress.elapsed_s
        if not self.console.is_terminal:  # where the bar can't be seen
            self.console.print(f"{self._state()}  {self._left_s() / 60:.0f} min left")

    def _facts(self, score: Score) -> dict[str, Any]:
        """What the adapter's settings file tells of its making."""
        settings = self.settings
        return {
            "trained": {
                "utc": utc_now().isoformat(timespec="seconds"),
                "commit": self.commit,
                "command": _command(),
                "seed": settings.collect.seed,
                "steps": self.progress.step,
                "minutes": round(self.progress.elapsed_s / 60, 1),
                "dagger_rounds": self.progress.rounds,
                "dtype": settings.dtype,
                "optimiser": asdict(settings.optimiser),
                "experience": self.header,
                "collect": self.asked["collect"],
                "sessions": [len(pool) for pool in self.pools],
                "hardware": f"{_processor()}, {settings.threads} threads",
                "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
            },
            "validation": score.as_facts()
            | {
                "sessions": len(self.validation),
                "teacher_qoe": round(self.teacher_score.qoe, 4),
                "teacher_families": self.teacher_score.as_facts()["families"],
            },
        }

    def finish(self) -> Path:
        """Write the model card of the best adapter."""
        folder = self.settings.out / "adapter"
        write_card(folder, self.settings.out / CURVE)
        return folder


def student_of(model: TaskModel, task: AbrTask) -> Callable[[Sequence[AbrObservation]], list[int]]:
    """Greedy decisions for a batch of sessions, with a context of their own."""
    reader = AbrReader(model, task)

    def decide(observations: Sequence[AbrObservation]) -> list[int]:
        return [choose(row, each, task) for row, each in zip(reader.decide(observations), observations, strict=True)]

    return decide


def _command() -> str:
    """How to do it again, but for the folders."""
    program = Path(sys.argv[0])
    return command_line(f"scripts/{program.name}", sys.argv[1:]) if program.name in ("adapt", "ablate") else "netllm.adapt(...)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
