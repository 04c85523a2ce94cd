"""`scripts/adapt cjs-trust`: how much an adapter should trust the rule `srpt_cap` in large clusters.

There the costs that look-ahead finds differ little from decision to decision, and what the adapter learnt of them errs more often than the
rule. A bonus on the rule's choices leaves it those of which it is sure. The bonus with the least JCT in validation sessions of large
clusters is written into the adapter's settings. Their seeds are those of `scripts/adapt cjs`: no evaluation's, no published result's.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from controllers.learning.cjs_sessions import validation_sessions
from controllers.learning.start import check_least
from netllm.adapter import SETTINGS, SHIPPED, load_adapter, read_settings
from netllm.backbone import DEFAULT_DTYPE
from netllm.cards import write_card
from netllm.cjs.adapt import rule_jct_s, student_jct_s
from netllm.graph import CjsModel
from testbed.commit import checkout_commit
from testbed.errors import UserError
from testbed.stats import estimate

SESSIONS = ((50, 100, 8), (40, 100, 4))
"""Executors, jobs and number of validation sessions of each kind."""


@dataclass(frozen=True)
class TrustSettings:
    """Choose how much the adapter trusts the rule."""

    adapter: Path = SHIPPED / "cjs"
    """Folder of an adapter for scheduling; its settings are changed."""
    bonuses: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Bonuses to try, in log-probability."""
    dtype: str = DEFAULT_DTYPE
    """Type of the frozen weights, bfloat16 or float32; default: the quicker one here."""
    threads: int = 1
    """CPU threads."""


def choose(settings: TrustSettings | None = None, console: Console | None = None) -> float:
    """Try all bonuses, write the best into the adapter's settings and card; returns it."""
    settings, console = settings or TrustSettings(), console or Console(stderr=True)
    check_least(settings, 1, ["threads"])
    if not settings.bonuses or min(settings.bonuses) < 0:
        raise UserError(f"--bonuses is {list(settings.bonuses)}, wanted some, none below 0")
    torch.set_num_threads(settings.threads)
    model = load_adapter(settings.adapter, dtype=settings.dtype)
    if not isinstance(model, CjsModel):
        raise UserError(f"adapter {settings.adapter} is for task {model.task.name}, wanted cjs")
    ends = np.cumsum([count for _, _, count in SESSIONS]).tolist()
    # played by kind, which is quicker than all at once; no workload twice
    kinds = [validation_sessions((kind,), end - kind[2]) for kind, end in zip(SESSIONS, ends, strict=True)]
    rule_s = np.concatenate([rule_jct_s(sessions) for sessions in kinds])
    tried, task = list[dict[str, float]](), model.task
    try:
        for bonus in settings.bonuses:
            model.task = replace(task, trust=bonus)
            score = estimate(np.log(np.concatenate([student_jct_s(model, sessions) for sessions in kinds]) / rule_s))
            assert score.mean is not None
            tried.append({"bonus": bonus, "jct_over_rule": round(float(np.exp(score.mean)), 4), "log_ci95": round(score.half_width, 4)})
            console.print(f"trust {bonus:g}: JCT {tried[-1]['jct_over_rule']:.4f} ± {tried[-1]['log_ci95']:.4f} of the rule's")
    finally:
        model.task = task
    best = min(tried, key=lambda each: each["jct_over_rule"])["bonus"]
    _write(
        settings.adapter, best, {"sessions": [list(kind) for kind in SESSIONS], "tried": tried, "commit": checkout_commit() or "unknown"}
    )
    return best


def _write(folder: Path, trust: float, facts: dict[str, Any]) -> None:
    content = read_settings(folder)
    content["settings"]["trust"] = trust
    content["trust"] = facts
    (folder / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_card(folder, None)
