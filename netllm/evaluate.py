"""`scripts/evaluate abr`: an adapter in the simulator against the classics, on the same traces, as paired differences.

All traces run in step, so that one pass of the language model decides for all of them. Trace start, no noise, 48 chunks: the published
setting (`testbed/sim/abr.py`). Intervals are Student's at 95 %, over traces (`testbed/stats.py`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from controllers.abr.bba import BBA
from controllers.abr.robust_mpc import RobustMPC
from controllers.api import AbrObservation, AbrPolicy, AbrSession
from netllm.adapt import student_of
from netllm.adapter import SHIPPED, load_adapter
from netllm.backbone import DEFAULT_DTYPE
from netllm.card import set_results
from netllm.teacher import Teacher
from players.media import load_manifest
from testbed.metrics import SessionSummary, summarise
from testbed.sim.abr import AbrSimulator, run_session
from testbed.stats import estimate
from traces.store import resolve
from traces.trace import Trace

ADAPTER = "netllm"


@dataclass(frozen=True)
class EvaluateSettings:
    """What to measure."""

    adapter: Path = SHIPPED / "abr"
    """Folder of the adapter."""
    traces: tuple[str, ...] = ("fcc/test", "norway/test")
    """Trace sets."""
    video: str = "video1"
    """The video."""
    chunks: int = 48
    """Chunks per session."""
    llm: str = ""
    """Backbone; empty: the one the adapter was trained with."""
    dtype: str = DEFAULT_DTYPE
    """bfloat16 or float32."""
    threads: int = 1
    """CPU threads."""
    batch: int = 100
    """Sessions decided together."""
    out: Path | None = None
    """Also write everything, trace by trace, to this JSON file."""
    card: bool = False
    """Put the result into the adapter's model card."""


@dataclass(frozen=True)
class SetResult:
    """QoE of every policy on one set, trace by trace."""

    name: str
    sha256: str
    traces: tuple[str, ...]
    summaries: dict[str, tuple[SessionSummary, ...]]

    def qoe(self, policy: str) -> np.ndarray:
        """QoE per trace, (traces,)."""
        return np.array([each.qoe for each in self.summaries[policy]])


def test(settings: EvaluateSettings | None = None, console: Console | None = None) -> list[SetResult]:
    """Measure the adapter and the classics on every set; prints a table."""
    settings = settings or EvaluateSettings()
    torch.set_num_threads(settings.threads)
    console = console or Console()
    results = [_test_set(settings, name) for name in settings.traces]
    for result in results:
        console.print(_table(result, settings.video))
    if settings.out is not None:
        settings.out.write_text(json.dumps([_as_json(result) for result in results], indent=1), encoding="utf-8")
    if settings.card:
        set_results(
            settings.adapter, "\n".join(["## Results", *(line for result in results for line in _markdown(result, settings.video))])
        )
    return results


def _test_set(settings: EvaluateSettings, name: str) -> SetResult:
    found = resolve(name)
    session = AbrSession("evaluate", load_manifest(settings.video), settings.chunks)
    rivals: dict[str, AbrPolicy] = {"robust_mpc": RobustMPC(), "bba": BBA(), "teacher": Teacher()}
    summaries = {
        policy: tuple(summarise(run_session(trace, session, rival, 0), session.video) for trace in found.traces)
        for policy, rival in rivals.items()
    }
    model = load_adapter(settings.adapter, settings.llm, settings.dtype)
    played: list[SessionSummary] = []
    for start in range(0, len(found.traces), settings.batch):
        batch = found.traces[start : start + settings.batch]
        played += run_together(batch, session, student_of(model, model.task))
    return SetResult(name, found.sha256, tuple(trace.name for trace in found.traces), {ADAPTER: tuple(played), **summaries})


def run_together(
    traces: Sequence[Trace], session: AbrSession, decide: Callable[[Sequence[AbrObservation]], Sequence[int]]
) -> list[SessionSummary]:
    """One session per trace, all in step, from the trace's start and without noise."""
    sims = [AbrSimulator(trace, session) for trace in traces]
    levels: Sequence[int] = [session.first_level] * len(sims)
    while True:
        for sim, level in zip(sims, levels, strict=True):
            sim.step(level)
        if sims[0].done:
            return [summarise(sim.history, session.video) for sim in sims]
        levels = decide([sim.observation for sim in sims])


def _lines(result: SetResult) -> list[tuple[str, ...]]:
    """Policy, QoE, netllm minus policy, bitrate, rebuffering, switching."""
    own = result.qoe(ADAPTER)
    lines = []
    for policy, summaries in result.summaries.items():
        qoe, gain = estimate(result.qoe(policy)), estimate(own - result.qoe(policy))
        difference = "" if policy == ADAPTER else f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
        parts = [np.mean([getattr(each, name) for each in summaries]) for name in ("bitrate_mbps", "rebuffer_s", "switch_mbps")]
        lines.append((policy, f"{qoe.mean:.4f} ± {qoe.half_width:.3f}", difference, *(f"{part:.3f}" for part in parts)))
    return lines


HEADINGS = ("policy", "QoE per chunk", "netllm minus it (paired)", "Mbit/s", "rebuffer s", "switch Mbit/s")


def _table(result: SetResult, video: str) -> Table:
    table = Table(*HEADINGS, title=f"{result.name}, {video}, {len(result.traces)} traces, simulation")
    for line in _lines(result):
        table.add_row(*line)
    return table


def _markdown(result: SetResult, video: str) -> list[str]:
    head = f"{result.name}, {video}, {len(result.traces)} traces (sha256 `{result.sha256[:16]}`), simulation, mean ± 95 % over traces:"
    rows = ["| " + " | ".join(line) + " |" for line in [HEADINGS, ("---",) * len(HEADINGS), *_lines(result)]]
    return [head, "", *rows, ""]


def _as_json(result: SetResult) -> dict[str, Any]:
    qoe = {policy: result.qoe(policy).tolist() for policy in result.summaries}
    return {"set": result.name, "sha256": result.sha256, "traces": list(result.traces), "qoe": qoe}
