"""Trains `controllers.vp.mlp` on every training window and its mirror image; survives kill -9, and keeps the weights that validate best.

Equal seeds and settings give equal weights on one machine: every batch comes from the seed and the number of the step.
"""

import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
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
from controllers.learning.vp_run import VpRun
from controllers.vp.mlp import FEATURES, LAYERS, SCALE_DEG, features
from controllers.weights import HEADER
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.viewports import FRONT_DEG

NAME = "mlp"
LAST_RATE = 0.02
"""Share of the learning rate that is left at the end of its cosine."""
TOLD = ("seed", "epochs", "batch", "hidden", "rate", "decay", "averaged")
"""Settings that the weights' story tells."""


@dataclass(frozen=True)
class MlpSettings:
    """How to train it."""

    seed: int = 1
    """Of everything random."""
    out: Path | None = None
    """Folder for checkpoint, learning curve and weights; default: results/train-vp_mlp-SEED."""
    resume: bool = False
    """Go on from the checkpoint in OUT."""
    threads: int = 1
    """CPU threads."""
    epochs: int = 8
    """Windows seen, as multiples of the training split's; half of them are mirror images."""
    batch: int = 512
    """Windows a step."""
    hidden: int = 256
    """Width of both hidden layers."""
    rate: float = 1e-3
    """Learning rate of AdamW; it falls along a cosine."""
    decay: float = 1e-2
    """Weight decay."""
    averaged: float = 0.999
    """What validates and ships is an exponential mean of the weights with this factor a step."""
    validations: int = 1
    """Times that the mean weights are validated, at equal distances; each leaves a checkpoint, the best is kept. Once, at the end: the
    validation viewings are too few to tell one time from another."""


class Network(nn.Module):
    """As `controllers.vp.mlp.turns_deg` computes it; an untrained one answers no turn at all."""

    def __init__(self, hidden: int, horizon: int) -> None:
        super().__init__()
        widths = [FEATURES, *[hidden] * (LAYERS - 1), 3 * horizon]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, FEATURES) to turns in units of `SCALE_DEG`, (N, horizon x 3)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def mirrored(angles_deg: np.ndarray) -> np.ndarray:
    """The same head movement in a mirror that stands upright along the line to the front, (..., 3).

    Of the attitude Rz(roll) Rx(pitch) Ry(yaw), with the front at yaw 90 (`traces/viewports.py`), that changes the sign of pitch, and yaw to
    180 - yaw: rotations about axes in the mirror turn around, and so does the line through both ears.
    """
    roll, pitch, yaw = np.moveaxis(angles_deg, -1, 0)
    return np.stack([roll, -pitch, wrapped_deg(2 * FRONT_DEG - yaw)], axis=-1)


class MlpRun(VpRun):
    """One run in one folder."""

    def __init__(self, settings: MlpSettings, data: VpData | None = None, console: Console | None = None) -> None:
        self.settings = settings
        check_least(settings, 0, ["seed", "rate", "decay", "averaged"])
        check_least(settings, 1, ["threads", "epochs", "batch", "hidden", "validations"])
        if not settings.averaged < 1:
            raise UserError(f"--averaged is {settings.averaged:g}, wanted less than 1")
        out = settings.out or Path("results") / f"train-vp_{NAME}-{settings.seed}"
        open_folder(out, settings.resume)
        self.commit = checkout_commit()
        self.data = data or load_vp_data()
        self.steps = max(settings.epochs * len(self.data.train) // settings.batch, settings.validations)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.network = Network(settings.hidden, self.data.train.horizon)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.rate, weight_decay=settings.decay)
        pace = Pace(self.steps, validations=settings.validations)
        asked, learning = asked_of(settings, ["epochs"]) | {"data": self.data.sha256}, dict(self.network.named_parameters())
        super().__init__(NAME, out, pace, settings.averaged, asked, learning, optimiser, console)
        self._scale_deg = torch.from_numpy(np.tile(SCALE_DEG, self.data.train.horizon).astype(np.float32))  # (horizon x 3,)
        self._inputs, self._turns_deg = self._examples()
        if settings.resume:
            self.loop.resume()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{NAME}.safetensors"

    def learn(self, number: int, done: float) -> float:
        """One batch; returns its mean absolute error in degrees."""
        rows = np.random.default_rng([self.settings.seed, number]).integers(len(self._inputs), size=self.settings.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * max(LAST_RATE, (1 + cos(pi * number / self.steps)) / 2)
        loss = (self.network(self._inputs[rows]) * self._scale_deg - self._turns_deg[rows]).abs().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def error_deg(self) -> float:
        """On the validation windows."""
        turns = self.network(torch.from_numpy(features(self.data.valid.history_deg))) * self._scale_deg
        return self.data.validation_mae_deg(turns.numpy().reshape(len(self.data.valid), -1, 3))

    def write(self, standing: Standing) -> None:
        """Write the weights."""
        write_tensors(self.weights, dict(self.network.state_dict()), HEADER, self._story(standing))

    def _examples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (2N, FEATURES) and turns (2N, horizon x 3) of all windows and their mirror images."""
        inputs, turns_deg = [], []
        for view in (np.asarray, mirrored):
            history_deg, future_deg = view(self.data.train.history_deg), view(self.data.train.future_deg)
            inputs.append(features(history_deg))
            turns_deg.append(wrapped_deg(future_deg - history_deg[:, -1:]).reshape(len(history_deg), -1).astype(np.float32))
        return torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(turns_deg))

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
            "validation_mae_deg": round(standing.best, 4),
            **self.data.facts,
        }
