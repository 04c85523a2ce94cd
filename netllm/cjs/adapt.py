"""`scripts/adapt cjs`: train an adapter on what look-ahead says of decisions, with DAgger rounds (Ross et al., AISTATS 2011).

A window of consecutive decisions is one sequence, so one pass gives 64 decisions to learn from. Rounds of DAgger let the student play whole
sessions and label windows of them. The model kept is the one with the best score in validation sessions: the mean over them of the
logarithm of its JCT over that of the rule `srpt_cap` on the same workload. Their seeds are no training's, no evaluation's and no
published result's.

Equal seeds, versions and thread counts give equal data, order and initial weights. With `--steps` the result repeats on one machine; with
`--minutes` the number of steps, and so the weights, depend on its speed.
"""

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

from controllers.api import CjsAction
from controllers.learning.cjs_sessions import VALIDATION, CjsJob, validation_sessions
from controllers.learning.saved import add_row, cut_curve
from controllers.learning.start import check_least, open_folder
from netllm.adapter import new_model, save_adapter
from netllm.backbone import DEFAULT_DTYPE, EMBEDDED, load_backbone
from netllm.cjs import experience
from netllm.cjs.batches import Batch, LabelSettings, Window, loss_of, stack, windows_of
from netllm.cjs.card import write_card
from netllm.cjs.experience import CjsCollectSettings, CjsEpisode
from netllm.cjs.graph import CjsModel
from netllm.cjs.reader import CjsReader
from netllm.lora import LoraSettings
from netllm.tasks.cjs import CjsTask
from netllm.training import (
    OptimiserSettings,
    Progress,
    RunningMean,
    load_checkpoint,
    make_optimiser,
    pick,
    save_checkpoint,
    set_rate,
    train_step,
)
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.host import cpu_field
from testbed.stats import Estimate, estimate

CURVE = "curve.csv"
DAGGER_FROM, DAGGER_TO = 0.45, 0.9
"""Share of the budget at which DAgger begins, and at which a round after the last would be due."""
HELD_OUT_SESSIONS = 8
"""Sessions whose labelled windows give the validation loss."""


@dataclass(frozen=True)
class CjsAdaptSettings:
    """How to adapt the language model to scheduling."""

    minutes: float = 45.0
    """Time budget for training, over all resumed runs; collecting the first experience comes on top."""
    steps: int = 0
    """Optimiser steps instead of a time budget, for a run that repeats exactly."""
    out: Path = Path("results/adapt-cjs")
    """Folder for checkpoints, learning curve and the adapter (`OUT/adapter`)."""
    resume: bool = False
    """Go on from the last checkpoint in OUT."""
    llm: str = EMBEDDED
    """Backbone: the embedded one, or a folder with a Hugging Face causal language model; with `:random` after it, one of its sizes that was
    never trained."""
    dtype: str = DEFAULT_DTYPE
    """Type of the frozen weights, bfloat16 or float32; what is trained is kept in float32."""
    threads: int = 2
    """CPU threads, and processes that collect."""
    bare: float = 0.2
    """Share of the budget in which encoder and heads learn without the language model, ten times as quickly; it comes in after that."""
    rounds: int = 2
    """DAgger rounds."""
    round_sessions: int = 16
    """Sessions that the student plays in each."""
    validate_minutes: float = 11.0
    """Time between two validations."""
    checkpoint_minutes: float = 3.0
    """Time between two checkpoints."""
    experience: tuple[Path, ...] = ()
    """Experience files of earlier runs, instead of collecting."""
    collect: CjsCollectSettings = field(default_factory=CjsCollectSettings)
    """What to collect, and the seed of everything."""
    labels: LabelSettings = field(default_factory=LabelSettings)
    """What costs of candidates say."""
    task: CjsTask = field(default_factory=CjsTask)
    """Sizes of encoder, heads and context."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """The adapter's size."""
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(batch=16))
    """How to train it; `batch` counts windows."""


def adapt(settings: CjsAdaptSettings | None = None, console: Console | None = None) -> Path:
    """Train an adapter and return its folder, `settings.out / "adapter"`."""
    settings = settings or CjsAdaptSettings()
    _check(settings)
    torch.set_num_threads(settings.threads)
    run = CjsRun(settings, console or Console(stderr=True))
    try:
        run.start()
        run.train()
        return run.finish()
    finally:
        run.model.switch.remove()


def _check(settings: CjsAdaptSettings) -> None:
    check_least(settings, 0, ["steps", "rounds", "bare", "collect.seed", "lora.rank"])
    check_least(settings, 1, ["threads", "round_sessions", "collect.sessions", "collect.windows", "task.context", "task.hidden"])
    check_least(settings, 1, ["optimiser.batch", "optimiser.accumulation"])
    check_least(settings, 2, ["collect.window"])
    if not settings.steps and not settings.minutes > 0:
        raise UserError(f"--minutes is {settings.minutes:g}, wanted more than 0 (or --steps)")
    if settings.collect.window > settings.task.context:
        raise UserError(f"--collect.window is {settings.collect.window}, wanted at most --task.context, {settings.task.context}")


def rule_jct_s(batch: Sequence[CjsJob]) -> np.ndarray:
    """Mean JCT of each session when the rule decides."""
    ahead, found = experience.look_ahead(), []
    for job in batch:
        simulator = job.simulator()
        while not simulator.ended:
            simulator.step(CjsAction(*ahead.rule(simulator)))
        found.append(simulator.summary.avg_jct_s)
    return np.array(found)


def student_jct_s(model: CjsModel, batch: Sequence[CjsJob]) -> np.ndarray:
    """Mean JCT of each session when the model decides."""
    simulators = [job.simulator() for job in batch]
    experience.play_together(simulators, CjsReader(model))
    return np.array([simulator.summary.avg_jct_s for simulator in simulators])


class CjsRun:
    """One training run: the model, the pools of windows, and how far it is."""

    def __init__(self, settings: CjsAdaptSettings, console: Console, validation: Sequence[CjsJob] | None = None) -> None:
        self.settings, self.console, self.commit = settings, console, checkout_commit() or "unknown"
        open_folder(settings.out, settings.resume)
        self.validation = list(validation or validation_sessions())
        load_backbone(settings.llm, settings.dtype)  # before the seed: the first load in a process draws random numbers
        torch.manual_seed(settings.collect.seed)
        self.asked = {"collect": asdict(settings.collect), "labels": asdict(settings.labels)}
        self.model = new_model(settings.llm, settings.dtype, settings.task, settings.lora)
        assert isinstance(self.model, CjsModel)
        self.optimiser = make_optimiser(self.model, settings.optimiser)
        self.mean = RunningMean(self.model.adapt_parameters(), settings.optimiser.keep)
        self.progress = Progress()
        self.pools: list[list[Window]] = []
        self.held_out: list[Batch] = []
        self.headers: list[dict[str, Any]] = []
        self.seen_tokens, self.seen_s, self.losses = 0, 0.0, list[float]()
        self.last_checkpoint_s = 0.0

    def start(self) -> None:
        """Collect or read experience, and take up the last checkpoint."""
        files = list(self.settings.experience) or [self._collected()]
        self.headers = [experience.read_header(path) for path in files]
        episodes = [episode for path in files for episode in experience.read(path)]
        self.console.print(f"playing {len(episodes)} sessions again")
        kept, held_out = episodes[:-HELD_OUT_SESSIONS] or episodes, episodes[-HELD_OUT_SESSIONS:]
        self.pools.append(self._windows(kept))
        windows = [each for episode in held_out for each in windows_of(episode, self.settings.labels)]
        size = self.settings.optimiser.batch
        self.held_out = [stack(group) for group in _alike(windows, size)]
        if self.settings.resume and (found := load_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.asked)):
            self.progress = found
            self.last_checkpoint_s = found.elapsed_s
            cut_curve(self.settings.out / CURVE, found.validated)
            self.console.print(f"resumed at step {found.step}, {found.elapsed_s / 60:.1f} min of training done")
        for number in range(self.progress.rounds):
            self._add_round(experience.read(self._round_file(number)))
        self.rule_s = rule_jct_s(self.validation)
        self.console.print(f"{sum(map(len, self.pools))} windows to learn from, {len(windows)} held out")

    def _windows(self, episodes: Sequence[CjsEpisode]) -> list[Window]:
        """Whole ones only, so that all of a batch are of equal length."""
        found = [each for episode in episodes for each in windows_of(episode, self.settings.labels)]
        whole = [each for each in found if each.decisions == self.settings.collect.window]
        if not whole:
            raise UserError(
                f"no session has a window of {self.settings.collect.window} decisions, wanted longer sessions or shorter windows"
            )
        return whole

    def _collected(self) -> Path:
        path = self.settings.out / "experience.parquet"
        if path.is_file():
            return path
        settings, found = self.settings.collect, list[CjsEpisode]()
        with ProgressBar(TextColumn("collecting"), BarColumn(), TimeElapsedColumn(), console=self.console) as bar:
            row = bar.add_task("", total=settings.sessions)
            for episode in experience.play(experience.jobs(settings), settings, processes=self.settings.threads):
                found.append(episode)
                bar.advance(row)
        experience.write(path, found, experience.header(settings))
        return path

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
        return f"step {self.progress.step}  loss {loss:.4f}  {speed:.0f} tokens/s"

    def _advance(self) -> None:
        """One optimiser step and whatever is due after it."""
        started_s, step = now_s(), self.progress.step
        set_rate(self.optimiser, self.settings.optimiser, step, self.done)
        batches = self._batches(step)
        self.model.bare = self.done < self.settings.bare
        self.model.train()
        self.losses.append(train_step(self.model, self.optimiser, self.settings.optimiser, batches, loss_of))
        self.mean.update(step + 1)
        took_s = now_s() - started_s
        self.seen_tokens += sum(len(batch.seen.cluster) for batch in batches)
        self.seen_s += took_s
        self.progress = replace(self.progress, step=step + 1, elapsed_s=self.progress.elapsed_s + took_s)
        self.model.bare = False
        self._timed(self._dagger_if_due)
        self._timed(self._validate_if_due)
        if self.progress.elapsed_s - self.last_checkpoint_s >= self.settings.checkpoint_minutes * 60:
            self._checkpoint()

    def _timed(self, work: Callable[[], None]) -> None:
        started_s = now_s()
        work()
        self.progress = replace(self.progress, elapsed_s=self.progress.elapsed_s + now_s() - started_s)

    def _batches(self, step: int) -> list[Batch]:
        """Windows from all pools, each as likely as the other: the rounds' are few, so that they don't outweigh the first."""
        optimiser = self.settings.optimiser
        everything = [window for pool in self.pools for window in pool]
        places = pick(self.settings.collect.seed, step, optimiser.batch * optimiser.accumulation, [len(everything)])
        chosen = [everything[place] for _, place in places]
        return [stack(chosen[i : i + optimiser.batch]) for i in range(0, len(chosen), optimiser.batch)]

    def _dagger_if_due(self) -> None:
        """The rounds begin at equal distances from `DAGGER_FROM` on."""
        number = self.progress.rounds
        if number >= self.settings.rounds or self.done < DAGGER_FROM + (DAGGER_TO - DAGGER_FROM) * number / self.settings.rounds:
            return
        collect = replace(
            self.settings.collect, seed=self.settings.collect.seed + 50 * (number + 1), sessions=self.settings.round_sessions
        )  # fmt: skip
        self.model.eval()
        with self.mean.in_place():
            found = list(experience.play(experience.jobs(collect), collect, CjsReader(self.model)))
        experience.write(self._round_file(number), found, experience.header(collect, dagger_round=number + 1))
        self._add_round(found)
        self.progress = replace(self.progress, rounds=number + 1)
        self._checkpoint()

    def _round_file(self, number: int) -> Path:
        return self.settings.out / f"experience-round-{number + 1}.parquet"

    def _add_round(self, episodes: Sequence[CjsEpisode]) -> None:
        self.pools.append(self._windows(episodes))

    def _validate_if_due(self) -> None:
        if self.done >= 1 or self.progress.elapsed_s - self.progress.last_validation_s >= self.settings.validate_minutes * 60:
            self._validate()

    def _validate(self) -> None:
        """JCT of the student against the rule's, and its loss on labels held out; keeps the best model. All of the mean of weights."""
        self.model.eval()
        with self.mean.in_place():
            with torch.inference_mode():
                loss = float(np.mean([loss_of(self.model, batch).item() for batch in self.held_out]))
            score = estimate(np.log(student_jct_s(self.model, self.validation) / self.rule_s))
            self._record(score, loss)
            assert score.mean is not None
            if -score.mean > self.progress.best_qoe:  # `Progress` keeps what is better when larger
                save_adapter(self.model, self.settings.out / "adapter", self._facts(score))
        best = max(-score.mean, self.progress.best_qoe)
        self.progress = replace(self.progress, best_qoe=best, last_validation_s=self.progress.elapsed_s, validated=self.progress.step)

    def _record(self, score: Estimate, loss: float) -> None:
        row = {
            "step": self.progress.step,
            "elapsed_s": round(self.progress.elapsed_s),
            "train_loss": f"{np.mean(self.losses[-50:]) if self.losses else np.nan:.5g}",
            "valid_loss": f"{loss:.5g}",
            "valid_jct_over_rule": f"{np.exp(score.mean):.4f}",
            "valid_jct_over_rule_ci95": f"{score.half_width:.4f}",
            "tokens_per_s": round(self.seen_tokens / max(self.seen_s, 1e-9)),
            "dagger_rounds": self.progress.rounds,
        }
        add_row(self.settings.out / CURVE, row)
        said = f"JCT {row['valid_jct_over_rule']} ± {row['valid_jct_over_rule_ci95']} of the rule's"
        self.console.print(f"step {self.progress.step}: validation {said}, loss {row['valid_loss']} (training {row['train_loss']})")

    def _checkpoint(self) -> None:
        save_checkpoint(self.settings.out, self.model, self.optimiser, self.mean, self.progress, self.asked)
        self.last_checkpoint_s = self.progress.elapsed_s
        if not self.console.is_terminal:  # where the bar can't be seen
            self.console.print(f"{self._state()}  {self._left_s() / 60:.0f} min left")

    def _facts(self, score: Estimate) -> dict[str, Any]:
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
                "bare": settings.bare,
                "optimiser": asdict(settings.optimiser),
                "labels": asdict(settings.labels),
                "experience": self.headers,
                "collect": self.asked["collect"],
                "windows": [len(pool) for pool in self.pools],
                "hardware": f"{cpu_field('model name') or 'unknown processor'}, {settings.threads} threads",
                "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
            },
            "validation": {
                "sessions": [list(kind) for kind in VALIDATION],
                "jct_over_rule": round(float(np.exp(score.mean)), 4),
                "log_ci95": round(score.half_width, 4),
            },
        }

    def finish(self) -> Path:
        """Write the model card of the best adapter."""
        folder = self.settings.out / "adapter"
        write_card(folder, self.settings.out / CURVE)
        return folder


def _alike(windows: Sequence[Window], size: int) -> list[list[Window]]:
    """Groups of at most `size` windows of equal length."""
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(window.decisions, []).append(window)
    return [group[i : i + size] for group in by_length.values() for i in range(0, len(group), size)]


def _command() -> str:
    """How to do it again, but for the folders."""
    program = Path(sys.argv[0])
    return command_line("scripts/adapt", sys.argv[1:]) if program.name == "adapt" else "netllm.cjs.adapt.adapt(...)"
