"""Trains `controllers.vp.mlp` on every training window and its mirror image; survives kill -9, and keeps the weights that validate best.

Equal seeds and settings give equal weights on one machine: every batch comes from the seed and the number of the step.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from controllers.learning.saved import add_row, cut_curve, write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.learning.vp_data import VpData, load_vp_data
from controllers.vp.mlp import FEATURES, LAYERS, SCALE_DEG, features
from controllers.weights import HEADER
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.viewports import FRONT_DEG

NAME = "mlp"
CHECKPOINT, CURVE, STATE = "checkpoint.safetensors", "curve.csv", "state"
LAST_RATE = 0.02
"""Share of the learning rate that is left at the end of its cosine."""
WHOLE = ("seed", "epochs", "batch", "hidden", "rate", "decay", "averaged")
"""Settings that a run keeps from beginning to end."""


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
    validations: int = 16
    """Times that the mean weights are validated, at equal distances; each leaves a checkpoint."""


class Network(nn.Module):
    """As `controllers.vp.mlp.turns_deg` computes it; an untrained one answers no turn at all."""

    def __init__(self, hidden: int, horizon: int) -> None:
        super().__init__()
        widths = [FEATURES, *[hidden] * (LAYERS - 1), 3 * horizon]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
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


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    step: int = 0
    elapsed_s: float = 0.0
    best_mae_deg: float = 1e9
    best_step: int = 0


class MlpRun:
    """One run in one folder."""

    def __init__(self, settings: MlpSettings, data: VpData | None = None, console: Console | None = None) -> None:
        self.settings, self.console = settings, console or Console(stderr=True)
        check_least(settings, 0, ["seed", "rate", "decay", "averaged"])
        check_least(settings, 1, ["threads", "epochs", "batch", "hidden", "validations"])
        if not settings.averaged < 1:
            raise UserError(f"--averaged is {settings.averaged:g}, wanted less than 1")
        self.out = settings.out or Path("results") / f"train-vp_{NAME}-{settings.seed}"
        open_folder(self.out, settings.resume)
        self.commit = checkout_commit()
        self.data = data or load_vp_data()
        self.steps = max(settings.epochs * len(self.data.train) // settings.batch, settings.validations)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.network, self.mean = (Network(settings.hidden, self.data.train.horizon) for _ in range(2))
        self.mean.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.rate, weight_decay=settings.decay)
        self.standing = Standing()
        self._asked = {name: getattr(settings, name) for name in WHOLE} | {"data": self.data.sha256}
        self._scale_deg = torch.from_numpy(np.tile(SCALE_DEG, self.data.train.horizon).astype(np.float32))  # (horizon x 3,)
        self._inputs, self._turns_deg = self._examples()
        if settings.resume:
            self._load()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{NAME}.safetensors"

    def train(self) -> Path:
        """All steps that are left; returns the file with the best weights. What came after the last checkpoint is done again."""
        while self.standing.step < self.steps:
            part = self.standing.step * self.settings.validations // self.steps + 1
            self._learn(-(-part * self.steps // self.settings.validations))
        return self.weights

    def _learn(self, end: int) -> None:
        """Steps up to `end`, validation and checkpoint."""
        began_s, errors = now_s(), []
        for step in range(self.standing.step, end):
            errors.append(self._step(step))
        with torch.no_grad():
            turns = self.mean(torch.from_numpy(features(self.data.valid.history_deg))) * self._scale_deg
        valid = self.data.validation_mae_deg(turns.numpy().reshape(len(self.data.valid), -1, 3))
        self.standing = replace(self.standing, step=end, elapsed_s=self.standing.elapsed_s + now_s() - began_s)
        error = float(np.mean(errors))
        add_row(self.out / CURVE, {"step": end, "training_mae_deg": round(error, 4), "valid_mae_deg": round(valid, 4)})
        self.console.print(f"{NAME} step {end} of {self.steps}: training {error:.3f}, validation {valid:.3f} degrees")
        if valid < self.standing.best_mae_deg:
            self.standing = replace(self.standing, best_mae_deg=valid, best_step=end)
            write_tensors(self.weights, dict(self.mean.state_dict()), HEADER, self._story())
        self._save()

    def _step(self, step: int) -> float:
        """One batch; returns its mean absolute error in degrees."""
        rows = np.random.default_rng([self.settings.seed, step]).integers(len(self._inputs), size=self.settings.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * max(LAST_RATE, (1 + cos(pi * step / self.steps)) / 2)
        loss = (self.network(self._inputs[rows]) * self._scale_deg - self._turns_deg[rows]).abs().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - self.settings.averaged)
        return float(loss.detach())

    def _examples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (2N, FEATURES) and turns (2N, horizon x 3) of all windows and their mirror images."""
        inputs, turns_deg = [], []
        for view in (np.asarray, mirrored):
            history_deg, future_deg = view(self.data.train.history_deg), view(self.data.train.future_deg)
            inputs.append(features(history_deg))
            turns_deg.append(wrapped_deg(future_deg - history_deg[:, -1:]).reshape(len(history_deg), -1).astype(np.float32))
        return torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(turns_deg))

    def _story(self) -> dict[str, Any]:
        return {
            "policy": NAME,
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line("scripts/train", sys.argv[1:]),
            "seed": self.settings.seed,
            "step": self.standing.step,
            "minutes": round(self.standing.elapsed_s / 60, 1),
            "settings": {name: value for name, value in asdict(self.settings).items() if name in WHOLE},
            "validation_mae_deg": round(self.standing.best_mae_deg, 4),
            **self.data.facts,
        }

    def _save(self) -> None:
        tensors = {f"{name}/{key}": tensor for name, module in self._modules() for key, tensor in module.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{key}": tensor for key, tensor in state.items()}
        write_tensors(self.out / CHECKPOINT, tensors, STATE, {"standing": asdict(self.standing), "asked": self._asked})

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("network", self.network), ("mean", self.mean)]

    def _load(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            return  # stopped before the first one: begin anew
        try:
            with safe_open(str(path), framework="pt") as file:
                state = json.loads(file.metadata()[STATE])
            if differing := [name for name, value in self._asked.items() if state["asked"].get(name) != value]:
                raise ValueError(f"it was begun with {differing[0]} {state['asked'].get(differing[0])}")
            self._fill(load_file(path))
            self.standing = Standing(**state["standing"])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be resumed ({reason}), wanted the checkpoint of a run with the same settings") from error
        cut_curve(self.out / CURVE, self.standing.step)

    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, module in self._modules():
            module.load_state_dict({key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")})
        whole = self.optimiser.state_dict()
        for key, value in tensors.items():
            if key.startswith("adam/"):
                _, number, name = key.split("/")
                whole["state"].setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict(whole)
