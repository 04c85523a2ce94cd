"""Fits `controllers.vp.linear_l1`: least absolute deviations by least squares whose weights are one over the last errors."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from controllers.learning.saved import add_row, write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.learning.vp_data import VpData, load_vp_data
from controllers.vp.linear_l1 import features
from controllers.weights import HEADER
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit, command_line
from testbed.vp_metrics import wrapped_deg

NAME = "linear_l1"
LEAST_ERROR_DEG = 0.1
"""Smaller errors weigh no more than this one."""
RIDGE = 1e-6
"""Of the features' mean square: keeps the equations solvable."""


@dataclass(frozen=True)
class LinearSettings:
    """How to fit it."""

    out: Path | None = None
    """Folder for learning curve and weights; default: results/train-vp_linear_l1."""
    iterations: int = 40
    """Reweightings, at most."""
    tolerance: float = 1e-4
    """Stop when a reweighting lowers the training error by less than this share."""


def train(settings: LinearSettings, data: VpData | None = None, console: Console | None = None) -> Path:
    """Fit and write; returns the file with the weights. Nothing is random."""
    console = console or Console(stderr=True)
    check_least(settings, 1, ["iterations"])
    check_least(settings, 0, ["tolerance"])
    out = settings.out or Path("results") / f"train-vp_{NAME}"
    open_folder(out, resume=None)
    commit, began_s = checkout_commit(), now_s()
    data = data or load_vp_data()
    inputs = features(data.train.history_deg)  # (N, features)
    turns_deg = wrapped_deg(data.train.future_deg - data.train.history_deg[:, -1:]).reshape(len(inputs), -1)  # (N, horizon x 3)
    fit, iteration, previous = _least_squares(inputs, turns_deg), 0, float("inf")
    while True:
        error = float(np.abs(turns_deg - inputs @ fit).mean())
        valid = data.validation_mae_deg((features(data.valid.history_deg) @ fit).reshape(len(data.valid), -1, 3))
        scores = {"iteration": iteration, "training_mae_deg": round(error, 4), "valid_mae_deg": round(valid, 4)}
        add_row(out / "curve.csv", scores)
        console.print(f"{NAME} reweighting {iteration}: training {error:.4f}, validation {valid:.4f} degrees")
        if iteration == settings.iterations or previous - error < settings.tolerance * error:
            break
        fit, iteration, previous = reweighted(inputs, turns_deg, fit), iteration + 1, error
    path, coefficients = out / f"{NAME}.safetensors", torch.from_numpy(fit.astype(np.float32))
    write_tensors(
        path, {"coefficients": coefficients}, HEADER, _story(settings, scores, now_s() - began_s, data.facts | {"commit": commit})
    )
    return path


def _story(settings: LinearSettings, scores: dict[str, Any], elapsed_s: float, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "policy": NAME,
        "utc": utc_now().isoformat(timespec="seconds"),
        "command": command_line("scripts/train", sys.argv[1:]),
        "iteration": scores["iteration"],
        "minutes": round(elapsed_s / 60, 1),
        "settings": {name: value for name, value in asdict(settings).items() if name != "out"},
        "training_mae_deg": scores["training_mae_deg"],
        "validation_mae_deg": scores["valid_mae_deg"],
        **facts,
    }


def reweighted(inputs: np.ndarray, targets: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """One step towards the least absolute deviations of each column of `targets`, (features, columns)."""
    better = np.empty_like(fit)
    for column in range(targets.shape[1]):
        error = np.abs(targets[:, column] - inputs @ fit[:, column])
        weighted = inputs / np.maximum(error, LEAST_ERROR_DEG)[:, None]
        better[:, column] = _solve(weighted.T @ inputs, weighted.T @ targets[:, column])
    return better


def _least_squares(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return _solve(inputs.T @ inputs, inputs.T @ targets)


def _solve(squares: np.ndarray, products: np.ndarray) -> np.ndarray:
    ridge = RIDGE * np.trace(squares) / len(squares) * np.eye(len(squares))
    return np.linalg.solve(squares + ridge, products)
