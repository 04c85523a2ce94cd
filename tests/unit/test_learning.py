"""Playbacks in columns equal the simulator and the policies; training is reproducible, resumable, and learns."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from controllers.abr import pensieve
from controllers.abr.pensieve import Pensieve, features, seen_of
from controllers.api import AbrSession
from controllers.learning.command import train_command
from controllers.learning.pensieve import Actor, PensieveDesign, PensieveWorld, seen_by
from controllers.learning.playbacks import FUTURE_S, Playbacks, Pool, Videos
from controllers.learning.ppo import Learner, PpoSettings, play_out
from controllers.learning.run import Run, TrainSettings
from controllers.learning.saved import write_tensors
from controllers.weights import read_story, read_weights
from players.ladders import find_video
from players.media import synthetic_manifest
from testbed.commit import command_line
from testbed.errors import UserError
from testbed.metrics import chunk_qoe
from testbed.sim.abr import AbrSimulator, run_session
from traces.synthetic import synthetic_trace
from traces.training import Sources

QUIET = Console(quiet=True)


def some_traces(count, seed=0):
    rng = np.random.default_rng(seed)
    return [replace_name(synthetic_trace(rng), f"mine {i}") for i in range(count)]


def replace_name(trace, name):
    return replace(trace, name=name)


@pytest.fixture
def videos():
    return [find_video(f"synthetic{more}") for more in ("", "*0.8*1.1", "@0,2,5", "*1.3*0.9@1,2,4,5")]


@pytest.fixture
def world(monkeypatch):
    """Sessions that need no catalogued data."""
    monkeypatch.setattr("controllers.learning.pensieve.load_manifest", lambda name: synthetic_manifest())
    monkeypatch.setattr("controllers.learning.pensieve.VIDEOS", ("synthetic",) * 3)
    monkeypatch.setattr("controllers.learning.validation.VALIDATION_VIDEOS", ("synthetic",) * 3)
    found = some_traces(6)
    sources = Sources(tuple(found[:4]), tuple(found[4:]), ())
    return lambda seed=1: PensieveWorld(seed, sources, chunks=8, traces=6, count=8)


def test_sessions_side_by_side_are_those_of_the_simulator_chunk_by_chunk(videos):
    traces, rng = some_traces(5), np.random.default_rng(1)
    which, video = np.arange(20) % 5, np.arange(20) % 4
    offsets_s = rng.uniform(0, 300, 20)
    table = Videos(videos, 12)
    plays = Playbacks(Pool(traces), table, which, offsets_s, video)
    assert any(len(each.bitrates_bps) < 6 for each in videos)
    sims = [
        AbrSimulator(traces[w], AbrSession("x", videos[v], 12), offset_s) for w, v, offset_s in zip(which, video, offsets_s, strict=True)
    ]
    slots = [np.flatnonzero(table.bitrates_bps[v]) for v in video]
    plays.begin()
    for sim in sims:
        sim.step(0)
    while not plays.done:
        batch = features(seen_by(plays))
        single = np.concatenate([features(seen_of(sim.observation)) for sim in sims])
        np.testing.assert_allclose(batch, single, rtol=1e-5, atol=1e-6)
        levels = [int(rng.integers(each.session.video.levels)) for each in sims]
        plays.step(np.array([places[level] for places, level in zip(slots, levels, strict=True)]))
        for sim, level in zip(sims, levels, strict=True):
            sim.step(level)
    qoe = [chunk_qoe(sim.history, sim.session.video)[1:] for sim in sims]
    np.testing.assert_allclose(plays.qoe[1:].T, qoe, rtol=1e-9, atol=1e-9)


def test_an_empty_slot_is_refused(videos):
    small = next(video for video in videos if len(video.bitrates_bps) < 6)
    plays = Playbacks(Pool(some_traces(1)), Videos([small], 5), np.zeros(1, int), np.zeros(1), np.zeros(1, int))
    plays.begin()
    with pytest.raises(ValueError, match="empty slot"):
        plays.step(np.flatnonzero(~plays.exists[0])[:1])


def test_what_the_critic_is_told_is_what_the_trace_will_carry():
    traces = some_traces(3)
    pool = Pool(traces)
    told = pool.future_mbps(np.array([0, 1, 2]), np.array([0.0, 300.0, 319.0]))
    for trace, now_s, rates in zip(traces, (0, 300, 319), told, strict=True):
        seconds = [trace.rates_bps[int((second % trace.duration_s) // 5)] / 1e6 for second in range(now_s, now_s + FUTURE_S[-1])]
        wanted = [np.mean(seconds[a:b]) for a, b in pairwise(FUTURE_S)]
        np.testing.assert_allclose(rates, wanted, rtol=1e-6)


def test_the_policy_computes_what_the_network_was_trained_to_compute(videos, tmp_path):
    torch.manual_seed(2)
    actor = Actor()
    torch.nn.init.normal_(actor.actor[2].weight)  # a fresh actor is nearly indifferent
    path = tmp_path / "x.safetensors"
    write_tensors(path, dict(actor.state_dict()), "made", {"seed": 2})
    assert read_story(path) == {"seed": 2}
    plays = Playbacks(Pool(some_traces(4)), Videos(videos, 10), np.arange(4), np.zeros(4), np.arange(4))
    qoe = play_out(PensieveDesign(), actor, plays)
    for i, trace in enumerate(some_traces(4)):
        session = AbrSession("x", videos[i], 10)
        chunks = run_session(trace, session, Pensieve(weights=str(path)), 0)
        places = np.flatnonzero(plays.videos.bitrates_bps[i])
        assert [places[chunk.level] for chunk in chunks] == plays.slots[:, i].tolist()
        assert np.mean(chunk_qoe(chunks, session.video)[1:]) == pytest.approx(qoe[i], abs=1e-9)


def test_other_weights_are_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "bad").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"bad: can't be read .*, wanted weights made by scripts/train"):
        Pensieve(weights=str(tmp_path / "bad"))
    write_tensors(tmp_path / "other", {"x": torch.zeros(2)}, "made", {})
    monkeypatch.setattr("controllers.abr.pensieve.find_weights", lambda text, default: tmp_path / "other")
    for weights in ("other", ""):
        with pytest.raises(
            UserError, match=rf"{tmp_path}/other holds no actor with \d+ inputs, wanted a file made by scripts/train pensieve"
        ):
            Pensieve(weights=weights)


def settings(out, **more):
    return TrainSettings(out=out, validate_every=2, checkpoint_every=2, ppo=PpoSettings(iterations=4, sessions=32, minibatch=64), **more)


def test_a_run_that_was_cut_goes_on_to_the_same_weights(world, tmp_path):
    whole = Run(PensieveDesign(), world(), settings(tmp_path / "whole"), QUIET).train()
    cut = Run(PensieveDesign(), world(), settings(tmp_path / "cut"), QUIET)
    for _ in range(3):
        cut.loop.advance()  # killed after iteration 3: the checkpoint is of iteration 2
    resumed = Run(PensieveDesign(), world(), settings(tmp_path / "cut", resume=True), QUIET)
    assert resumed.loop.standing.step == 2
    again = resumed.train()
    for name, array in read_weights(whole).items():
        np.testing.assert_array_equal(array, read_weights(again)[name])
    curves = [[{**row, "elapsed_s": ""} for row in csv.DictReader((tmp_path / name / "curve.csv").open())] for name in ("whole", "cut")]
    assert curves[0] == curves[1] and [row["iteration"] for row in curves[0]] == ["2", "4"]


@pytest.mark.parametrize("within", ["improve", "validate"])
@pytest.mark.parametrize("at", [1, 3])
def test_ctrl_c_at_any_moment_changes_no_weight(world, tmp_path, monkeypatch, within, at):
    """Half an iteration's gradient steps, or a validation that was not made, must not be taken for done."""
    whole = Run(PensieveDesign(), world(), settings(tmp_path / "whole"), QUIET).train()
    cut = Run(PensieveDesign(), world(), settings(tmp_path / "cut"), QUIET)
    owner = cut.learner if within == "improve" else cut
    honest = getattr(owner, within)

    def interrupted(*given):
        if cut.loop.standing.step < at:
            return honest(*given)
        if within == "improve":
            honest(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, within, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = Run(PensieveDesign(), world(), settings(tmp_path / "cut", resume=True), QUIET).train()
    for name, array in read_weights(whole).items():
        np.testing.assert_array_equal(array, read_weights(again)[name])
    curves = [[{**row, "elapsed_s": ""} for row in csv.DictReader((tmp_path / name / "curve.csv").open())] for name in ("whole", "cut")]
    assert curves[0] == curves[1]


def test_a_run_goes_on_with_its_own_settings_only(world, tmp_path):
    Run(PensieveDesign(), world(), settings(tmp_path), QUIET).train()
    more = settings(tmp_path, resume=True)
    longer = Run(PensieveDesign(), world(), replace(more, ppo=replace(more.ppo, iterations=5), checkpoint_every=9), QUIET)
    longer.train()
    assert longer.loop.standing.step == 5
    with pytest.raises(UserError, match=r"begun with seed 1\), wanted the checkpoint of a run with the same settings"):
        Run(PensieveDesign(), world(2), settings(tmp_path, resume=True, seed=2), QUIET)


@pytest.mark.parametrize("changed", ["ladders", "validation"])
def test_a_run_is_not_gone_on_with_on_other_data(world, tmp_path, monkeypatch, changed):
    """Scores of other validation sessions can't be compared, and a story would tell of data that taught only the second half."""
    Run(PensieveDesign(), world(), settings(tmp_path), QUIET).train()
    if changed == "ladders":
        monkeypatch.setattr("controllers.learning.pensieve.VARIED", 0.77)
        named = "world.other_ladders 0.3"
    else:
        monkeypatch.setattr("controllers.learning.validation.VALIDATION_VIDEOS", ("synthetic@0,1,2",))
        named = "world.validation [0-9a-f]{64}"
    with pytest.raises(UserError, match=f"can't be resumed .it was begun with {named}"):
        Run(PensieveDesign(), world(), settings(tmp_path, resume=True), QUIET)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"seed": -1}, "--seed is -1, wanted at least 0"),
        ({"threads": 0}, "--threads is 0, wanted at least 1"),
        ({"validate_every": 0}, "--validate-every is 0"),
        ({"ppo": PpoSettings(minibatch=0)}, "--ppo.minibatch is 0"),
        ({"resume": True}, "new: holds no run to go on with"),
        ({"out": Path("/proc/none")}, "/proc/none: can't be used"),
        ({"out": Path(__file__)}, "test_learning.py: can't be used"),
    ],
)
def test_settings_without_sense_are_one_sentence(world, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        Run(PensieveDesign(), world(), replace(settings(tmp_path / "new"), **more), QUIET)


def test_another_seed_learns_something_else(world, tmp_path):
    one, two = (
        read_weights(Run(PensieveDesign(), world(seed), settings(tmp_path / str(seed), seed=seed), QUIET).train()) for seed in (1, 2)
    )
    assert not np.array_equal(one["actor.0.weight"], two["actor.0.weight"])


def test_a_full_folder_is_refused_and_a_broken_checkpoint_named(world, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"is not empty, wanted a new folder \(or --resume\)"):
        Run(PensieveDesign(), world(), settings(tmp_path), QUIET)
    with pytest.raises(UserError, match=r"checkpoint.safetensors: can't be resumed"):
        Run(PensieveDesign(), world(), settings(tmp_path, resume=True), QUIET)


@pytest.mark.parametrize("seed", [1, 2])
def test_some_iterations_teach_it_to_beat_indifference(world, seed):
    """The running mean of the weights follows quickly here, for there are few iterations."""
    design, own = PensieveDesign(), world(seed)
    learner = Learner(design, PpoSettings(sessions=128, minibatch=256, epochs=4, keep=0.8), seed)
    before = play_out(design, learner.mean_actor, own.validation.playbacks()).mean()
    for number in range(40):
        own.prepare(learner, number)
        rng = np.random.default_rng(number)
        learner.improve(own.sessions(number, rng, 128), rng, number / 40)
    after = play_out(design, learner.mean_actor, own.validation.playbacks()).mean()
    assert after > before + 0.1


def test_the_command_refuses_what_it_does_not_know(capsys):
    assert train_command(["pensive"]) == 2
    assert "baseline 'pensive' is unknown: did you mean pensieve" in capsys.readouterr().err.replace("'pensieve'", "pensieve")
    assert train_command([]) == 0


def test_features_have_no_holes_at_a_session_s_start_and_end(videos):
    plays = Playbacks(Pool(some_traces(2)), Videos(videos[:1], 4), np.arange(2), np.zeros(2), np.zeros(2, int))
    plays.begin()
    while not plays.done:
        seen = features(seen_by(plays))
        assert seen.shape == (2, pensieve.FEATURES) and np.isfinite(seen).all() and np.abs(seen).max() < 20
        plays.step(np.array([0, 5]))


def test_the_story_tells_the_command_without_folders():
    assert (
        command_line("scripts/train", ["pensieve", "--out", "/somewhere", "--seed", "3", "--resume", "--out=x"])
        == "scripts/train pensieve --seed 3"
    )
