"""Plays workloads with policies. A language model's sessions advance together, since it decides for many in the time of a few."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from controllers.api import CjsPolicy, CjsSession
from controllers.cjs.netllm import NetLLM
from controllers.loader import PolicyFactory, raised
from netllm.cjs.experience import play_together
from netllm.cjs.reader import CjsReader
from netllm.cjs.suite.settings import CjsSetting
from testbed.clock import now_s
from testbed.cluster.observe import checked
from testbed.errors import UserError
from testbed.sim.cjs import Semantics
from testbed.sim.cjs_compiled import CompiledCjs
from traces.workload import draw_workload

TIMED = 400
"""Decisions of a language model that are timed, one session alone; those of other policies are all timed."""


@dataclass(frozen=True)
class Played:
    """One session."""

    setting: str
    seed: int
    policy: str
    ended: str
    """`complete`, or `starved`: then its JCT means nothing."""
    avg_jct_s: float
    p50_jct_s: float
    p95_jct_s: float
    makespan_s: float
    busy_share: float
    decisions: int
    decision_ms_p50: float | None
    decision_ms_p99: float | None
    """None for sessions that were played together."""


def play(setting: CjsSetting, seeds: list[int], factory: PolicyFactory, semantics: Semantics, threads: int = 1) -> Iterator[Played]:
    """Sessions of `seeds`, in order. PyTorch computes in `threads`, unless the policy's own option says otherwise."""
    policy = factory()
    if "threads" not in dict(factory.arguments):
        torch.set_num_threads(threads)  # now: a language model sets its default when it is made
    if isinstance(policy, NetLLM):
        yield from _together(setting, seeds, factory.name, policy, semantics)
        return
    for seed in seeds:
        simulator, took_ms = _simulator(setting, seed, semantics), list[float]()
        try:
            _play_on(policy, simulator, seed, took_ms)
        except UserError:
            raise
        except Exception as error:  # whatever a user's policy may raise
            raise UserError(f"policy {factory.name!r} failed on setting {setting.name}, seed {seed}: it {raised(error)}") from error
        yield _played(setting, seed, factory.name, simulator, took_ms)


def _together(setting: CjsSetting, seeds: list[int], name: str, policy: NetLLM, semantics: Semantics) -> Iterator[Played]:
    simulators = [_simulator(setting, seed, semantics) for seed in seeds]
    play_together(simulators, CjsReader(policy.model))
    took_ms: list[float] = []
    _play_on(policy, _simulator(setting, seeds[0], semantics), seeds[0], took_ms, TIMED)
    for seed, simulator in zip(seeds, simulators, strict=True):
        yield _played(setting, seed, name, simulator, took_ms if seed == seeds[0] else [])


def _simulator(setting: CjsSetting, seed: int, semantics: Semantics) -> CompiledCjs:
    return CompiledCjs(draw_workload(setting.jobs, seed=seed), CjsSession("evaluation", setting.executors), semantics)


def _play_on(policy: CjsPolicy, simulator: CompiledCjs, seed: int, took_ms: list[float], most: int = 0) -> None:
    policy.reset(simulator.session, seed)
    while not simulator.ended and (not most or len(took_ms) < most):
        seen, began_s = simulator.observation, now_s()
        action = policy.decide(seen)
        took_ms.append(1000 * (now_s() - began_s))
        simulator.step(checked(action, seen))


def _played(setting: CjsSetting, seed: int, name: str, simulator: CompiledCjs, took_ms: list[float]) -> Played:
    summary = simulator.summary
    p50_ms, p99_ms = np.quantile(took_ms, (0.5, 0.99)).tolist() if took_ms else (None, None)
    return Played(
        setting.name,
        seed,
        name,
        simulator.ended,
        summary.avg_jct_s,
        summary.p50_jct_s,
        summary.p95_jct_s,
        summary.makespan_s,
        summary.busy_share,
        simulator.decisions,
        p50_ms,
        p99_ms,
    )
