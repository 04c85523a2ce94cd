"""The language model for viewport prediction: what it is told, what it answers, how it is trained, and how frames reach it."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from controllers.api import VpSession
from controllers.learning.vp_data import VpData
from controllers.loader import load
from controllers.vp.linear_l1 import LinearL1
from controllers.vp.mlp import Mlp
from controllers.vp.netllm import NetLLM
from netllm.adapter import load_adapter, new_model, read_settings, save_adapter
from netllm.command import ablate_command, adapt_command
from netllm.context import Context
from netllm.images import Preparation, VitReader, image_reader, preparation
from netllm.lora import LoraSettings
from netllm.tasks.vp import IMAGE, MOTION, VpTask, extended, features, predict_turns_deg
from netllm.training import OptimiserSettings
from netllm.vp.ablate import CHANGES, VpAblateSettings, ablate
from netllm.vp.adapt import VpAdaptRun, VpAdaptSettings, adapt, turns_after
from testbed.errors import UserError
from testbed.sim.vp import decision_times_s, measure, predict
from testbed.vp_metrics import wrapped_deg
from tests.unit.tiny_models import save_tiny
from tests.vp_cases import observation, viewing, windows
from traces.frames import Frames
from traces.viewports import FRONT_DEG
from traces.windows import RULES, cut

torch.set_num_threads(1)
QUIET = Console(quiet=True)
TASK = VpTask(hidden=16, tokens=4, base="last")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("llm")))


@pytest.fixture(scope="module")
def data():
    """Viewings by arithmetic, in place of the data set's."""
    train = cut([viewing(1, user) for user in (1, 2, 3)], RULES["every"], TASK.longest / 5, 4.0)
    valid = cut([viewing(2, user) for user in (4, 5)], RULES["figures"], 2.0, 4.0)
    return VpData(train, valid, {"data": "made by arithmetic"})


@pytest.fixture
def settings(llm, tmp_path):
    return VpAdaptSettings(
        steps=8,
        out=tmp_path / "out",
        llm=llm,
        dtype="float32",
        threads=1,
        validations=4,
        averaged=0.5,
        task=TASK,
        lora=LoraSettings(rank=2),
        optimiser=OptimiserSettings(batch=8, warmup_steps=2, lr_modules=1e-2),
    )


@pytest.fixture(scope="module")
def adapter(llm, tmp_path_factory):
    """A model whose LoRA and head are not at their zero start, on disk."""
    torch.manual_seed(1)
    model = new_model(llm, "float32", TASK, LoraSettings(rank=2), "lively")
    for parameter in (*model.switch.parameters(), model.head.linear.weight):
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model.eval(), folder, {"trained": {"seed": 1}})
    model.switch.remove()
    return folder


# What it is told


def test_a_token_tells_the_samples_up_to_its_newest_and_the_last_token_all_that_is_known():
    history_deg = np.cumsum(np.random.default_rng(1).normal(0, 3, (2, 12, 3)), axis=1)
    told = features(TASK, history_deg)
    assert told[MOTION].shape == (2, 3, 7, 9)  # newest samples 2, 7 and 12
    np.testing.assert_allclose(told[MOTION][:, 2, :2, 0] * 20, history_deg[:, 2, :2] - history_deg[:, 11, :2], atol=1e-4)
    np.testing.assert_allclose(told[MOTION][:, 1, 3:5, -1] * 5, history_deg[:, 6, :2] - history_deg[:, 5, :2], atol=1e-4)
    assert told[MOTION][0, :, 6].sum(axis=1).tolist() == [1, 6, 9]
    np.testing.assert_array_equal(features(TASK, history_deg[:, 2:])[MOTION][:, -1], told[MOTION][:, -1])


@given(turns=st.integers(-2, 2), length=st.integers(1, 40))
def test_it_sees_no_whole_turns_and_nothing_older_than_the_longest_history(turns, length):
    history_deg = np.random.default_rng(length).uniform(-80, 80, (1, length, 3))
    plain = features(TASK, history_deg)
    for other in (history_deg + np.array([0, 0, 360.0 * turns]), history_deg[:, -TASK.longest :]):
        for name, values in features(TASK, other).items():
            np.testing.assert_allclose(values, plain[name], atol=1e-4)
    assert all(np.isfinite(values).all() for values in plain.values())


def test_without_a_front_nothing_tells_the_yaw():
    history_deg = np.random.default_rng(1).uniform(-80, 80, (1, 10, 3))
    turned = history_deg + np.array([0, 0, 77.0])
    with_front, without = (
        features(TASK, turned, front)["heading"] - features(TASK, history_deg, front)["heading"] for front in (True, False)
    )
    assert np.abs(with_front).max() > 0.1 and np.abs(without).max() == 0


def test_the_truth_after_a_token_is_what_came_after_its_newest_sample():
    known = windows(history_s=3.0)
    angles_deg = np.concatenate([known.history_deg, known.future_deg], axis=1)
    turns = turns_after(replace(TASK, horizon=10), angles_deg, 15)
    assert turns.shape == (len(known), 3, 10, 3)
    np.testing.assert_allclose(turns[:, 0, 3], wrapped_deg(angles_deg[:, 5 + 3] - angles_deg[:, 4]), atol=1e-4)
    np.testing.assert_allclose(turns[:, 2, 9], wrapped_deg(angles_deg[:, 15 + 9] - angles_deg[:, 14]), atol=1e-4)


def test_a_token_knows_nothing_of_those_after_it(adapter, llm):
    model = load_adapter(adapter, llm, "float32")
    history_deg = np.random.default_rng(2).uniform(-80, 80, (1, 20, 3))
    changed = history_deg.copy()
    changed[:, 15:] += 30
    with torch.inference_mode():
        first, second = (model({k: torch.from_numpy(v) for k, v in features(TASK, each).items()}) for each in (history_deg, changed))
    torch.testing.assert_close(first[:, :3], second[:, :3], atol=1e-5, rtol=0)
    assert (first[:, 3] - second[:, 3]).abs().max() > 1e-3


# What it answers


def test_an_untrained_model_holds_the_last_sample(llm, tmp_path):
    model = new_model(llm, "float32", TASK, LoraSettings(rank=2), "untrained")
    save_adapter(model, tmp_path, {})
    known = windows(horizon_s=6.0)
    np.testing.assert_allclose(
        predict(NetLLM(str(tmp_path), dtype="float32"), known), np.repeat(known.history_deg[:, -1:], 30, axis=1), atol=1e-4
    )
    model.switch.remove()


@pytest.mark.parametrize(("base", "alone", "horizon_s"), [("linear_l1", LinearL1, 4.0), ("mlp", Mlp, 4.0), ("mlp", Mlp, 6.0)])
def test_an_untrained_model_on_a_base_is_that_base(llm, tmp_path, base, alone, horizon_s):
    """A small predictor as its policy has it, beyond the horizon learnt, too; where no front is known, the head stays."""
    model = new_model(llm, "float32", replace(TASK, base=base), LoraSettings(rank=2), "based")
    save_adapter(model, tmp_path, {})
    model.switch.remove()
    policy, known = NetLLM(str(tmp_path), dtype="float32"), windows(horizon_s=horizon_s)
    np.testing.assert_allclose(predict(policy, known), predict(alone(), known), atol=1e-3)
    seen = observation(known.history_deg[0])
    policy.reset(seen.session, 0)
    np.testing.assert_allclose(policy.decide(seen), np.repeat(known.history_deg[:1, -1], policy.session.horizon, axis=0), atol=1e-4)


def test_beyond_what_was_learnt_the_head_stays(adapter):
    assert extended(np.arange(6).reshape(1, 2, 3), 4)[0, :, 0].tolist() == [0, 3, 3, 3]
    short, long = (predict(NetLLM(str(adapter), dtype="float32"), windows(horizon_s=s)) for s in (4.0, 6.0))
    np.testing.assert_allclose(long[:, :20], short, atol=1e-4)
    np.testing.assert_allclose(long[:, 20:], np.repeat(short[:, -1:], 10, axis=1), atol=1e-4)


def test_the_front_of_other_videos_is_not_made_up(adapter):
    policy, seen = NetLLM(str(adapter), dtype="float32"), observation([[3.0, -2.0, 60.0]] * 10)
    answers = []
    for front_deg in (FRONT_DEG, None, 0.0):
        policy.reset(VpSession("x", 20, front_deg=front_deg), 0)
        answers.append(policy.decide(replace(seen, session=policy.session)))
    assert np.abs(answers[0] - answers[1]).max() > 0.1
    np.testing.assert_array_equal(answers[1], answers[2])


def test_histories_of_all_lengths_are_answered_together_as_one_by_one(adapter):
    policy = NetLLM(str(adapter), dtype="float32")
    seen = [observation(np.random.default_rng(i).uniform(-80, 80, (length, 3))) for i, length in enumerate((1, 10, 3, 10, 60, 25))]
    policy.reset(seen[0].session, 0)
    np.testing.assert_allclose(policy.decide_all(seen), [policy.decide(each) for each in seen], atol=1e-3)


def test_decisions_are_timed_one_by_one(adapter):
    times = decision_times_s(NetLLM(str(adapter), dtype="float32"), windows(), 7)
    assert len(times) == 7 and min(times) > 0


def test_an_adapter_of_another_task_and_another_rate_are_refused(adapter):
    from netllm.adapter import SHIPPED

    with pytest.raises(UserError, match="is for task abr, wanted vp"):
        NetLLM(str(SHIPPED / "abr"))
    with pytest.raises(UserError, match="10 samples a second, wanted the 5 it was trained for"):
        NetLLM(str(adapter)).reset(VpSession("x", 20, rate_hz=10.0), 0)


# How it is trained


def test_a_run_leaves_a_loadable_adapter_with_a_card_and_a_curve(settings, data):
    folder = adapt(settings, QUIET, data)
    facts, card = read_settings(folder), (folder / "README.md").read_text()
    rows = list(csv.DictReader((settings.out / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert facts["validation"]["mae_deg"] == pytest.approx(min(float(row["valid_mae_deg"]) for row in rows), abs=1e-4)
    assert f"{facts['validation']['mae_deg']:.3f}" in card and "made by arithmetic" in card
    assert load_adapter(folder, settings.llm, "float32").task == TASK
    found = measure(NetLLM(str(folder), dtype="float32"), data.valid).mae_deg.mean()
    assert found == pytest.approx(facts["validation"]["mae_deg"], abs=0.02), "what validated is what ships"


def test_it_learns(settings, data):
    """The first samples of a head that swings can be foretold."""
    longer = replace(settings, steps=60, averaged=0.8, optimiser=replace(settings.optimiser, batch=32))
    rows = list(csv.DictReader((adapt(longer, QUIET, data).parent / "curve.csv").open()))
    assert float(rows[-1]["training_mae_deg"]) < 0.9 * float(rows[0]["training_mae_deg"])


def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_ran_through(settings, data, tmp_path):
    whole = adapt(settings, QUIET, data)
    cut_off = replace(settings, out=tmp_path / "cut")
    run = VpAdaptRun(cut_off, QUIET, data)
    for _ in range(5):  # a checkpoint after four, and one step more
        run.loop.advance()
    run.model.switch.remove()
    resumed = adapt(replace(cut_off, resume=True), QUIET, data)
    for name in ("adapter_model.safetensors", "modules.safetensors"):
        one, other = load_file(whole / name), load_file(resumed / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (resumed.parent / "curve.csv").read_text() == (whole.parent / "curve.csv").read_text()
    with pytest.raises(UserError, match="can't be resumed"):
        adapt(replace(cut_off, resume=True, seed=2), QUIET, data)


def test_ctrl_c_in_the_middle_of_a_step_changes_nothing_and_a_larger_budget_goes_on(settings, data, tmp_path, monkeypatch):
    whole, cut = adapt(settings, QUIET, data), replace(settings, out=tmp_path / "cut")
    honest, calls = VpAdaptRun.learn, []

    def interrupted(run, *given):
        calls.append(honest(run, *given))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(VpAdaptRun, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(cut, QUIET, data)
    monkeypatch.undo()
    resumed = adapt(replace(cut, resume=True), QUIET, data)
    for name in ("adapter_model.safetensors", "modules.safetensors"):
        one, other = load_file(whole / name), load_file(resumed / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (resumed.parent / "curve.csv").read_text() == (whole.parent / "curve.csv").read_text()
    adapt(replace(cut, resume=True, steps=12, validations=4), QUIET, data)
    assert [row["step"] for row in csv.DictReader((cut.out / "curve.csv").open())] == ["2", "4", "6", "8", "9", "12"]


def test_half_of_what_is_learnt_is_mirrored_and_some_of_it_has_no_front(settings, data):
    run = VpAdaptRun(replace(settings, no_front=0.5, optimiser=replace(settings.optimiser, batch=64)), QUIET, data)
    told, turns_deg = run.batch(1)
    again, _ = run.batch(1)
    run.model.switch.remove()
    np.testing.assert_array_equal(told[MOTION], again[MOTION])
    assert turns_deg.shape == (64, TASK.tokens, TASK.horizon, 3)
    assert 8 < told["heading"][:, 0, -1].sum() < 56
    newest_deg, told_deg = data.train.history_deg[:, -1, :2], told["heading"][:, -1, :2] * 20
    for half, sign in ((slice(0, 32), -1), (slice(32, 64), 1)):  # a mirror changes the sign of pitch and keeps roll
        off_deg = np.abs(told_deg[half, None] * [1, sign] - newest_deg).max(axis=2).min(axis=1)
        assert off_deg.max() < 1e-4


def test_each_change_changes_one_thing(settings):
    settings = replace(settings, task=VpTask())
    changed = {name: {k for k, v in vars(change.make(settings)).items() if v != vars(settings)[k]} for name, change in CHANGES.items()}
    assert changed.pop("reference") == set() and changed.pop("random-no-lora") == {"llm", "lora"}
    assert all(len(each) == 1 for each in changed.values()), changed


def test_ablations_are_kept_and_the_next_command_is_told(settings, data, tmp_path, monkeypatch):
    monkeypatch.setattr("netllm.vp.adapt.load_vp_data", lambda *lengths: data)
    said = io.StringIO()
    asked = VpAblateSettings(
        names=("reference", "no-lora"), seeds=(1,), steps=2, out=tmp_path / "ablate", adapt=replace(settings, validations=1)
    )
    folders = ablate(asked, Console(file=said, width=500))
    assert [folder.parent.name for folder in folders] == ["reference-1", "no-lora-1"]
    assert "scripts/evaluate vp --reference reference --adapters reference=" in said.getvalue()
    before = [(folder / "modules.safetensors").stat().st_mtime_ns for folder in folders]
    assert ablate(asked, QUIET) == folders
    assert [(folder / "modules.safetensors").stat().st_mtime_ns for folder in folders] == before
    assert not (folders[1] / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes is 0, wanted more than 0"),
        (["--averaged", "1"], "--averaged is 1, wanted less than 1"),
        (["--task.samples", "4"], "--task.samples is 4, wanted at least 5"),
        (["--vit", "x"], "go together, wanted all of them or none"),
    ],
)
def test_mistakes_on_the_command_line(arguments, said, capsys, tmp_path):
    assert adapt_command(["vp", "--out", str(tmp_path / "new"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert ablate_command(["vp", "--names", "no-lore"]) == 2
    assert "change 'no-lore' is unknown" in capsys.readouterr().err


# Frames


@pytest.fixture
def vit(tmp_path):
    """A vision transformer of 8 features, never trained."""
    torch.manual_seed(2)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
    ViTModel(ViTConfig(**size), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


@pytest.fixture
def frames(tmp_path):
    """Two frames of video 1 and one of video 2: a picture, and an array."""
    rng, folder = np.random.default_rng(1), tmp_path / "frames"
    for video in (1, 2):
        (folder / f"video{video}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (16, 32, 3), dtype=np.uint8)).save(folder / f"video{video}" / "0.png")
    np.save(folder / "video1" / "7.5.npy", rng.integers(0, 255, (16, 32, 3), dtype=np.uint8))
    return folder


def test_a_frame_is_on_screen_until_the_next_one(frames):
    found = Frames(frames)
    first, second = found.at(1, 7.4), found.at(1, 7.5)
    assert first.shape == second.shape == (16, 32, 3) and (first != second).any()
    np.testing.assert_array_equal(found.at(1, 99), second)
    assert found.at(1, -1) is None and found.at(3, 5) is None and Frames(None).at(1, 5) is None
    (frames / "video2" / "late.png").write_bytes(b"")
    with pytest.raises(UserError, match="its name is no time"):
        Frames(frames).at(2, 1)
    (frames / "video1" / "9.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="can't be read"):
        Frames(frames).at(1, 10)


def test_a_vit_turns_frames_into_features(vit, frames):
    reader, frame = VitReader(Path(vit)), Frames(frames).at(1, 0)
    one, none, again = reader([frame, None, frame])
    assert reader.width == 8 and np.isfinite(one).all() and np.isnan(none).all()
    np.testing.assert_array_equal(one, again)
    assert np.abs(reader([Frames(frames).at(2, 0)])[0] - one).max() > 1e-4
    with pytest.raises(UserError, match="makes 8 features, wanted the 768"):
        image_reader(vit, 768)
    with pytest.raises(UserError, match="trained without frames"):
        image_reader(vit, 0)
    with pytest.raises(UserError, match="there is no config.json"):
        image_reader("nowhere", 8)


def test_frames_that_differ_anywhere_or_in_shape_have_features_of_their_own(vit):
    reader = VitReader(Path(vit))
    plain = np.random.default_rng(3).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    other = plain.copy()
    other[1::2] = 0
    for frame in (other, plain.reshape(64, 256, 3)):
        first, second = reader([plain, frame])
        assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(
    ("told", "sides"),
    [
        ({"size": 32}, (32, 32)),
        ({"size": {"height": 32, "width": 16}}, (32, 16)),
        ({"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, (32, 32)),
        ({"size": {"shortest_edge": 32, "longest_edge": None}, "do_center_crop": False, "crop_size": {"height": 8, "width": 8}}, (32, 32)),
    ],
)
def test_pictures_are_prepared_as_the_vit_says(vit, told, sides):
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    (Path(vit) / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": deviation, "resample": 3} | told))
    assert preparation(Path(vit), 99) == Preparation(sides, mean, deviation)


def test_a_vit_is_fed_what_its_preprocessor_says(vit):
    frame = np.full((32, 32, 3), (51, 102, 204), dtype=np.uint8)
    halves, model = VitReader(Path(vit))([frame])[0], ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    (Path(vit) / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.4, 1.0], "size": 32})
    )
    told = VitReader(Path(vit))([frame])[0]
    for found, colour in ((halves, (-0.6, -0.2, 0.6)), (told, (0.5, 0.5, 0.5))):
        pixels = torch.tensor(colour)[None, :, None, None].expand(1, 3, 32, 32)
        with torch.no_grad():
            np.testing.assert_allclose(found, model(pixel_values=pixels).last_hidden_state[0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no json", "JSON is malformed"),
        ('{"size": 32}', "missing required field `image_mean`"),
        ('{"image_mean": [0, 0, 0], "image_std": [1, 0, 1], "size": 32}', "wanted numbers above 0"),
        ('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": {"longest_edge": 32}}', "wanted height and width, or shortest_edge"),
    ],
)
def test_a_preprocessor_without_sense_is_refused(vit, text, sentence):
    (Path(vit) / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: .*{sentence}"):
        VitReader(Path(vit))


def test_frames_are_told_with_the_newest_token_and_change_the_answer(settings, data, vit, frames):
    task = replace(TASK, image_features=8)
    images = np.array([[1.0] * 8, [np.nan] * 8], dtype=np.float32)
    told = features(task, np.zeros((2, 10, 3)), images=images)[IMAGE]
    assert told[0, -1].tolist() == [1.0] * 9 and not told[0, 0].any() and not told[1].any()
    folder = adapt(replace(settings, task=task, frames=frames, vit=vit), QUIET, data)
    policy, known = NetLLM(str(folder), dtype="float32", vit=vit), windows()
    with_frames, without = predict(policy, known, frames=Frames(frames)), predict(policy, known)
    assert np.abs(with_frames - without).max() > 1e-4
    np.testing.assert_array_equal(predict(NetLLM(str(folder), dtype="float32"), known), without)


@pytest.mark.parametrize("task", ["abr", "cjs", "vp"])
def test_what_ships_is_named_when_it_is_of_another_task(task, adapter, monkeypatch, tmp_path):
    from netllm.adapter import SHIPPED

    (tmp_path / task).symlink_to(SHIPPED / "abr" if task == "vp" else adapter)
    monkeypatch.setattr("netllm.adapter.SHIPPED", tmp_path)
    with pytest.raises(UserError, match=rf"^adapter {tmp_path}/{task} is for task (abr|vp), wanted {task}$"):
        load("netllm", task)()


def test_a_frame_that_can_not_be_read_is_told_each_time(settings, data, vit, frames):
    """Not that the backbone has an adapter of this name already."""
    (frames / "video2" / "0.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(UserError, match="0.png: can't be read"):
            adapt(replace(settings, task=replace(TASK, image_features=8), frames=frames, vit=vit), QUIET, data)


def test_one_pass_answers_the_whole_horizon(adapter, llm, monkeypatch):
    """However many samples are predicted, only the tokens of the history are read, at once."""
    model, read = load_adapter(adapter, llm, "float32"), []
    extend = Context.extend
    monkeypatch.setattr(Context, "extend", lambda context, tokens: read.append(tuple(tokens.shape[:2])) or extend(context, tokens))
    told = features(TASK, np.zeros((3, 10, 3)))
    assert predict_turns_deg(model, told).shape == (3, 20, 3)
    assert read == [(3, told[MOTION].shape[1])]
