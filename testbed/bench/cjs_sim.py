"""`scripts/bench cjs-sim`: decisions per CPU second of the scheduling simulator under Fair: compiled, plain, NetLLM's published one.

All play the same job sequences on one core. The plain and the compiled simulator must agree to the last digit, and with the published one
on mean JCT within 3 % (they take idle executors in another order, docs/cjs.md), else nothing is reported. A repetition measures each
once, in turn; ratios are taken within a repetition. The time of drawing a workload (and, published, of reading its profiles) is told apart.
"""

import importlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from controllers.api import CjsPolicy, CjsSession
from testbed.bench.cjs_reference import FOLDER, Played
from testbed.clock import thread_cpu_s, utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError
from testbed.host import host_facts
from testbed.sim.cjs import CjsSimulator, Semantics, play
from testbed.sim.cjs_compiled import CompiledCjs
from traces.workload import INTERARRIVAL_S, draw_workload

WITHIN = 0.03
OURS: dict[str, tuple[type[CompiledCjs] | type[CjsSimulator], Semantics]] = {
    "compiled": (CompiledCjs, "published"),
    "plain": (CjsSimulator, "published"),
    "compiled, conserving rules": (CompiledCjs, "conserving"),
}


@dataclass(frozen=True)
class CjsSimSettings:
    """Measure the scheduling simulator on one core. No root."""

    executors: int = 50
    jobs: int = 200
    seeds: tuple[int, ...] = (1, 2, 3)
    """Job sequences; each is an episode."""
    repetitions: int = 3
    """Of everything, in turn."""
    reference: Path | None = None
    """A checkout of NetLLM's published code: its simulator is measured beside ours."""
    write: Path | None = None
    """Also write the page (Markdown) to this file."""

    def __post_init__(self) -> None:
        if min(self.executors, self.jobs, self.repetitions, len(self.seeds)) < 1:
            raise UserError(
                f"{self.executors} executors, {self.jobs} jobs, {len(self.seeds)} seeds and {self.repetitions} repetitions are asked for, "
                "wanted at least 1 of each"
            )
        if self.reference and not (self.reference / FOLDER / "spark_sched_sim").is_dir():
            raise UserError(f"--reference {self.reference}: has no {FOLDER}/spark_sched_sim, wanted a checkout of NetLLM")


def cjs_sim(settings: CjsSimSettings) -> str:
    """Measure; the page as text."""
    contenders: dict[str, Callable[[int], Played]] = {name: _ours(settings, *which) for name, which in OURS.items()}
    if settings.reference:
        contenders["NetLLM's simulator"] = lambda seed: _published(settings, seed)
    for name in OURS:
        contenders[name](settings.seeds[0])  # compiles, and warms up
    runs: dict[str, list[list[Played]]] = {name: [] for name in contenders}
    for _ in range(settings.repetitions):
        for name, play_one in contenders.items():
            runs[name].append([play_one(seed) for seed in settings.seeds])
    agree({name: [played.avg_jct_s for played in repetitions[0]] for name, repetitions in runs.items()})
    text = page(runs, settings)
    if settings.write:
        settings.write.write_text(text, encoding="utf-8")
    return text


def _ours(settings: CjsSimSettings, kind: type[CompiledCjs] | type[CjsSimulator], semantics: Semantics) -> Callable[[int], Played]:
    session = CjsSession("bench", settings.executors)
    fair: CjsPolicy = importlib.import_module("controllers.cjs.fair").Fair()  # by name: what may run as root imports no policy

    def play_one(seed: int) -> Played:
        begin_s = thread_cpu_s()
        simulator = kind(draw_workload(settings.jobs, seed=seed), session, semantics)
        began_s = thread_cpu_s()
        found = play(simulator, fair, session, seed)
        return Played(simulator.decisions, found.avg_jct_s, thread_cpu_s() - began_s, began_s - begin_s)

    return play_one


def _published(settings: CjsSimSettings, seed: int) -> Played:
    numbers = (settings.executors, settings.jobs, seed, INTERARRIVAL_S, CjsSession("bench", settings.executors).moving_delay_s)
    command = [sys.executable, "-m", "testbed.bench.cjs_reference", str(settings.reference), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).resolve().parents[2])
    try:
        return msgspec.json.decode(done.stdout, type=Played)
    except msgspec.DecodeError as error:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise TestbedError(f"NetLLM's simulator in {settings.reference} can't be measured ({reason[:200]})") from error


def agree(jct_s: dict[str, list[float]]) -> None:
    """TestbedError unless the simulators played the same: `jct_s` has the mean JCT of each seed."""
    if jct_s["plain"] != jct_s["compiled"]:
        raise TestbedError(f"plain and compiled differ: mean JCTs are {jct_s['plain']} and {jct_s['compiled']} s")
    theirs = jct_s.get("NetLLM's simulator")
    if theirs and abs(np.mean(jct_s["compiled"]) / np.mean(theirs) - 1) > WITHIN:
        raise TestbedError(f"ours and NetLLM's differ by more than {WITHIN:.0%}: mean JCTs are {jct_s['compiled']} and {theirs} s")


def page(runs: dict[str, list[list[Played]]], settings: CjsSimSettings) -> str:
    """A table: medians, ranges, ratios within repetitions to the slowest."""
    slowest = list(runs)[-1] if settings.reference else "plain"
    rates = {name: [_rate(episodes) for episodes in repetitions] for name, repetitions in runs.items()}
    lines = [
        "# The scheduling simulator's pace",
        f"`{' '.join(['scripts/bench', *sys.argv[1:]])}`, {utc_now():%Y-%m-%d}, commit `{checkout_commit()[:12]}`, "
        f"{host_facts()['cpu_model']}, one core. Fair on {settings.executors} executors, {settings.jobs} jobs, "
        f"seeds {', '.join(map(str, settings.seeds))}; median of {settings.repetitions} repetitions (least to most). CPU time.",
        "",
        f"| simulator | mean JCT s | decisions an episode | decisions a second | times {slowest} | s to begin an episode |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, seen in rates.items():
        ratios = [a / b for a, b in zip(seen, rates[slowest], strict=True)]
        episodes = [played for episodes in runs[name] for played in episodes]
        jct_s = np.mean([played.avg_jct_s for played in runs[name][0]])
        decisions = round(np.mean([played.decisions for played in runs[name][0]]))
        begin_s = statistics.median(played.reset_cpu_s for played in episodes)
        lines.append(f"| {name} | {jct_s:.1f} | {decisions} | {_spread(seen, ',.0f')} | {_spread(ratios, '.1f')} | {begin_s:.3f} |")
    return "\n".join(lines) + "\n"


def _rate(episodes: list[Played]) -> float:
    return sum(played.decisions for played in episodes) / sum(played.cpu_s for played in episodes)


def _spread(numbers: list[float], form: str) -> str:
    return f"{statistics.median(numbers):{form}} ({min(numbers):{form}} to {max(numbers):{form}})"
