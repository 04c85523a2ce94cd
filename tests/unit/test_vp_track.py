"""TRACK: what is trained is what the policy computes, with and without pictures; saliency marks what stands out."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from controllers.api import VpSession
from controllers.learning.command import train_command
from controllers.learning.saved import write_tensors
from controllers.learning.vp_data import VpData
from controllers.learning.vp_track import Network, TrackRun, TrackSettings
from controllers.vp.track import Track, predicted_deg
from controllers.weights import read_story, read_weights
from testbed.errors import UserError
from testbed.sim.vp import measure, predict
from tests.vp_cases import viewing, windows
from traces.frames import Frames
from traces.saliency import GRID, saliency
from traces.windows import RULES, cut

QUIET = Console(quiet=True)
SMALL = TrackSettings(steps=24, batch=16, hidden=8, validations=3, averaged=0.8, rate=1e-2)


@pytest.fixture(scope="module")
def data():
    """Viewings by arithmetic, in place of the data set's."""
    train = cut([viewing(1, user) for user in (1, 2, 3)], RULES["every"], 2.0, 4.0)
    valid = cut([viewing(2, user) for user in (4, 5)], RULES["figures"], 2.0, 4.0)
    return VpData(train, valid, {"data": "made by arithmetic"})


@pytest.mark.parametrize("content", [False, True])
def test_the_network_is_what_the_policy_computes(tmp_path, content):
    torch.manual_seed(1)
    network = Network(8, content)
    torch.nn.init.normal_(network.out.weight, std=0.3)
    write_tensors(tmp_path / "x.safetensors", dict(network.state_dict()), "made", {"horizon": 20})
    known, maps = windows(), np.random.default_rng(1).uniform(0, 3, (len(windows()), 128)).astype(np.float32) if content else None
    with torch.no_grad():
        turns = network(
            torch.from_numpy(known.history_deg.astype(np.float32)), 20, None if maps is None else torch.from_numpy(maps)
        ).numpy()
    answer = predicted_deg(read_weights(tmp_path / "x.safetensors"), known.history_deg, 20, maps)
    np.testing.assert_allclose(answer, known.history_deg[:, -1:] + turns, atol=2e-2)
    assert np.ptp(turns) > 5
    if not content:
        np.testing.assert_allclose(predict(Track(str(tmp_path / "x.safetensors")), known), answer, atol=1e-4)  # float32


def test_a_run_is_reproducible_goes_on_after_a_kill_and_tells_its_story(data, tmp_path):
    whole = TrackRun(replace(SMALL, out=tmp_path / "whole"), data, QUIET).train()
    run = TrackRun(replace(SMALL, out=tmp_path / "cut"), data, QUIET)
    for _ in range(11):
        run.loop.advance()
    resumed = TrackRun(replace(SMALL, out=tmp_path / "cut", resume=True), data, QUIET).train()
    first, second = read_weights(whole), read_weights(resumed)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    rows, story = list(csv.DictReader((tmp_path / "whole" / "curve.csv").open())), read_story(whole)
    assert story["validation_mae_deg"] == min(float(row["valid_mae_deg"]) for row in rows)
    assert measure(Track(str(whole)), data.valid).mae_deg.mean() == pytest.approx(story["validation_mae_deg"], abs=1e-2)
    assert float(rows[-1]["training_mae_deg"]) < float(rows[0]["training_mae_deg"]), "it learns"
    with pytest.raises(UserError, match="wanted at most the 20 it was fitted to"):
        Track(str(whole)).reset(VpSession("x", 21), 0)


def test_with_frames_the_picture_changes_the_answer(data, tmp_path):
    for video in (1, 2):
        (tmp_path / "frames" / f"video{video}").mkdir(parents=True)
        for time_s in (0, 9):
            picture = np.random.default_rng(video + time_s).integers(0, 255, (32, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "frames" / f"video{video}" / f"{time_s}.png")
    path = TrackRun(replace(SMALL, frames=tmp_path / "frames", out=tmp_path / "run"), data, QUIET).train()
    policy, known = Track(str(path)), windows()
    with_frames, without = predict(policy, known, frames=Frames(tmp_path / "frames")), predict(policy, known)
    assert np.abs(with_frames - without).max() > 1e-3


def test_what_stands_out_is_salient():
    frame = np.random.default_rng(1).integers(80, 100, (64, 128, 3), dtype=np.uint8)
    frame[40:44, 100:104] = 255
    found = saliency(frame)
    assert found.shape == GRID and found.mean() == pytest.approx(1, abs=1e-4)
    assert np.unravel_index(found.argmax(), GRID) == (5, 12)
    assert (saliency(None) == 1).all() and (saliency(np.zeros((8, 8, 3), dtype=np.uint8)) == 1).all()
    assert saliency(np.random.default_rng(1).integers(0, 255, (100, 333, 3), dtype=np.uint8)).shape == GRID


def test_other_weights_and_mistakes_are_told(tmp_path, capsys):
    write_tensors(tmp_path / "other.safetensors", {"layers.0.weight": torch.zeros(2, 2)}, "made", {})
    with pytest.raises(UserError, match="wanted a network from 7 inputs"):
        Track(str(tmp_path / "other.safetensors"))
    assert train_command(["vp_track", "--steps", "0", "--out", str(tmp_path / "x")]) == 2
    assert "--steps is 0, wanted at least 1" in capsys.readouterr().err
