"""The windows that predictors of viewports learn on and are chosen on, proved to share no viewer, video or run of samples with others."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.vp_metrics import mae_deg
from traces.catalog import load_catalog
from traces.viewport_splits import DATASET, SPLITS, load_split, refuse_leaks
from traces.windows import Windows, cut, find_rule

TRAIN, VALID = "train", "valid"
HISTORY_S = 2.0
HORIZON_S = 6.0
"""The longest horizon of NetLLM's evaluation; the first 4 s of it are the usual one."""
VALID_HORIZON_S = 4.0
"""Models are chosen by their error over the usual horizon."""


@dataclass(frozen=True)
class VpData:
    """What a predictor learns on, what it is chosen on, and what its weights tell of them."""

    train: Windows
    valid: Windows
    facts: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of all windows: a run on others can't be resumed."""
        parts = (self.train.history_deg, self.train.future_deg, self.valid.history_deg, self.valid.future_deg)
        return hashlib.sha256(b"".join(hashlib.sha256(np.ascontiguousarray(each).data).digest() for each in parts)).hexdigest()

    def validation_mae_deg(self, turns_deg: np.ndarray) -> float:
        """Of predicted turns from the newest sample, (N, samples, 3); of a longer horizon its first part counts, of a shorter one all."""
        samples = min(turns_deg.shape[1], self.valid.horizon)
        predicted_deg = self.valid.history_deg[:, -1:] + turns_deg[:, :samples]
        return float(mae_deg(predicted_deg, self.valid.future_deg[:, :samples]).mean())


def load_vp_data(history_s: float = HISTORY_S, horizon_s: float = HORIZON_S) -> VpData:
    """Every window of the training split, and the validation windows of the published code. Raises `UserError` for whatever leaks."""
    train, valid = load_split(TRAIN), load_split(VALID)
    refuse_leaks(train)
    refuse_leaks(train, (VALID,))
    refuse_leaks(valid)
    every, published = find_rule("every"), find_rule("code")
    windows = cut(train, every, history_s, horizon_s), cut(valid, published, HISTORY_S, VALID_HORIZON_S)
    facts = {
        "data": DATASET,
        "sha256": load_catalog()[DATASET].splits[0].sha256,
        "train": {"videos": list(SPLITS[TRAIN].videos), "users": list(SPLITS[TRAIN].users), "windows": len(windows[0]), "rule": every.name},
        "valid": {
            "videos": list(SPLITS[VALID].videos),
            "users": list(SPLITS[VALID].users),
            "windows": len(windows[1]),
            "rule": published.name,
        },
        "history_s": history_s,
        "horizon_s": horizon_s,
    }
    return VpData(*windows, facts)
