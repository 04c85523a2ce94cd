"""Our simulator and schedulers reproduce what the published code scored on the same job sequences.

`reference/cjs.json` in the data store holds JCTs of NetLLM's fork of spark-sched-sim: five settings, four schedulers and Random, 3 to 6
seeds. Where two idle executors may go first we send the lower number; the published code takes them in the order of a CPython set. With
that order put in, mean JCT and number of decisions are equal to every digit printed; with ours the means differ by 1 % or less.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from controllers.api import CjsPolicy, CjsSession
from controllers.cjs import decima
from controllers.cjs.decima import Decima
from controllers.cjs.fair import Fair
from controllers.cjs.fifo_full import FifoFull
from controllers.cjs.fifo_half import FifoHalf
from controllers.cjs.srpt_cap import SrptCap
from testbed.cluster.engine import Engine
from testbed.cluster.state import NOWHERE, ExecutorState, Pool
from testbed.errors import UserError
from testbed.metrics import ScheduleSummary
from testbed.sim.cjs import COMPLETE, CjsSimulator, Semantics
from testbed.sim.cjs_compiled import CompiledCjs
from traces.durations import StreamDurations, WordStream
from traces.store import data_roots
from traces.tpch import Profiles, load_profiles
from traces.workload import draw_workload

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
SETTINGS = {
    "small_10ex_20jobs": (10, 20),
    "default_50ex_200jobs": (50, 200),
    "unseen1_30ex_200jobs": (30, 200),
    "unseen2_50ex_450jobs": (50, 450),
    "unseen3_30ex_450jobs": (30, 450),
}
SMALL, DEFAULT = "small_10ex_20jobs", "default_50ex_200jobs"
HEURISTICS: dict[str, type[CjsPolicy]] = {"fair": Fair, "fifo_half": FifoHalf, "fifo_full": FifoFull}
WITHIN = 0.03
"""Share by which a mean may be off with our order of idle executors."""


@cache
def reference() -> dict:
    for root in data_roots():
        path = root / "reference" / "cjs.json"
        if path.is_file():
            return json.loads(path.read_text())["results"]
    pytest.skip("reference/cjs.json is in no data folder")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    for root in data_roots():
        path = root / "reference" / name
        if path.is_file():
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
    pytest.skip(f"reference/{name} is in no data folder")


@pytest.fixture(scope="module", autouse=True)
def profiles() -> Profiles:
    try:
        return load_profiles()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published weights as a file that the policy reads."""
    path = tmp_path_factory.mktemp("weights") / "decima.safetensors"
    save_file(arrays("decima.npz"), path)
    return path


@pytest.fixture
def order_of_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Idle executors leave in the order in which CPython's set of them gives them out, as in the published code."""

    def idle_members(engine: Engine, pool: Pool) -> list[ExecutorState]:
        return [engine.executors[n] for n in set(n for n in pool.members if engine.executors[n].task == NOWHERE)]  # noqa: C401

    monkeypatch.setattr(Engine, "idle_members", idle_members)
    yield


def exact(setting: str, seed: int, policy: CjsPolicy) -> CjsSimulator:
    """Played in plain Python; a policy that draws shares the stream of the durations, as Python's global generator is shared there."""
    executors, jobs = SETTINGS[setting]
    workload, stream, session = draw_workload(jobs, seed=seed), WordStream(seed), CjsSession("golden", executors)
    simulator = CjsSimulator(workload, session, durations=StreamDurations(workload, load_profiles(), stream))
    policy.reset(session, seed)
    policy.rng = stream  # type: ignore[assignment]
    while not simulator.ended:
        simulator.step(policy.decide(simulator.observation))
    assert simulator.ended == COMPLETE
    return simulator


@cache
def summary(policy: type[CjsPolicy], setting: str, seed: int, semantics: Semantics = "published") -> ScheduleSummary:
    executors, jobs = SETTINGS[setting]
    session = CjsSession("golden", executors)
    simulator, made = CompiledCjs(draw_workload(jobs, seed=seed), session, semantics), policy()
    made.reset(session, seed)
    while not simulator.ended:
        simulator.step(made.decide(simulator.observation))
    assert simulator.ended == COMPLETE
    return simulator.summary


def mean_jct_s(policy: type[CjsPolicy], setting: str, seeds: list[int], semantics: Semantics = "published") -> float:
    return float(np.mean([summary(policy, setting, seed, semantics).avg_jct_s for seed in seeds]))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_seed_names_the_same_jobs(setting: str) -> None:
    wanted = reference()[setting]["fair"]
    for seed, tasks, stages in zip(wanted["seeds"], wanted["tasks"], wanted["stages"], strict=True):
        workload = draw_workload(SETTINGS[setting][1], seed=seed)
        assert (workload.tasks, sum(len(job.stages) for job in workload.jobs)) == (tasks, stages)


@pytest.mark.parametrize("name", [*HEURISTICS, "decima"])
def test_every_small_run_is_the_published_one(name: str, published: Path, order_of_sets: None) -> None:
    wanted = reference()[SMALL][name]
    for i, seed in enumerate(wanted["seeds"]):
        policy = HEURISTICS[name]() if name in HEURISTICS else Decima(str(published))
        simulator = exact(SMALL, seed, policy)
        found = simulator.summary
        assert (round(found.avg_jct_s, 3), simulator.decisions) == (wanted["avg_jct_s"][i], wanted["decisions"][i]), seed
        assert round(found.makespan_s, 1) == wanted["makespan_s"][i]
        assert found.p50_jct_s == pytest.approx(wanted["p50_jct_s"][i], abs=0.006)
        assert found.p95_jct_s == pytest.approx(wanted["p95_jct_s"][i], abs=0.006)


def test_a_large_run_is_the_published_one(order_of_sets: None) -> None:
    wanted = reference()[DEFAULT]["fair"]
    simulator = exact(DEFAULT, wanted["seeds"][1], Fair())
    assert (round(simulator.summary.avg_jct_s, 3), simulator.decisions) == (wanted["avg_jct_s"][1], wanted["decisions"][1])


@pytest.mark.parametrize("setting", [SMALL, DEFAULT, "unseen1_30ex_200jobs"])
@pytest.mark.parametrize("name", HEURISTICS)
def test_means_are_the_published_ones(name: str, setting: str) -> None:
    wanted = reference()[setting][name]
    assert mean_jct_s(HEURISTICS[name], setting, wanted["seeds"]) == pytest.approx(wanted["mean"], rel=WITHIN)


def test_decima_with_the_published_weights_scores_what_was_published(published: Path) -> None:
    """Draws from the stream of the durations, as published. Three of six seeds, for time; all six: 53.16, published 52.74 (docs/cjs.md)."""
    wanted, found = reference()[DEFAULT]["decima"], []
    for seed in wanted["seeds"][:3]:
        session, policy = CjsSession("golden", 50), Decima(str(published))
        simulator = CompiledCjs(draw_workload(200, seed=seed), session)
        policy.reset(session, seed)
        policy.rng = simulator  # type: ignore[assignment]
        while not simulator.ended:
            simulator.step(policy.decide(simulator.observation))
        found.append(simulator.summary.avg_jct_s)
    assert np.mean(found) == pytest.approx(np.mean(wanted["avg_jct_s"][:3]), rel=WITHIN)
    assert found == pytest.approx(wanted["avg_jct_s"][:3], rel=WITHIN)


def test_the_network_computes_the_published_scores() -> None:
    weights, check = arrays("decima.npz"), arrays("decima_check.npz")
    executors, worst, seen = int(check["num_executors"]), 0.0, 0
    while f"obs{seen}.edges" in check:
        features, edges, first, mask, stage_scores, job, executor_scores = (
            check[f"obs{seen}.{name}"]
            for name in ("node_features", "edges", "job_ptr", "stage_mask", "stage_scores", "exec_scores_job", "exec_scores")
        )
        scorer, rows = decima.Scorer(weights, features, edges, first), np.flatnonzero(mask)
        jobs = np.searchsorted(first, rows, side="right") - 1
        worst = max(worst, float(np.abs(scorer.stage_scores(rows, jobs) - stage_scores).max()))
        found = scorer.executor_scores(int(job), len(executor_scores), executors)
        worst = max(worst, float(np.abs(found - executor_scores).max()))
        seen += 1
    assert seen == 25
    assert worst < 2e-5


@pytest.mark.parametrize("semantics", ["published", "conserving"])
def test_schedulers_rank_as_published(semantics: Semantics) -> None:
    """On each of the same job sequences: the rule with caps, Fair, half-cluster FIFO, FIFO. Frozen durations: on the same work, too."""
    for seed in (1, 2):
        order = [summary(policy, DEFAULT, seed, semantics).avg_jct_s for policy in (SrptCap, Fair, FifoHalf, FifoFull)]
        assert order == sorted(order), (seed, order)


def test_the_rule_with_caps_is_far_ahead_of_fair() -> None:
    """48.0 s over the reference seeds by the search that found it, in another simulator with our order of idle executors."""
    seeds = reference()[DEFAULT]["fair"]["seeds"]
    assert mean_jct_s(SrptCap, DEFAULT, seeds) == pytest.approx(48.01, rel=0.01)
