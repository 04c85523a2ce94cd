"""`scripts/bench dtypes`: what the adapters that ship cost in bfloat16 and in float32 on this processor.

A repetition does each piece of work once in either type, in turn, and ratios are taken within it. CPU time, on one thread; loading and
the first time are not counted.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

from controllers.api import AbrSession, CjsSession
from controllers.cjs.netllm import NetLLM as Scheduler
from controllers.learning.start import exit_code
from controllers.vp.netllm import NetLLM as Predictor
from netllm.abr.experience import Episode
from netllm.abr.lessons import loss_of, prepare, stack
from netllm.abr.suite.play import run_together
from netllm.adapter import SHIPPED, load_adapter, new_model
from netllm.backbone import DEFAULT_DTYPE, DTYPES, EMBEDDED
from netllm.bench.worker import cpu_s
from netllm.lora import LoraSettings
from netllm.tasks.abr import AbrTask, student_of
from netllm.training import OptimiserSettings, make_optimiser, train_step
from players.media import DEFAULT_VIDEO, load_manifest
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.host import bf16_units, host_facts
from testbed.sim.abr import AbrSimulator
from testbed.sim.cjs_compiled import CompiledCjs
from testbed.sim.vp import decision_times_s
from testbed.units import ms_from_s
from traces.store import resolve
from traces.viewport_splits import load_split
from traces.windows import RULES, cut
from traces.workload import draw_workload

LIVE, TOGETHER, LEARNT = 24, 100, 8
"""Decisions of a session alone; sessions decided together; sessions learnt from at once."""
CHUNKS = 8
"""Of the sessions that are decided together or learnt from."""


@dataclass(frozen=True)
class DtypesSettings:
    """Measure both types of the frozen weights on this processor. No root."""

    repetitions: int = 3
    """Of everything, in turn."""
    write: Path | None = None
    """Also write the page (Markdown) to this file."""

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise UserError(f"{self.repetitions} repetitions are asked for, wanted at least 1")


Work = Callable[[], int]
"""Does it once; returns over how many decisions its cost is shared."""


def named(dtype: str) -> str:
    """As an option: the default is left unsaid, for float32 by name is exact."""
    return "" if dtype == DEFAULT_DTYPE else dtype


def bitrates(dtype: str, sessions: int, chunks: int) -> Work:
    """Sessions that advance together."""
    model = load_adapter(SHIPPED / "abr", dtype=named(dtype))
    assert isinstance(model.task, AbrTask)
    task, traces = model.task, resolve("fcc/valid").traces
    session, chosen = AbrSession("bench", load_manifest(DEFAULT_VIDEO), chunks), [traces[i % len(traces)] for i in range(sessions)]

    def work() -> int:
        run_together(chosen, session, student_of(model, task))
        return sessions * (chunks - 1)

    return work


def schedules(dtype: str) -> Work:
    """A cluster's first decisions."""
    policy, workload, session = Scheduler(dtype=named(dtype)), draw_workload(20, seed=1), CjsSession("bench", 10)

    def work() -> int:
        simulator = CompiledCjs(workload, session, "conserving")
        policy.reset(session, 1)
        while simulator.decisions < LIVE:
            simulator.step(policy.decide(simulator.observation))
        return LIVE

    return work


def predictions(dtype: str) -> Work:
    """A viewer's first ones."""
    policy, windows = Predictor(dtype=named(dtype)), cut(load_split("valid"), RULES["code"], 2.0, 4.0)
    return lambda: len(decision_times_s(policy, windows, LIVE)) + 1  # the untimed one costs, too


def lessons(dtype: str) -> Work:
    """An optimiser step of `scripts/adapt abr` on few sessions."""
    task, session = AbrTask(), AbrSession("bench", load_manifest(DEFAULT_VIDEO), CHUNKS)
    model = new_model(EMBEDDED, dtype, task, LoraSettings(), f"lessons {dtype}").train()
    settings, episodes = OptimiserSettings(), []
    for trace in resolve("fcc/valid").traces[:LEARNT]:
        simulator = AbrSimulator(trace, session)
        while not simulator.done:
            simulator.step(len(simulator.history) % session.video.levels)
        labels = np.eye(session.video.levels)[[chunk.level for chunk in simulator.history[1:]]]
        episodes.append(Episode(session, simulator.history, labels, "any", "bench", trace.name, 0.0))
    optimiser, batch = make_optimiser(model, settings), stack(prepare(task, episodes))

    def work() -> int:
        train_step(model, optimiser, settings, [batch], loss_of)
        return len(episodes) * (CHUNKS - 1)

    return work


WORKS: dict[str, Callable[[str], Work]] = {
    "a bitrate decision, live": lambda dtype: bitrates(dtype, 1, LIVE + 1),
    "a scheduling decision, live": schedules,
    "a viewport prediction, live": predictions,
    f"a bitrate decision, {TOGETHER} sessions together": lambda dtype: bitrates(dtype, TOGETHER, CHUNKS),
    "a bitrate decision learnt from": lessons,
}
"""What is measured, by name; each is made for a type."""


def dtypes(settings: DtypesSettings) -> str:
    """Measure; the page as text."""
    torch.set_num_threads(1)
    took_ms: dict[tuple[str, str], list[float]] = {}
    for name, make in WORKS.items():
        works = {dtype: make(dtype) for dtype in DTYPES}
        for work in works.values():
            work()
        for _ in track(range(settings.repetitions), name, console=Console(stderr=True), transient=True):
            for dtype, work in works.items():
                began_s = cpu_s()
                decisions = work()
                took_ms.setdefault((name, dtype), []).append(ms_from_s((cpu_s() - began_s) / decisions))
    text = page(took_ms, settings)
    if settings.write:
        settings.write.write_text(text, encoding="utf-8")
    return text


def page(took_ms: dict[tuple[str, str], list[float]], settings: DtypesSettings) -> str:
    """A table: medians, ranges, ratios within repetitions."""
    first, second = DTYPES
    lines = [
        "# bfloat16 and float32",
        f"`{command_line('scripts/bench', ['dtypes', *sys.argv[1:]])}`, {utc_now():%Y-%m-%d}, commit `{checkout_commit()[:12]}`, "
        f"{host_facts()['cpu_model']}, one thread. Instructions for products in bfloat16: {bf16_units() or 'none'}; so the default here is "
        f"{DEFAULT_DTYPE}. CPU time, ms, median of {settings.repetitions} repetitions (least to most).",
        "",
        f"| work | {first} | {second} | {first} over {second} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(name for name, _ in took_ms):
        one, other = took_ms[name, first], took_ms[name, second]
        cells = [_spread(one), _spread(other), _spread([a / b for a, b in zip(one, other, strict=True)])]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(exit_code(lambda: print(dtypes(tyro.cli(DtypesSettings, prog="scripts/bench dtypes")), end=""), ""))  # noqa: T201
