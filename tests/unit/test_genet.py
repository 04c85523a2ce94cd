"""Genet: one state for batch and policy, a baseline equal to the rule, a curriculum that finds hard environments, resumable runs."""

import csv
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import save_file

from controllers.abr.genet import DRAWS, SHAPES, Genet, actor, drawn, features, moved, seen_of
from controllers.abr.robust_mpc import RobustMPC
from controllers.api import AbrObservation, AbrSession
from controllers.learning import curriculum
from controllers.learning.command import train_command
from controllers.learning.curriculum import HIGHEST, LOWEST, PROMOTED, Curriculum, Environment, any_environment, environment_trace, search
from controllers.learning.genet import PARTS, Actor, GenetDesign, GenetWorld, seen_by
from controllers.learning.genet_baseline import play_baseline
from controllers.learning.playbacks import Playbacks, Pool, Videos
from controllers.learning.ppo import Learner, PpoSettings
from controllers.learning.run import Run, TrainSettings
from controllers.weights import read_weights
from players.media import synthetic_manifest
from testbed.errors import UserError
from testbed.sim.abr import AbrSimulator, run_session
from tests.abr_cases import observation, session
from traces.synthetic import synthetic_trace
from traces.trace import RateTrace
from traces.training import Sources

QUIET = Console(quiet=True)


def some_traces(count: int, seed: int = 0) -> list[RateTrace]:
    rng = np.random.default_rng(seed)
    return [replace(synthetic_trace(rng), name=f"mine {i}") for i in range(count)]


def some_plays(count: int, chunks: int = 20, **constants: float) -> Playbacks:
    """Sessions of one video, from different places in different traces."""
    rng = np.random.default_rng(1)
    videos = Videos([synthetic_manifest()], chunks)
    offsets_s = rng.uniform(0, 300, count)
    which = np.arange(count) % 4
    return Playbacks(Pool(some_traces(4)), videos, which, offsets_s, np.zeros(count, int), replace(videos.session, **constants))


def simulators(plays: Playbacks) -> list[AbrSimulator]:
    rng = np.random.default_rng(1)
    offsets_s = rng.uniform(0, 300, len(plays.which))
    traces = some_traces(4)
    return [AbrSimulator(traces[w], plays.session, offset_s) for w, offset_s in zip(plays.which, offsets_s, strict=True)]


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """Random ones: a network with a mind."""
    rng = np.random.default_rng(4)
    return {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def policy(weights: dict[str, np.ndarray], tmp_path: Path) -> Genet:
    save_file(weights, tmp_path / "random.safetensors")
    return Genet(str(tmp_path / "random.safetensors"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch):
    """Sessions that need no catalogued data; two rounds, and searches of three trials."""
    monkeypatch.setattr("controllers.learning.genet.ROUNDS", 2)
    monkeypatch.setattr("controllers.learning.genet.load_manifest", lambda name: synthetic_manifest())
    monkeypatch.setattr("controllers.learning.genet.GAP_SESSIONS", 3)
    monkeypatch.setattr(curriculum.search, "__defaults__", (3, 2))
    found = some_traces(6)
    sources = Sources(tuple(found[:4]), tuple(found[4:]), ())
    return lambda iterations=6, seed=1: GenetWorld(seed, iterations, sources, chunks=6)


def test_sessions_side_by_side_show_the_state_that_the_policy_sees() -> None:
    plays, rng = some_plays(8), np.random.default_rng(2)
    sims = simulators(plays)
    plays.begin()
    for sim in sims:
        sim.step(0)
    while not plays.done:
        single = np.concatenate([features(seen_of(sim.observation)) for sim in sims])
        np.testing.assert_allclose(features(seen_by(plays)), single, rtol=1e-6, atol=1e-7)
        actions = rng.integers(3, size=8)
        levels = GenetDesign().slots(plays, actions)
        assert levels.tolist() == [moved(sim.history[-1].level, action, 6) for sim, action in zip(sims, actions, strict=True)]
        plays.step(levels)
        for sim, level in zip(sims, levels, strict=True):
            sim.step(int(level))


def test_the_state_is_empty_before_the_session_and_newest_last() -> None:
    seen = observation(session(12), [2e6, 1e6], [0, 1], 7.0)
    state = features(seen_of(seen))[0]
    first, second = seen.history
    assert state[2].tolist() == pytest.approx(
        [0, 0, 0, 0, first.size_bytes / 1e6 / first.download_s, second.size_bytes / 1e6 / second.download_s]
    )
    assert state[3, :4].tolist() == [0, 0, 0, 0] and state[3, 5] == pytest.approx(second.download_s / 10)
    assert state[0, 5] == pytest.approx(seen.video.bitrates_bps[1] / seen.video.bitrates_bps[5])
    assert state[1, 5] == pytest.approx(0.7) and state[5, 5] == pytest.approx(10 / 48)
    assert state[[0, 1, 5], :5].tolist() == [[0] * 5] * 3
    assert state[4].tolist() == pytest.approx([size / 1e6 for size in seen.next_sizes_bytes])


def test_the_network_that_is_trained_is_the_one_that_is_used(weights: dict[str, np.ndarray]) -> None:
    torch_actor = Actor()
    torch_actor.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    state = np.random.default_rng(1).standard_normal((50, 6, 6)).astype(np.float32)
    with torch.no_grad():
        wanted = torch_actor(torch.from_numpy(state.reshape(50, 36))).softmax(-1).numpy()
    np.testing.assert_allclose(actor(weights, state), wanted, atol=1e-5)


def test_actions_are_drawn_as_often_as_they_are_probable() -> None:
    chances = np.array([[0.2, 0.5, 0.3]])
    every = drawn(np.repeat(chances, DRAWS - 1, axis=0), np.arange(1, DRAWS))
    assert np.bincount(every).tolist() == [199, 500, 300]
    assert drawn(np.array([[0.0, 0.0, 1.0]]), np.array([999])).tolist() == [2]


def test_levels_are_as_probable_as_the_moves_to_them(policy: Genet) -> None:
    """At an end of the ladder a move beyond it stays."""
    for last in (0, 3, 5):
        seen = observation(session(12), [2e6, 3e6], [0, last], 9.0)
        policy.reset(seen.session, 1)
        down, stay, up = actor(policy._weights, features(seen_of(seen)))[0]
        wanted = {0: {0: down + stay, 1: up}, 3: {2: down, 3: stay, 4: up}, 5: {4: down, 5: stay + up}}[last]
        found = policy.probabilities(seen)
        assert found.sum() == pytest.approx(1)
        assert {level: chance for level, chance in enumerate(found) if chance} == pytest.approx(wanted)
        levels = [policy.decide(seen) for _ in range(400)]
        assert set(levels) <= set(wanted)
        assert np.mean([level == last for level in levels]) == pytest.approx(wanted[last], abs=0.1)


@pytest.mark.parametrize("levels", [1, 2, 4, 6, 9])
def test_any_ladder_can_be_played(policy: Genet, levels: int) -> None:
    chunks = run_session(some_traces(1)[0], session(20, levels), policy, 1)
    played = [chunk.level for chunk in chunks]
    assert max(abs(np.diff(played))) <= 1 and max(played) < levels
    seen = AbrObservation(AbrSession("x", session(20, levels).video, 20), chunks[:5], 8.0)
    sizes = features(seen_of(seen))[0, 4] * 1e6
    assert sizes[[0, 5]].tolist() == pytest.approx([seen.next_sizes_bytes[0], seen.next_sizes_bytes[-1]], rel=1e-5)
    assert (np.diff(sizes) >= 0).all()


def test_other_weights_are_refused_in_one_sentence(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(weights | {"out.weight": np.zeros((6, 128), np.float32)}, tmp_path / "six")
    with pytest.raises(UserError, match=r"six holds out.weight \(6, 128\), wanted \(3, 128\) \(a file made by scripts/train genet\)"):
        Genet(str(tmp_path / "six"))
    with pytest.raises(UserError, match="can't be read"):
        Genet(str(tmp_path / "absent"))


def test_the_weights_that_ship_have_a_name() -> None:
    for name, array in Genet("genet")._weights.items():
        np.testing.assert_array_equal(array, Genet()._weights[name])


@pytest.mark.parametrize("constants", [{}, {"rtt_s": 0.6, "buffer_cap_s": 9.0}])
def test_the_baseline_decides_as_the_rule_does(constants: dict[str, float]) -> None:
    plays = some_plays(12, 16, **constants)
    play_baseline(plays)
    rng = np.random.default_rng(1)
    offsets_s = rng.uniform(0, 300, 12)
    for i, (which, offset_s) in enumerate(zip(plays.which, offsets_s, strict=True)):
        chunks = run_session(some_traces(4)[which], plays.session, RobustMPC("adjacent"), 1, offset_s)
        assert [chunk.level for chunk in chunks] == plays.slots[:, i].tolist()


def test_environments_and_their_traces_keep_to_the_ranges() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        environment = any_environment(rng)
        for name, value in asdict(environment).items():
            assert getattr(LOWEST, name) <= value <= getattr(HIGHEST, name)
        trace = environment_trace(rng, environment)
        assert trace.duration_s == 330 and min(trace.rates_bps) > 0
        assert max(trace.rates_bps) <= 1e6 * max(environment.highest_mbps, environment.lowest_mbps) * 1.0001
        holds_s = np.diff(trace.edges_s)[:-1]
        assert (holds_s >= 0.5 * environment.change_s - 1e-9).all() and (holds_s <= 1.5 * environment.change_s + 1e-9).all()


def test_the_newest_environment_gets_its_share_and_the_others_what_is_left() -> None:
    old, new = (replace(LOWEST, rtt_s=value) for value in (2.0, 3.0))
    rng = np.random.default_rng(3)
    drawn_environments = [Curriculum((old, new)).draw(rng) for _ in range(4000)]
    shares = [np.mean([each == wanted for each in drawn_environments]) for wanted in (new, old)]
    assert shares == pytest.approx([PROMOTED, PROMOTED * (1 - PROMOTED)], abs=0.03)


def test_a_search_finds_larger_gaps_than_chance() -> None:
    def gap(environment: Environment) -> float:
        return (
            -(((environment.rtt_s - 0.17) / 0.1) ** 2)
            - ((environment.buffer_cap_s - 25) / 50) ** 2
            - (np.log(environment.highest_mbps) - 2) ** 2
        )

    rng = np.random.default_rng(1)
    found = [curriculum.hardest(search(gap, seed, 12, 5)).gap for seed in range(2)]
    chance = [max(gap(any_environment(rng)) for _ in range(12)) for _ in range(200)]
    assert np.mean(found) > np.mean(chance)
    assert search(gap, 1, 6) == search(gap, 1, 6)


def test_a_gap_is_what_the_model_lacks(world) -> None:
    """A learner that prefers going down falls far behind where bandwidth abounds, and less where there is none."""
    made = world()
    learner = Learner(GenetDesign(), PpoSettings(), 1)
    with torch.no_grad():
        learner.mean_actor.out.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    rich, poor = Environment(8, 20, 5, 0.05, 60), Environment(0.1, 1, 5, 0.05, 60)
    assert made.gap(learner, rich, 1) > 0.3 > made.gap(learner, poor, 1)


def settings(out: Path, **more: int | bool) -> TrainSettings:
    return TrainSettings(
        out=out, validate_every=3, checkpoint_every=2, ppo=PpoSettings(iterations=6, sessions=2 * PARTS, minibatch=64), **more
    )


def test_a_run_that_was_killed_goes_on_to_the_same_weights_and_curriculum(world, tmp_path: Path) -> None:
    whole = Run(GenetDesign(), world(), settings(tmp_path / "whole"), QUIET)
    whole.train()
    promoted = whole.world.facts()["promoted"]
    assert len(promoted) == 2
    cut = Run(GenetDesign(), world(), settings(tmp_path / "cut"), QUIET)
    for _ in range(5):
        cut.loop.advance()  # killed after iteration 5: the checkpoint is of iteration 4
    resumed = Run(GenetDesign(), world(), settings(tmp_path / "cut", resume=True), QUIET)
    assert resumed.loop.standing.step == 4
    resumed.train()
    assert resumed.world.facts()["promoted"] == promoted
    for name, array in read_weights(whole.weights).items():
        np.testing.assert_array_equal(array, read_weights(resumed.weights)[name])
    curves = [[{**row, "elapsed_s": ""} for row in csv.DictReader((tmp_path / name / "curve.csv").open())] for name in ("whole", "cut")]
    assert curves[0] == curves[1]


def test_the_command_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_command(["--help"]) == 0
    assert "genet" in capsys.readouterr().out
