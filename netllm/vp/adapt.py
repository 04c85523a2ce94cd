"""`scripts/adapt vp`: train an adapter on recorded head movement, supervised, by the metric itself.

Each example is a stretch of a training viewing: a few tokens, and the true turns after each of them, so that one pass teaches a short, a
usual and a long history at once. Half of the stretches are seen in a mirror (`controllers/learning/vp_mlp.py`). The model kept is the one
whose mean weights err least on the validation viewings, from the usual 2 s of history. Test viewings are never read but to prove that
training shares nothing with them.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from controllers.learning.loop import CURVE, Pace, Standing, asked_of
from controllers.learning.start import check_least, open_folder
from controllers.learning.vp_data import VpData, load_vp_data
from controllers.learning.vp_mlp import mirrored
from controllers.learning.vp_run import VpRun
from controllers.weights import VP_SHIPPED, find_weights
from netllm.adapter import new_model, save_adapter
from netllm.backbone import DEFAULT_DTYPE, EMBEDDED, load_backbone
from netllm.cards import write_card
from netllm.images import image_reader
from netllm.lora import LoraSettings
from netllm.model import as_tensors
from netllm.tasks.vp import SCALE_DEG, VpTask, features, predict_turns_deg
from netllm.training import OptimiserSettings, learning_of, make_optimiser, set_rate
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.host import cpu_field
from testbed.vp_metrics import wrapped_deg
from traces.frames import Frames
from traces.viewports import RATE_HZ
from traces.windows import Windows


@dataclass(frozen=True)
class VpAdaptSettings:
    """How to adapt the language model to head movement."""

    minutes: float = 30.0
    """Time budget for training, over all resumed runs; validations come on top."""
    steps: int = 0
    """Optimiser steps instead of a time budget, for a run that repeats exactly."""
    seed: int = 1
    """Of everything random."""
    out: Path = Path("results/adapt-vp")
    """Folder for checkpoint, learning curve and the adapter (`OUT/adapter`)."""
    resume: bool = False
    """Go on from the last checkpoint in OUT."""
    llm: str = EMBEDDED
    """Backbone: the embedded one, or a folder with a Hugging Face causal language model; with `:random` after it, one of its sizes that was
    never trained."""
    dtype: str = DEFAULT_DTYPE
    """Type of the frozen weights, bfloat16 or float32 (default: the quicker one here); what is trained is kept in float32."""
    threads: int = 2
    """CPU threads."""
    validations: int = 12
    """Times that the mean weights are validated, at equal distances; each leaves a checkpoint."""
    averaged: float = 0.99
    """What validates and ships is an exponential mean of the weights with this factor a step."""
    no_front: float = 0.05
    """Share of stretches whose yaw from the front is not told: so a video without a known front is not new."""
    frames: Path | None = None
    """Folder of video frames (`traces/frames.py`), for an adapter that sees them; wants `vit`."""
    vit: str = ""
    """Folder of the vision transformer that turns frames into features; `task.image_features` is its width."""
    task: VpTask = field(default_factory=VpTask)
    """What the model is told, and in how many tokens."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """The adapter's size."""
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(lr_lora=4e-4, lr_modules=2e-4, batch=128, warmup_steps=60)
    )
    """How to train it; `batch` counts stretches. What is to be learnt is small beside the base: higher rates drown it."""


def adapt(settings: VpAdaptSettings | None = None, console: Console | None = None, data: VpData | None = None) -> Path:
    """Train an adapter and return its folder, `settings.out / "adapter"`."""
    settings = settings or VpAdaptSettings()
    _check(settings)
    torch.set_num_threads(settings.threads)
    run = VpAdaptRun(settings, console or Console(stderr=True), data)
    try:
        if settings.resume:
            run.loop.resume()
        return run.train()
    finally:
        run.model.switch.remove()  # after Ctrl-C in a notebook, too: the backbone lives on


def _check(settings: VpAdaptSettings) -> None:
    check_least(settings, 0, ["steps", "seed", "averaged", "no_front", "lora.rank", "task.image_features"])
    check_least(settings, 1, ["threads", "validations", "optimiser.batch", "optimiser.accumulation", "task.horizon", "task.tokens"])
    check_least(settings, 1, ["task.stride", "task.hidden"])
    check_least(settings, 5, ["task.samples"])  # the encoder's convolution spans four turns
    if not settings.averaged < 1:
        raise UserError(f"--averaged is {settings.averaged:g}, wanted less than 1")
    if not settings.steps and not settings.minutes > 0:
        raise UserError(f"--minutes is {settings.minutes:g}, wanted more than 0 (or --steps)")
    if bool(settings.frames) != bool(settings.vit) or bool(settings.vit) != bool(settings.task.image_features):
        raise UserError("--frames, --vit and --task.image-features go together, wanted all of them or none")


class VpAdaptRun(VpRun):
    """One training run in one folder."""

    def __init__(self, settings: VpAdaptSettings, console: Console, data: VpData | None = None) -> None:
        self.settings, task = settings, settings.task
        open_folder(settings.out, settings.resume)
        self.commit = checkout_commit() or "unknown"
        self.data = data or load_vp_data(task.longest / RATE_HZ, task.horizon / RATE_HZ)
        self._frames = Frames(settings.frames)
        self._images = image_reader(settings.vit, task.image_features)
        self._told = self._features(self.data.valid, np.arange(len(self.data.valid)))
        load_backbone(settings.llm, settings.dtype)  # before the seed: the first load in a process draws random numbers
        torch.manual_seed(settings.seed)
        self.model = new_model(settings.llm, settings.dtype, task, settings.lora)
        pace = Pace(settings.steps, settings.minutes, validations=settings.validations, validations_count=False)
        asked = asked_of(settings, ["steps", "minutes"]) | {"llm": self.model.backbone.name, "data": self.data.sha256}
        optimiser = make_optimiser(self.model, settings.optimiser)
        super().__init__("adapt vp", settings.out, pace, settings.averaged, asked, learning_of(self.model), optimiser, console)

    @property
    def weights(self) -> Path:
        """The folder of the best adapter so far."""
        return self.out / "adapter"

    def learn(self, number: int, done: float) -> float:
        """One optimiser step; returns the mean absolute error over all tokens in degrees."""
        settings = self.settings.optimiser
        set_rate(self.optimiser, settings, number, done)
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(settings.accumulation):
            told, turns_deg = self.batch(number * settings.accumulation + part)
            answer_deg = self.model(as_tensors(told)) * torch.from_numpy(SCALE_DEG)
            loss = (answer_deg - torch.from_numpy(turns_deg)).abs().mean() / settings.accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        self.optimiser.step()
        return total

    def batch(self, number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features (B, T, ...) and true turns (B, T, horizon, 3) in degrees. The first token tells a whole history, or a part of one."""
        task, windows = self.settings.task, self.data.train
        rng = np.random.default_rng([self.settings.seed, number])
        rows = rng.integers(len(windows), size=self.settings.optimiser.batch)
        dropped = int(rng.integers(task.samples)) if task.tokens > 1 else 0
        angles_deg = np.concatenate([windows.history_deg[rows, dropped:], windows.future_deg[rows]], axis=1)  # (B, samples, 3)
        half = 0 if self.settings.frames else len(rows) // 2  # frames are not mirrored
        angles_deg[:half] = mirrored(angles_deg[:half])
        length = windows.history - dropped
        front = rng.random(len(rows)) >= self.settings.no_front
        told = features(task, angles_deg[:, :length], front, self._images(self._frames_of(windows, rows)))
        return told, turns_after(task, angles_deg, length)

    def _features(self, windows: Windows, rows: np.ndarray) -> dict[str, np.ndarray]:
        return features(self.settings.task, windows.history_deg[rows], True, self._images(self._frames_of(windows, rows)))

    def _frames_of(self, windows: Windows, rows: np.ndarray) -> Sequence[np.ndarray | None]:
        if not self.settings.frames:
            return [None] * len(rows)
        return [self._frames.at(int(windows.video[row]), float(windows.times_s[row, -1])) for row in rows]

    def error_deg(self) -> float:
        """On the validation windows, with the usual 2 s of history."""
        self.model.eval()
        return self.data.validation_mae_deg(predict_turns_deg(self.model, self._told))

    def train(self) -> Path:
        """All that is left of the budget; returns the adapter's folder, with the whole curve in its card."""
        folder = super().train()
        write_card(folder, self.out / CURVE)
        return folder

    def write(self, standing: Standing) -> None:
        """Write the adapter and its card."""
        save_adapter(self.model, self.weights, self._facts(standing))
        write_card(self.weights, self.out / CURVE)

    def _facts(self, standing: Standing) -> dict[str, Any]:
        settings = self.settings
        return {
            "trained": {
                "utc": utc_now().isoformat(timespec="seconds"),
                "commit": self.commit,
                "command": command_line("scripts/" + Path(sys.argv[0]).name, sys.argv[1:]),
                "seed": settings.seed,
                "steps": standing.best_step,
                "minutes": round(standing.elapsed_s / 60, 1),
                "dtype": settings.dtype,
                "averaged": settings.averaged,
                "no_front": settings.no_front,
                "optimiser": asdict(settings.optimiser),
                "data": self.data.facts,
                "base": "the newest sample" if settings.task.base == "last" else find_weights("", settings.task.base, VP_SHIPPED).name,
                "hardware": f"{cpu_field('model name') or 'unknown processor'}, {settings.threads} threads",
                "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
            },
            "validation": {"mae_deg": round(standing.best, 4), "windows": len(self.data.valid)},
        }


def turns_after(task: VpTask, angles_deg: np.ndarray, length: int) -> np.ndarray:
    """The true turns after each token, (N, T, horizon, 3), of (N, samples, 3) of which the first `length` are the history."""
    steps = min(-(-length // task.stride), task.tokens)
    ends = length - task.stride * np.arange(steps - 1, -1, -1)
    future_deg = angles_deg[:, ends[:, None] + np.arange(task.horizon)]  # (N, T, horizon, 3)
    return wrapped_deg(future_deg - angles_deg[:, ends - 1, None]).astype(np.float32)
