"""`scripts/bench netllm`: what a decision and a training decision of the language model cost, beside NetLLM's published code, in one run.

Every contender is a process of its own (`netllm.bench`), all on the same backbone, all fed the same recorded sessions. They take turns:
a repetition measures each once. A contender decides all its sessions before it trains, so that the memory of each can be told.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from subprocess import PIPE
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from controllers.api import AbrSession
from players.media import DEFAULT_VIDEO, load_manifest
from testbed.bench import costs
from testbed.bench.costs import LATE, PUBLISHED
from testbed.bench.page import Row
from testbed.bench.published import Checkout, checkout, environment
from testbed.bench.sim import level_of
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError
from testbed.host import CHECKOUT, host_facts
from testbed.sim.abr import AbrSimulator
from testbed.user import popen_tied
from traces.store import resolve

CHUNKS = 48
MAIN = 3
"""Contenders that are measured with every rank and number of threads."""
SAME_FLOAT32, SAME_BFLOAT16 = 1e-3, 0.1
"""How far outputs of equal backbones may be apart, relative."""


@dataclass(frozen=True)
class NetllmSettings:
    """Measure what a decision and a training decision cost beside NetLLM's published code. No root."""

    netllm: Path
    """A checkout of NetLLM's published code."""
    llm: str = "smollm2-135m"
    """Backbone of all: the embedded one, or a folder with a Llama model."""
    trace: str = "fcc/train"
    """Where the recorded sessions were played."""
    sessions: int = 20
    """Recorded sessions."""
    chunks: int = CHUNKS
    """Of each."""
    ranks: tuple[int, ...] = (128, 16)
    """Of LoRA, on both sides: NetLLM's README has 128, this testbed 16."""
    threads: tuple[int, ...] = (1, 2)
    """Torch's threads; all of them are measured with the first rank, the first with all ranks."""
    repetitions: int = 3
    """Of everything, in turn."""
    quick: bool = False
    """A smoke run: everything once and briefly; its numbers say little."""
    write: Path | None = None
    """Also write the page (Markdown) to this file."""

    def __post_init__(self) -> None:
        if min((self.sessions, self.repetitions, *self.ranks, *self.threads), default=0) < 1 or not (self.ranks and self.threads):
            raise UserError("--sessions, --repetitions, --ranks and --threads are wanted, each at least 1")
        if not LATE < self.chunks <= CHUNKS:
            raise UserError(f"sessions of {self.chunks} chunks are asked for, wanted {LATE + 1} to {CHUNKS}")


@dataclass(frozen=True)
class Contender:
    """What is measured."""

    key: str
    label: str
    dtype: str
    tokens: str = ""
    """How ours makes tokens of a step."""

    @property
    def published(self) -> bool:
        """Whether it is NetLLM's code."""
        return self.key in PUBLISHED


class Worker:
    """A process that measures one contender."""

    def __init__(self, name: str, python: Path | str, module: str, log: Path) -> None:
        self._name, self._log = name, log
        alike = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
        alike |= {"OMP_WAIT_POLICY": "PASSIVE"}  # else a thread that waits for another one counts as at work
        with log.open("wb") as errors:
            self._process = popen_tied(
                None,
                [str(python), "-m", f"netllm.bench.{module}"],
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env={**os.environ, **alike},
            )

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer. Raises `TestbedError` when there is none."""
        process = self._process
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps({"do": what, **request}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        found = json.loads(line) if line else {"error": self._last_words()}
        if "error" in found:
            raise (UserError if found.get("user") else TestbedError)(f"{self._name} could not {what}: {found['error']}")
        return found

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {self._process.wait()}"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


def netllm(settings: NetllmSettings) -> str:
    """Measure; the page as text."""
    code = checkout(settings.netllm)
    if settings.quick:
        settings = replace(settings, repetitions=1, sessions=2, chunks=LATE + 4, ranks=settings.ranks[-1:], threads=settings.threads[:1])
    header: Row = {
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "utc": utc_now().isoformat(timespec="seconds"),
        "commit": checkout_commit(),
        "host": host_facts(),
        "settings": asdict(settings),
        "published": {"commit": code.commit, "changed": code.changed},
    }
    with tempfile.TemporaryDirectory() as scratch:
        begin_s = now_s()
        found = _measure(settings, code, Path(scratch))
        header |= {"took_s": now_s() - begin_s, "load_after": os.getloadavg()[0]}
    text = costs.markdown(header | found)
    if settings.write:
        settings.write.write_text(text, encoding="utf-8")
    return text


def _measure(settings: NetllmSettings, code: Checkout, scratch: Path) -> Row:
    """Rows, and names and versions of the contenders."""
    sessions = _record(settings, scratch / "sessions.json")
    llm = scratch / "llm"
    llm.mkdir()
    with _worker("this testbed", sys.executable, "ours", scratch) as ours:
        variants = ours.ask("variants")["tokens"]
        cache = Path(ours.ask("export", llm=settings.llm, folder=str(llm))["cache"])
    contenders = contenders_of(variants, settings.quick)
    python = environment(cache)
    steps = list(plan(settings, contenders))
    rows: list[Row] = []
    versions: dict[str, Any] = {}
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=len(steps))
        for rank in settings.ranks:
            bar.update(row, description=f"rank {rank}: loading")
            with ExitStack() as stack:
                here = [step for step in steps if step["rank"] == rank]
                workers: dict[str, Worker] = {}
                loaded: dict[str, Row] = {}
                for each in (each for each in contenders if any(step["contender"] == each.key for step in here)):
                    program, module = (python, "published") if each.published else (sys.executable, "ours")
                    workers[each.key] = stack.enter_context(_worker(each.label, program, module, scratch))
                    own = {"checkout": str(code.folder)} if each.published else {"tokens": each.tokens}
                    source = str(llm) if each.published else settings.llm
                    how = {"dtype": each.dtype, "rank": rank, "sessions": str(sessions), "llm": source}
                    loaded[each.key] = workers[each.key].ask("load", **how, **own) | {"dtype": each.dtype}
                agree({key: (found["dtype"], found["probe"]) for key, found in loaded.items()})
                rows += [_load_row(key, rank, found) for key, found in loaded.items()]
                versions |= {key: found["versions"] for key, found in loaded.items()}
                for step in here:
                    bar.update(row, description=f"rank {rank}: {step['phase']}, {step['contender']}")
                    rows.append(step | _take(workers[step["contender"]], step))
                    bar.advance(row)
    return {"rows": rows, "contenders": {each.key: each.label for each in contenders}, "versions": versions}


def _load_row(key: str, rank: int, found: Row) -> Row:
    sizes = {name: found[name] for name in ("tokens", "trained")}
    return {"phase": "load", "contender": key, "rank": rank, "repetition": 0, **sizes}


@contextmanager
def _worker(name: str, python: Path | str, module: str, scratch: Path) -> Iterator[Worker]:
    worker = Worker(name, python, module, scratch / f"{len(list(scratch.glob('*.log')))}.log")
    try:
        yield worker
    finally:
        worker.close()


def contenders_of(variants: Sequence[str], quick: bool = False) -> list[Contender]:
    """The main ones: NetLLM's code in both types, and ours. Then ours with other ways of making tokens, and in float32."""
    published = [
        Contender(PUBLISHED[0], "NetLLM's code, float32 (as published)", "float32"),
        Contender(PUBLISHED[1], "NetLLM's code, bfloat16", "bfloat16"),
    ]
    ours = [Contender(f"ours_{name}_bfloat16", _label(name, "bfloat16"), "bfloat16", name) for name in variants]
    same_type = [Contender(f"ours_{variants[0]}_float32", _label(variants[0], "float32"), "float32", variants[0])]
    return [*published, ours[0]] if quick else [*published, *ours, *same_type]


def _label(tokens: str, dtype: str) -> str:
    return f"this testbed, {f'{tokens} tokens, ' if tokens else ''}{dtype}"


def plan(settings: NetllmSettings, contenders: Sequence[Contender]) -> Iterator[Row]:
    """What is measured, in order: rank, then deciding before training, then threads, then repetitions, in each of which all have a turn.

    Beyond the first rank and number of threads only the main contenders are measured.
    """
    for rank in settings.ranks:
        for phase in ("decide", "train"):
            for threads in settings.threads if rank == settings.ranks[0] else settings.threads[:1]:
                chosen = contenders if (rank, threads) == (settings.ranks[0], settings.threads[0]) else contenders[:MAIN]
                for repetition in range(settings.repetitions):
                    for each in chosen:
                        yield {"phase": phase, "contender": each.key, "rank": rank, "threads": threads, "repetition": repetition}


def _take(worker: Worker, step: Row) -> Row:
    """Measure one step of the plan."""
    number = step["repetition"]
    if step["phase"] == "decide":
        found = worker.ask("decide", session=number, threads=step["threads"])
        return decided(found["cpu_s"], found["wall_s"]) | {"deciding_bytes": found["peak_rss_bytes"]}
    found = worker.ask("train", first=number, threads=step["threads"])
    found["train_cpu_s"], found["train_wall_s"] = found.pop("cpu_s"), found.pop("wall_s")
    return found | {"training_bytes": found.pop("peak_rss_bytes")}


def decided(cpu_s: Sequence[float], wall_s: Sequence[float]) -> Row:
    """A session's decisions in numbers: the median of the last ones, and the mean of all."""
    return {
        "late_cpu_s": median(cpu_s[-LATE:]),
        "late_wall_s": median(wall_s[-LATE:]),
        "session_cpu_s": fmean(cpu_s),
        "session_wall_s": fmean(wall_s),
    }


def agree(probes: dict[str, tuple[str, Sequence[float]]]) -> None:
    """TestbedError unless all backbones, (type, output), compute the same."""
    first, (_, wanted) = next(iter(probes.items()))
    for name, (dtype, seen) in probes.items():
        off = float(np.linalg.norm(np.subtract(seen, wanted)) / np.linalg.norm(wanted))
        limit = SAME_FLOAT32 if dtype == "float32" else SAME_BFLOAT16
        if off > limit:
            raise TestbedError(f"{name} and {first} have different backbones: outputs are {off:.2g} apart, wanted at most {limit:g}")


def _record(settings: NetllmSettings, path: Path) -> Path:
    """Sessions under a linear map from buffer to level, as `scripts/bench sim` plays them, on traces spread over the set."""
    traces = resolve(settings.trace).traces
    video = load_manifest(DEFAULT_VIDEO)
    session = AbrSession("bench", video, settings.chunks)
    played = []
    for number in range(settings.sessions):
        simulator, level = AbrSimulator(traces[number * len(traces) // settings.sessions], session), session.first_level
        while not simulator.done:
            simulator.step(level)
            level = level_of(simulator.buffer_s)
        played.append([asdict(chunk) for chunk in simulator.history])
    path.write_text(json.dumps({"video": asdict(video), "sessions": played}), encoding="utf-8")
    return path
