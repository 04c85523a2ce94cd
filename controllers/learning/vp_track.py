"""Trains `controllers.vp.track` on every training window, half of them mirrored; with frames, its saliency branch, too."""

import sys
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from controllers.learning.loop import Pace, Standing, asked_of
from controllers.learning.saved import write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.learning.vp_data import VpData, load_vp_data
from controllers.learning.vp_mlp import LAST_RATE, mirrored
from controllers.learning.vp_run import VpRun
from controllers.vp.track import CELLS, INPUTS, SCALE_DEG, STEP_DEG
from controllers.weights import HEADER
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.frames import Frames
from traces.saliency import saliency
from traces.viewports import FRONT_DEG
from traces.windows import Windows

NAME = "track"
TOLD = ("seed", "steps", "batch", "hidden", "rate", "decay", "averaged")
"""Settings that the weights' story tells."""


@dataclass(frozen=True)
class TrackSettings:
    """How to train it."""

    seed: int = 1
    """Of everything random."""
    out: Path | None = None
    """Folder for checkpoint, learning curve and weights; default: results/train-vp_track-SEED."""
    resume: bool = False
    """Go on from the checkpoint in OUT."""
    threads: int = 1
    """CPU threads."""
    steps: int = 6000
    """Steps of the optimiser."""
    batch: int = 256
    """Windows a step."""
    hidden: int = 128
    """Width of the memories (256 in the paper)."""
    rate: float = 5e-4
    """Learning rate of AdamW (the paper's); it falls along a cosine."""
    decay: float = 1e-2
    """Weight decay."""
    averaged: float = 0.999
    """What validates and ships is an exponential mean of the weights with this factor a step."""
    validations: int = 1
    """Times that the mean weights are validated, at equal distances; each leaves a checkpoint, the best is kept. Once, at the end: the
    validation viewings are too few to tell one time from another."""
    frames: Path | None = None
    """Folder of video frames (`traces/frames.py`): trains the saliency branch, too."""


class Network(nn.Module):
    """As `controllers.vp.track.predicted_deg` computes it; an untrained one answers no turn at all."""

    def __init__(self, hidden: int, content: bool) -> None:
        super().__init__()
        self.reader = nn.LSTMCell(INPUTS, hidden)
        self.out = nn.Linear(hidden, 3)
        self.content = nn.Linear(CELLS, hidden) if content else None
        self.fusion = nn.LSTMCell(2 * hidden, hidden) if content else None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, history_deg: torch.Tensor, horizon: int, maps: torch.Tensor | None = None) -> torch.Tensor:
        """Turns from the newest sample, (N, horizon, 3) degrees, of (N, SAMPLES, 3) and maps (N, CELLS)."""
        newest_deg = history_deg[:, -1]
        state = fused = None
        for i in range(history_deg.shape[1] - 1):
            state = self.reader(_told(_wrapped(history_deg[:, i] - newest_deg), newest_deg), state)
        content = self.content(maps).relu() if self.content is not None and maps is not None else None
        turn_deg, found = torch.zeros_like(newest_deg), []
        for _ in range(horizon):
            state = self.reader(_told(turn_deg, newest_deg), state)
            seen = state[0]
            if content is not None and self.fusion is not None:
                fused = self.fusion(torch.cat([seen, content], 1), fused)
                seen = fused[0]
            turn_deg = turn_deg + self.out(seen) * _STEP
            found.append(turn_deg)
        return torch.stack(found, 1)


_SCALE, _STEP = (torch.from_numpy(each.astype(np.float32)) for each in (SCALE_DEG, STEP_DEG))


def _wrapped(angles_deg: torch.Tensor) -> torch.Tensor:
    return (angles_deg + 180) % 360 - 180


def _told(turn_deg: torch.Tensor, newest_deg: torch.Tensor) -> torch.Tensor:
    """`controllers.vp.track.inputs` of the sample that is `turn_deg` from the newest, (N, INPUTS)."""
    angles_deg = newest_deg + turn_deg
    from_front = torch.deg2rad(angles_deg[:, 2:] - FRONT_DEG)
    return torch.cat([turn_deg / _SCALE, angles_deg[:, :2] / _SCALE[:2], from_front.sin(), from_front.cos()], 1)


class TrackRun(VpRun):
    """One run in one folder."""

    def __init__(self, settings: TrackSettings, data: VpData | None = None, console: Console | None = None) -> None:
        self.settings = settings
        check_least(settings, 0, ["seed", "rate", "decay", "averaged"])
        check_least(settings, 1, ["threads", "steps", "batch", "hidden", "validations"])
        if not settings.averaged < 1:
            raise UserError(f"--averaged is {settings.averaged:g}, wanted less than 1")
        out = settings.out or Path("results") / f"train-vp_{NAME}-{settings.seed}"
        open_folder(out, settings.resume)
        self.commit = checkout_commit()
        self.data = data or load_vp_data()
        self._frames = Frames(settings.frames)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.network = Network(settings.hidden, settings.frames is not None)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.rate, weight_decay=settings.decay)
        pace = Pace(settings.steps, validations=settings.validations)
        asked, learning = asked_of(settings, ["steps"]) | {"data": self.data.sha256}, dict(self.network.named_parameters())
        super().__init__(NAME, out, pace, settings.averaged, asked, learning, optimiser, console)
        if settings.resume:
            self.loop.resume()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{NAME}.safetensors"

    def learn(self, number: int, done: float) -> float:
        """One batch, half of it mirrored (with frames none: pictures are not); returns its mean absolute error in degrees."""
        settings, windows = self.settings, self.data.train
        rows = np.random.default_rng([settings.seed, number]).integers(len(windows), size=settings.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate * max(LAST_RATE, (1 + cos(pi * number / settings.steps)) / 2)
        angles_deg = np.concatenate([windows.history_deg[rows], windows.future_deg[rows]], axis=1)
        if settings.frames is None:
            angles_deg[: len(rows) // 2] = mirrored(angles_deg[: len(rows) // 2])
        history_deg = torch.from_numpy(angles_deg[:, : windows.history].astype(np.float32))
        turns_deg = wrapped_deg(angles_deg[:, windows.history :] - angles_deg[:, windows.history - 1, None]).astype(np.float32)
        answer_deg = self.network(history_deg, windows.horizon, self._maps(windows, rows))
        loss = (answer_deg - torch.from_numpy(turns_deg)).abs().mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def _maps(self, windows: Windows, rows: np.ndarray) -> torch.Tensor | None:
        if self.settings.frames is None:
            return None
        frames = [self._frames.at(int(windows.video[row]), float(windows.times_s[row, -1])) for row in rows]
        return torch.from_numpy(np.stack([saliency(frame).ravel() for frame in frames]))

    @torch.no_grad()
    def error_deg(self) -> float:
        """On the validation windows."""
        windows = self.data.valid
        history_deg = torch.from_numpy(windows.history_deg.astype(np.float32))
        return self.data.validation_mae_deg(
            self.network(history_deg, windows.horizon, self._maps(windows, np.arange(len(windows)))).numpy()
        )

    def write(self, standing: Standing) -> None:
        """Write the weights."""
        write_tensors(self.weights, dict(self.network.state_dict()), HEADER, self._story(standing))

    def _story(self, standing: Standing) -> dict[str, Any]:
        return {
            "policy": NAME,
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line("scripts/train", sys.argv[1:]),
            "seed": self.settings.seed,
            "step": standing.step,
            "minutes": round(standing.elapsed_s / 60, 1),
            "settings": {name: value for name, value in asdict(self.settings).items() if name in TOLD},
            "horizon": self.data.train.horizon,
            "validation_mae_deg": round(standing.best, 4),
            **self.data.facts,
        }
