"""`scripts/adapt cjs`: train an adapter on what look-ahead says of decisions, with DAgger rounds (Ross et al., AISTATS 2011).

A window of consecutive decisions is one sequence, so one pass gives 64 decisions to learn from. Rounds of DAgger let the student play whole
sessions and label windows of them. The model kept is the one with the best score in validation sessions: the mean over them of the
logarithm of its JCT over that of the rule `srpt_cap` on the same workload. Their seeds are no training's, no evaluation's and no
published result's.

Equal seeds, versions and thread counts give equal data, order and initial weights. With `--steps` the result repeats on one machine; with
`--minutes` the number of steps, and so the weights, depend on its speed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from controllers.api import CjsAction
from controllers.learning.cjs_sessions import VALIDATION, CjsJob, validation_sessions, workloads
from controllers.learning.loop import Figures, Validation
from controllers.learning.start import check_least
from netllm.adaptation import Adaptation
from netllm.backbone import DEFAULT_DTYPE, EMBEDDED
from netllm.cjs import experience
from netllm.cjs.batches import Batch, LabelSettings, Window, loss_of, stack, windows_of
from netllm.cjs.experience import CjsCollectSettings, CjsEpisode
from netllm.cjs.reader import CjsReader
from netllm.graph import CjsModel
from netllm.lora import LoraSettings
from netllm.tasks.cjs import CjsTask
from netllm.training import OptimiserSettings, pick, train_step
from testbed.errors import UserError
from testbed.stats import estimate

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
    """Type of the frozen weights, bfloat16 or float32 (default: the quicker one here); what is trained is kept in float32."""
    threads: int = 2
    """CPU threads, and processes that collect."""
    bare: float = 0.5
    """Share of the budget in which encoder and heads learn without the language model, many times as quickly; it comes in after that."""
    rounds: int = 2
    """DAgger rounds."""
    round_sessions: int = 16
    """Sessions that the student plays in each."""
    validate_minutes: float = 11.0
    """Of a time budget: time between two validations."""
    validations: int = 1
    """Of a number of steps: validations at equal distances, the last at the end. They may not hang on the machine's pace."""
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
    return CjsRun(settings, console or Console(stderr=True)).run()


def _check(settings: CjsAdaptSettings) -> None:
    check_least(settings, 0, ["steps", "rounds", "bare", "collect.seed", "lora.rank"])
    check_least(settings, 1, ["threads", "round_sessions", "collect.sessions", "collect.windows", "task.context", "task.hidden"])
    check_least(settings, 1, ["optimiser.batch", "optimiser.accumulation"])
    check_least(settings, 2, ["collect.window"])
    workloads("collected", settings.collect.seed, count=max(settings.collect.sessions, settings.round_sessions))  # now, not in a round
    if not settings.experience:
        check_least(settings, HELD_OUT_SESSIONS + 1, ["collect.sessions"])
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


class CjsRun(Adaptation):
    """One training run for scheduling; its pools hold windows."""

    dagger_from, dagger_to = 0.45, 0.9
    settings: CjsAdaptSettings
    model: CjsModel

    def __init__(self, settings: CjsAdaptSettings, console: Console, validation: Sequence[CjsJob] | None = None) -> None:
        self.validation = list(validation or validation_sessions())
        self.held_out: list[Batch] = []
        self.headers: list[dict[str, Any]] = []
        super().__init__(settings, console)

    def start(self) -> None:
        """See `Adaptation`."""
        files = list(self.settings.experience) or [self._collected()]
        self.headers = [experience.read_header(path) for path in files]
        episodes = [episode for path in files for episode in experience.read(path)]
        self.console.print(f"playing {len(episodes)} sessions again")
        kept, held_out = episodes[:-HELD_OUT_SESSIONS], episodes[-HELD_OUT_SESSIONS:]
        if not kept:
            raise UserError(
                f"{files[0]}: there are {len(episodes)} sessions, wanted more than the {HELD_OUT_SESSIONS} that are held out of training"
            )
        self.pools.append(self._windows(kept))
        windows = [each for episode in held_out for each in windows_of(episode, self.settings.labels)]
        self.held_out = [stack(group) for group in _alike(windows, self.settings.optimiser.batch)]
        self._take_up(self.headers)
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
            asked, begun = json.loads(json.dumps(asdict(self.settings.collect))), experience.read_header(path)["settings"]
            if other := sorted(name for name in asked if begun.get(name) != asked[name]):
                raise UserError(f"{path}: was collected with another {', '.join(other)}, wanted the settings the run was begun with")
            return path
        settings, found = self.settings.collect, list[CjsEpisode]()
        with ProgressBar(TextColumn("collecting"), BarColumn(), TimeElapsedColumn(), console=self.console) as bar:
            row = bar.add_task("", total=settings.sessions)
            for episode in experience.play(experience.jobs(settings), settings, processes=self.settings.threads):
                found.append(episode)
                bar.advance(row)
        experience.write(path, found, experience.header(settings))
        return path

    def _learn(self, number: int, done: float) -> tuple[float, int]:
        """See `Adaptation`; the first steps are without the language model."""
        batches = self._batches(number)
        self.model.bare = done < self.settings.bare
        loss = train_step(self.model, self.optimiser, self.settings.optimiser, batches, self._loss)
        return loss, sum(len(batch.seen.cluster) for batch in batches)

    def facts(self) -> dict[str, Any]:
        """See `Trainee`."""
        return super().facts() | {"bare": self.model.bare}

    def restore(self, facts: dict[str, Any]) -> None:
        """See `Trainee`."""
        super().restore(facts)
        self.model.bare = facts["bare"]

    def _loss(self, model: CjsModel, batch: Batch) -> torch.Tensor:
        return loss_of(model, batch, self.settings.labels)

    def _batches(self, step: int) -> list[Batch]:
        """Windows from all pools, each as likely as the other: the rounds' are few, so that they don't outweigh the first."""
        optimiser = self.settings.optimiser
        everything = [window for pool in self.pools for window in pool]
        places = pick(self.settings.collect.seed, step, optimiser.batch * optimiser.accumulation, [len(everything)])
        chosen = [everything[place] for _, place in places]
        return [stack(chosen[i : i + optimiser.batch]) for i in range(0, len(chosen), optimiser.batch)]

    def _read_round(self, path: Path) -> list[CjsEpisode]:
        """See `Adaptation`."""
        return list(experience.read(path))

    def _play_round(self, number: int, path: Path) -> list[CjsEpisode]:
        """See `Adaptation`."""
        collect = replace(self.settings.collect, sessions=self.settings.round_sessions)
        found = list(experience.play(experience.jobs(collect, number + 1), collect, CjsReader(self.model)))
        experience.write(path, found, experience.header(collect, dagger_round=number + 1))
        return found

    def _add_round(self, episodes: Sequence[CjsEpisode]) -> None:
        self.pools.append(self._windows(episodes))

    def _judge(self, told: Figures) -> Validation:
        """Minus the log of the student's JCT over the rule's, and its loss on labels held out."""
        with torch.inference_mode():
            loss = float(np.mean([self._loss(self.model, batch).item() for batch in self.held_out]))
        score = estimate(np.log(student_jct_s(self.model, self.validation) / self.rule_s))
        assert score.mean is not None
        row = {
            "train_loss": f"{told['loss']:.5g}",
            "valid_loss": f"{loss:.5g}",
            "valid_jct_over_rule": f"{np.exp(score.mean):.4f}",
            "valid_jct_over_rule_ci95": f"{score.half_width:.4f}",
            "tokens_per_s": round(told["tokens_per_s"]),
            "dagger_rounds": self.rounds,
        }
        said = f"validation JCT {row['valid_jct_over_rule']} ± {row['valid_jct_over_rule_ci95']} of the rule's, loss {row['valid_loss']}"
        facts = {
            "sessions": [list(kind) for kind in VALIDATION],
            "jct_over_rule": round(float(np.exp(score.mean)), 4),
            "log_ci95": round(score.half_width, 4),
        }
        return Validation(score.mean, row, said, facts)

    def _own_story(self) -> dict[str, Any]:
        """See `Adaptation`."""
        settings, windows = self.settings, [len(pool) for pool in self.pools]
        budget = "steps" if settings.steps else "time"
        own = {"bare": settings.bare, "budget": budget, "labels": asdict(settings.labels)}
        return own | {"experience": self.headers, "windows": windows}


def _alike(windows: Sequence[Window], size: int) -> list[list[Window]]:
    """Groups of at most `size` windows of equal length."""
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(window.decisions, []).append(window)
    return [group[i : i + size] for group in by_length.values() for i in range(0, len(group), size)]
