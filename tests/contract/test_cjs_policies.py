"""What every scheduling policy promises. The list is read from `controllers/cjs/`: a new file is tested as soon as it lies there.

Decima plays with random weights here, and NetLLM with a tiny random language model: what is promised holds for any.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import controllers.cjs
from controllers.api import CjsAction, CjsPolicy
from controllers.cjs.decima import Decima, shapes
from controllers.cjs.netllm import NetLLM
from controllers.loader import discover
from netllm.adapter import new_model, save_adapter
from netllm.graph import CjsModel
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.cjs import CjsTask
from testbed.sim.cjs import COMPLETE, CjsSimulator, Semantics
from testbed.sim.cjs_compiled import CompiledCjs
from tests.cjs_cases import Fixed, Random, job, play_out, random_workload, session, workload
from tests.unit.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
NAMES = list(discover(Path(controllers.cjs.__file__).parent))
WANTED = {"fifo_full", "fifo_half", "fair", "sjf_cp", "weighted_fair", "srpt_cap", "decima", "netllm"}


def kind(name: str) -> type[CjsPolicy]:
    module = importlib.import_module(f"controllers.cjs.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, CjsPolicy) and value.__module__ == module.__name__
    ]
    return found


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("weights")
    save_file({name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes().items()}, folder / "random.safetensors")
    save_adapter(a_model(str(save_tiny(folder / "llm"))), folder / "adapter", {})
    return str(folder)


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest, random_weights: str) -> CjsPolicy:
    return made(request.param, random_weights)


def a_model(llm: str) -> TaskModel:
    """Whose LoRA and heads are not at their zero start, so that everything has an effect."""
    torch.manual_seed(2)
    model = new_model(llm, "float32", CjsTask(hidden=16, context=16), LoraSettings(rank=2), "contract")
    assert isinstance(model, CjsModel)
    for parameter in (*model.switch.parameters(), model.head.stage[-1].weight, model.head.executors[-1].weight):
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def made(name: str, weights: str) -> CjsPolicy:
    if name == "netllm":
        return NetLLM(f"{weights}/adapter", f"{weights}/llm", "float32")
    return Decima(f"{weights}/random.safetensors") if name == "decima" else kind(name)()


def decisions(policy: CjsPolicy, seed: int, executors: int = 4, semantics: Semantics = "conserving", steps: int = 60) -> list[CjsAction]:
    drawn, profiles = random_workload(seed)
    return play_out(CompiledCjs(drawn, session(executors), semantics, profiles), policy, session(executors), seed=7, steps=steps)


def test_all_that_are_named_are_here() -> None:
    assert set(NAMES) >= WANTED


def test_it_says_who_it_is(policy: CjsPolicy) -> None:
    assert type(policy).label
    assert re.fullmatch(r"#[0-9a-f]{6}", type(policy).colour)
    assert len(type(policy).citation) > 10
    assert type(policy).__doc__


def test_labels_and_colours_differ() -> None:
    kinds = [kind(name) for name in NAMES]
    assert len({each.label for each in kinds}) == len(kinds)
    assert len({each.colour for each in kinds}) == len(kinds)


def test_no_state_outlives_its_session(policy: CjsPolicy) -> None:
    """Sessions in both orders: equal decisions."""
    first = decisions(policy, 1), decisions(policy, 2, executors=9)
    second = decisions(policy, 2, executors=9), decisions(policy, 1)
    assert first == second[::-1]
    assert len(first[0]) > 5


def test_an_aborted_session_leaves_nothing(policy: CjsPolicy) -> None:
    whole = decisions(policy, 3)
    decisions(policy, 4, steps=3)
    assert decisions(policy, 3) == whole


def test_two_sessions_at_once_do_not_mix(random_weights: str) -> None:
    for name in NAMES:
        alone = decisions(made(name, random_weights), 5)
        one, other = made(name, random_weights), made(name, random_weights)
        (drawn, profiles), (drawn2, profiles2) = random_workload(5), random_workload(6)
        sims = CompiledCjs(drawn, session(), "conserving", profiles), CompiledCjs(drawn2, session(), "conserving", profiles2)
        one.reset(session(), 7)
        other.reset(session(), 7)
        taken = []
        while not sims[0].ended and len(taken) < len(alone):
            taken.append(one.decide(sims[0].observation))
            sims[0].step(taken[-1])
            if not sims[1].ended:
                sims[1].step(other.decide(sims[1].observation))
        assert taken == alone, name


@pytest.mark.parametrize("semantics", ["published", "conserving"])
@pytest.mark.parametrize("executors", [1, 3, 50])
def test_clusters_of_any_size_finish_their_jobs(policy: CjsPolicy, executors: int, semantics: Semantics) -> None:
    for seed in (1, 2):
        drawn, profiles = random_workload(seed)
        simulator = CompiledCjs(drawn, session(executors), semantics, profiles)
        play_out(simulator, policy, session(executors))
        assert simulator.ended == COMPLETE


def test_one_job_of_one_task(policy: CjsPolicy) -> None:
    simulator = CjsSimulator(workload(job(0, (1,))), session(2), durations=Fixed())
    (action,) = play_out(simulator, policy, session(2))
    assert action.stage == 0


def test_answers_are_actions_that_can_be_meant(policy: CjsPolicy) -> None:
    """On states that the policy itself would not have led to."""
    drawn, profiles = random_workload(8, jobs=12, interarrival_s=1.0)
    simulator, wanderer = CjsSimulator(drawn, session(6), profiles=profiles), Random(decline=8)
    policy.reset(session(6), 1)
    wanderer.reset(session(6), 2)
    while not simulator.ended:
        seen = simulator.observation
        before = repr(seen)
        action = policy.decide(seen)
        assert repr(seen) == before, "what it is shown is left alone"
        assert type(action.stage) is int
        assert type(action.executors) is int
        if action.stage != -1:
            assert seen.schedulable[action.stage]
            assert 1 <= action.executors <= seen.committable
        simulator.step(wanderer.decide(seen))


@pytest.mark.parametrize("name", NAMES)
def test_importing_it_brings_neither_torch_nor_the_simulator(name: str) -> None:
    code = f"import sys, controllers.cjs.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    loaded = set(done.stdout.split())
    assert not {module.partition(".")[0] for module in loaded} & {"torch", "transformers", "mininet", "players", "numba"}
    assert not [module for module in loaded if module.startswith(("testbed.sim", "testbed.cluster", "traces"))]
