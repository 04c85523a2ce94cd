"""Fitted predictors of viewports: what is fitted is what they compute; fits are reproducible, resumable, and never see test data."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from scipy.optimize import linprog

from controllers.api import VpSession
from controllers.headmoves import recent_deg
from controllers.learning import vp_data, vp_linear, vp_mlp
from controllers.learning.command import train_command
from controllers.learning.saved import write_tensors
from controllers.learning.vp_data import VpData, load_vp_data
from controllers.learning.vp_linear import LinearSettings, reweighted
from controllers.learning.vp_mlp import MlpRun, MlpSettings, Network, mirrored
from controllers.vp.linear_l1 import LinearL1
from controllers.vp.mlp import Mlp, features
from controllers.weights import read_story, read_weights
from testbed.errors import UserError
from testbed.sim.vp import measure, predict
from tests.vp_cases import observation, viewing, windows
from traces.viewports import gaze, tilt_deg
from traces.windows import RULES, cut

QUIET = Console(quiet=True)
SMALL = MlpSettings(epochs=30, batch=32, hidden=8, validations=5, averaged=0.9, rate=1e-2)


@pytest.fixture(scope="module")
def data():
    """Viewings by arithmetic, in place of the data set's."""
    train = cut([viewing(1, user) for user in (1, 2, 3)], RULES["every"], 2.0, 6.0)
    valid = cut([viewing(2, user) for user in (4, 5)], RULES["figures"], 2.0, 4.0)
    return VpData(train, valid, {"data": "made by arithmetic"})


@given(arrays(float, (3,), elements=st.floats(-89, 89)))
def test_a_mirrored_head_looks_to_the_other_side_as_high_and_leans_the_other_way(angles_deg):
    np.testing.assert_allclose(gaze(mirrored(angles_deg)), gaze(angles_deg) * [1, 1, -1], atol=1e-9)
    assert tilt_deg(mirrored(angles_deg)) == pytest.approx(-tilt_deg(angles_deg), abs=1e-6)
    np.testing.assert_allclose(gaze(mirrored(mirrored(angles_deg))), gaze(angles_deg), atol=1e-9)


def test_the_network_is_what_the_policy_computes(tmp_path):
    torch.manual_seed(1)
    network = Network(16, 30)
    torch.nn.init.normal_(network.layers[-1].weight)  # a fresh one answers no turn
    write_tensors(tmp_path / "x.safetensors", dict(network.state_dict()), "made", {})
    known = windows()
    answer = predict(Mlp(str(tmp_path / "x.safetensors")), known)
    with torch.no_grad():
        turns = network(torch.from_numpy(features(known.history_deg))).numpy().reshape(len(known), 30, 3)[:, :20]
    np.testing.assert_allclose(answer, known.history_deg[:, -1:] + turns * [20, 20, 40], rtol=1e-5, atol=1e-3)
    assert np.ptp(turns) > 1


def test_an_untrained_network_is_static(tmp_path):
    write_tensors(tmp_path / "x.safetensors", dict(Network(8, 20).state_dict()), "made", {})
    known = windows()
    np.testing.assert_array_equal(predict(Mlp(str(tmp_path / "x.safetensors")), known), np.repeat(known.history_deg[:, -1:], 20, axis=1))


@given(turns=st.integers(-2, 2))
def test_the_network_sees_no_whole_turns(turns):
    known_deg = windows().history_deg
    np.testing.assert_allclose(features(known_deg + np.array([0, 0, 360 * turns])), features(known_deg), atol=1e-4)


def test_a_run_is_reproducible_and_tells_its_story(data, tmp_path):
    weights = [MlpRun(replace(SMALL, out=tmp_path / name), data, QUIET).train() for name in ("a", "b")]
    first, second = map(read_weights, weights)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = read_weights(MlpRun(replace(SMALL, seed=2, out=tmp_path / "c"), data, QUIET).train())
    assert not np.array_equal(first["layers.0.weight"], other["layers.0.weight"])
    story = read_story(weights[0])
    rows = list(csv.DictReader((tmp_path / "a" / "curve.csv").open()))
    assert len(rows) == 5
    assert (story["policy"], story["seed"], story["data"]) == ("mlp", 1, "made by arithmetic")
    assert story["validation_mae_deg"] == min(float(row["valid_mae_deg"]) for row in rows)
    assert measure(Mlp(str(weights[0])), data.valid).mae_deg.mean() == pytest.approx(story["validation_mae_deg"], abs=1e-3)
    assert float(rows[-1]["training_mae_deg"]) < 0.9 * float(rows[0]["training_mae_deg"]), "it learns"


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_killed_goes_on_as_if_it_was_not(data, tmp_path, after):
    whole = read_weights(MlpRun(replace(SMALL, out=tmp_path / "whole"), data, QUIET).train())
    run = MlpRun(replace(SMALL, out=tmp_path / "cut"), data, QUIET)
    while run.loop.standing.step * SMALL.validations < after * run.steps:
        run.loop.advance()
    run.loop.advance()  # done, but not saved
    with (tmp_path / "cut" / "curve.csv").open("a") as curve:
        curve.write("99999,1,1\n")  # a validation after the checkpoint
    resumed = read_weights(MlpRun(replace(SMALL, out=tmp_path / "cut", resume=True), data, QUIET).train())
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    assert (tmp_path / "cut" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()


def test_ctrl_c_in_the_middle_of_a_step_leaves_a_checkpoint_of_the_one_before(data, tmp_path, monkeypatch):
    whole = read_weights(MlpRun(replace(SMALL, out=tmp_path / "whole"), data, QUIET).train())
    run = MlpRun(replace(SMALL, out=tmp_path / "cut"), data, QUIET)
    honest, taken = run.optimiser.step, []

    def cut():
        taken.append(honest())
        if len(taken) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.optimiser, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = MlpRun(replace(SMALL, out=tmp_path / "cut", resume=True), data, QUIET)
    assert again.loop.standing.step == 7
    resumed = read_weights(again.train())
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    assert (tmp_path / "cut" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()


def test_a_larger_budget_goes_on(data, tmp_path):
    run = MlpRun(replace(SMALL, out=tmp_path), data, QUIET)
    run.train()
    longer = MlpRun(replace(SMALL, epochs=40, out=tmp_path, resume=True), data, QUIET)
    assert longer.loop.standing.step == run.steps < longer.steps
    longer.train()
    assert longer.loop.standing.step == longer.steps


def test_a_run_with_other_settings_or_data_is_not_gone_on_with(data, tmp_path):
    MlpRun(replace(SMALL, out=tmp_path / "run"), data, QUIET).train()
    with pytest.raises(UserError, match=r"can't be resumed \(it was begun with hidden 8\)"):
        MlpRun(replace(SMALL, hidden=9, out=tmp_path / "run", resume=True), data, QUIET)
    other = VpData(data.valid, data.valid, {})
    with pytest.raises(UserError, match=r"can't be resumed \(it was begun with data"):
        MlpRun(replace(SMALL, out=tmp_path / "run", resume=True), other, QUIET)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="checkpoint.safetensors: can't be resumed"):
        MlpRun(replace(SMALL, out=tmp_path / "run", resume=True), data, QUIET)


def test_reweighting_reaches_the_least_absolute_deviations():
    """Against linear programming: minimise sum of u where -u <= y - Xb <= u."""
    rng = np.random.default_rng(3)
    inputs = np.column_stack([rng.normal(size=(60, 2)), np.ones(60)])
    target = inputs @ [3.0, -2.0, 5.0] + rng.standard_t(2, 60) * 4
    ones = np.eye(60)
    best = linprog([0] * 3 + [1] * 60, np.block([[inputs, -ones], [-inputs, -ones]]), np.r_[target, -target], bounds=[(None, None)] * 63)
    fit = np.linalg.lstsq(inputs, target[:, None], rcond=None)[0]
    start = np.abs(target - inputs @ fit[:, 0]).sum()
    for _ in range(60):
        fit = reweighted(inputs, target[:, None], fit)
    assert np.abs(target - inputs @ fit[:, 0]).sum() == pytest.approx(best.fun, rel=2e-3)
    assert start > best.fun * 1.005, "squares do not give it"


def test_the_linear_fit_is_what_the_policy_computes(data, tmp_path):
    path = vp_linear.train(LinearSettings(out=tmp_path / "run", iterations=15), data, QUIET)
    story, rows = read_story(path), list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert story["iteration"] == len(rows) - 1 <= 15
    policy = LinearL1(str(path))
    assert measure(policy, data.train).mae_deg.mean() == pytest.approx(story["training_mae_deg"], abs=2e-3)
    assert measure(policy, data.valid).mae_deg.mean() == pytest.approx(story["validation_mae_deg"], abs=2e-3)
    trained = [float(row["training_mae_deg"]) for row in rows]
    assert trained == sorted(trained, reverse=True)
    assert trained[-1] < trained[0]


def test_a_short_history_is_a_head_that_stood_still():
    known = [observation([[1, 2, 3], [4, 5, 6]]), observation(np.arange(36).reshape(12, 3))]
    found = recent_deg(known, 4)
    assert found[0].tolist() == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert found[1].tolist() == np.arange(24, 36).reshape(4, 3).tolist()


@pytest.mark.parametrize("policy", [LinearL1, Mlp])
def test_a_session_that_it_was_not_fitted_to_is_refused(policy):
    made = policy()
    with pytest.raises(UserError, match="the session has 10 samples a second, wanted the 5 it was fitted to"):
        made.reset(VpSession("x", 20, rate_hz=10.0), 0)
    with pytest.raises(UserError, match="the session's horizon is 31 samples, wanted at most the 30 it was fitted to"):
        made.reset(VpSession("x", 31), 0)


@pytest.mark.parametrize("policy", [LinearL1, Mlp])
def test_other_weights_are_refused_in_one_sentence(policy, tmp_path):
    (tmp_path / "bad").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"bad: can't be read .*, wanted weights made by scripts/train"):
        policy(weights=str(tmp_path / "bad"))
    write_tensors(tmp_path / "other", {"coefficients": torch.zeros(3, 2), "layers.0.weight": torch.zeros(2, 2)}, "made", {})
    with pytest.raises(UserError, match=r"other: .* shapes? .*, wanted"):
        policy(weights=str(tmp_path / "other"))


@pytest.mark.parametrize(("split", "video", "user"), [("train", 4, 50), ("train", 1, 83), ("train", 3, 50), ("valid", 3, 83)])
def test_what_leaks_is_not_trained_on(monkeypatch, split, video, user):
    """A test video, a test viewer, a validation video in training; a test viewer in validation."""
    clean = {"train": [viewing(1, 50), viewing(5, 54)], "valid": [viewing(3, 9)], "test": [viewing(4, 83)]}
    for module in (vp_data, vp_data.refuse_leaks.__globals__):
        patch = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(patch, "load_split", lambda name: tuple(clean[name]))
    assert load_vp_data().facts["train"]["windows"] == 2 * 60
    clean[split].append(viewing(video, user))
    with pytest.raises(UserError, match=rf"the viewing of video {video} by viewer {user} is not for training"):
        load_vp_data()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vp_mpl"], "baseline 'vp_mpl' is unknown: did you mean vp_mlp"),
        (["vp_mlp", "--epochs", "0"], "--epochs is 0, wanted at least 1"),
        (["vp_mlp", "--averaged", "1"], "--averaged is 1, wanted less than 1"),
        (["vp_mlp", "--resume", "--out", "nowhere"], "nowhere: holds no run to go on with"),
        (["vp_linear_l1", "--iterations", "0"], "--iterations is 0, wanted at least 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_command(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vp_mlp", "interrupted; --resume goes on from the last checkpoint\n"),
        ("vp_linear_l1", "interrupted; vp_linear_l1 keeps no checkpoints: it begins anew, in an empty folder\n"),
    ],
)
def test_whoever_interrupts_it_is_told_how_to_go_on(name, said, capsys, tmp_path, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    for module in (vp_mlp, vp_linear):
        monkeypatch.setattr(module, "load_vp_data", interrupted)
    assert train_command([name, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == said


def test_a_folder_in_use_is_told_with_the_options_that_there_are(capsys, tmp_path):
    (tmp_path / "curve.csv").touch()
    for name, more in (("vp_mlp", " (or --resume)"), ("vp_linear_l1", "")):
        assert train_command([name, "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"{tmp_path}: is not empty, wanted a new folder{more}\n"


def test_the_command_trains_and_prints_where_the_weights_are(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in (vp_mlp, vp_linear):
        monkeypatch.setattr(module, "load_vp_data", lambda: data)
    assert train_command(["vp_mlp", "--epochs", "1", "--batch", "32", "--hidden", "4", "--validations", "2", "--seed", "3"]) == 0
    assert train_command(["vp_linear_l1", "--iterations", "2"]) == 0
    assert capsys.readouterr().out.split() == ["results/train-vp_mlp-3/mlp.safetensors", "results/train-vp_linear_l1/linear_l1.safetensors"]
