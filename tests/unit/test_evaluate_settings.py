"""The settings of an evaluation: what is played in each, and that it is the same on every machine."""

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from netllm.abr.suite import play as playing
from netllm.abr.suite.contenders import CHECKOUT, MODEL, SHIPPED, SIMULATION, contenders
from netllm.abr.suite.settings import DEFAULT, SETTINGS, STARTS, chosen, doubling_video, prepare
from netllm.tasks.abr import student_of
from players.media import load_manifest
from testbed.errors import UserError
from traces.leakage import find_leaks
from traces.store import resolve
from traces.synthetic import synthetic_trace
from traces.synthetic_test import FLOOR_KBPS, wide_traces


def ready(name, quick=False):
    """The setting, or a skip when its traces or video are not on this machine."""
    setting = SETTINGS[name]
    try:
        if setting.traces != "wide" and resolve(setting.traces, fetch=False).source != "store":
            pytest.skip(f"{setting.traces} is not on this machine")
        return prepare(setting, quick)
    except UserError as error:
        pytest.skip(str(error))


def test_wide_traces_are_the_same_on_every_machine():
    traces = wide_traces()
    total = hashlib.sha256("".join(trace.sha256 for trace in traces[:100]).encode()).hexdigest()
    assert len(traces) == len({trace.sha256 for trace in traces}) == 300
    assert total == "f522b7ee2587dce734250c9175c1f9742ca6a99d66a041a05ca7fa73745b9fce", "the wide set has changed"
    assert wide_traces(3) == traces[:3]
    assert wide_traces(3, seed=1) != traces[:3]


def test_wide_traces_are_wider_than_the_ones_pensieve_describes():
    rates = np.array([trace.rates_bps for trace in wide_traces()]) / 1e6  # (traces, seconds)
    assert rates.min() == FLOOR_KBPS / 1000
    assert rates.max() > 8 > 4.3
    means = rates.mean(axis=1)
    assert means.min() < 0.7 and means.max() > 3.5
    assert all(trace.duration_s == 320 for trace in wide_traces(5))


def test_wide_traces_share_nothing_with_synthetic_training_traces():
    rng = np.random.default_rng(0)
    assert find_leaks([synthetic_trace(rng) for _ in range(20)], wide_traces(20)) == ()


def test_the_doubling_video_doubles_and_varies():
    video = doubling_video()
    assert video.levels == 5 <= 6
    assert all(high == 2 * low for low, high in pairwise(video.bitrates_bps))
    relative = np.array(video.sizes_bytes) / (np.array(video.bitrates_bps) / 8 * video.chunk_s)
    assert 0.84 < relative.min() < 0.87 and 1.13 < relative.max() < 1.16
    assert abs(relative.mean() - 1) < 0.01


def test_unseen_stands_for_all_but_the_default_and_no_setting_is_played_twice():
    names = [each.name for each in chosen(["default", "unseen", "lte"])]
    assert names == list(SETTINGS) and names[0] == DEFAULT


def test_every_setting_but_the_default_says_what_is_unseen():
    assert [name for name, each in SETTINGS.items() if not each.unseen] == [DEFAULT]


def test_an_unknown_setting_is_one_sentence():
    with pytest.raises(UserError, match=r"setting 'norwya' is unknown, did you mean norway.*fcc/valid@video1"):
        chosen(["norwya"])
    with pytest.raises(UserError, match="video 'video9' is unknown"):
        prepare(chosen(["fcc/test@video9"])[0])


def test_the_default_setting_is_the_published_one():
    found = ready(DEFAULT)
    session = found.session
    assert (session.chunks, session.rtt_s, session.buffer_cap_s, session.first_level) == (48, 0.08, 60.0, 0)
    assert len(found.units) == len(found.playbacks) == 100 > len(set(found.measured))
    assert {each.offset_s for each in found.playbacks} == {0.0}
    assert session.video == load_manifest("video1")


def test_lte_files_are_played_from_several_starts_and_count_once():
    found = ready("lte")
    assert len(found.playbacks) == 3 * STARTS and len(found.units) == len(set(found.measured)) == 3
    assert len({(each.unit, each.offset_s) for each in found.playbacks}) == len(found.playbacks)


def test_quick_takes_few_traces_from_all_over_the_set():
    found, whole = ready(DEFAULT, quick=True), ready(DEFAULT)
    assert len(found.playbacks) == 6
    assert found.playbacks[0] == whole.playbacks[0] and found.playbacks[-1] == whole.playbacks[-1]
    assert found.identity != whole.identity


def test_the_identity_of_a_setting_holds_traces_video_and_path():
    identities = {ready(name, quick=True).identity for name in (DEFAULT, "video2", "norway", "ladder", "path")}
    assert len(identities) == 5


def test_every_source_of_a_language_model_s_answer_is_in_a_cell_s_key():
    """Else a changed source would leave yesterday's sessions standing."""
    loaded = modules_with("netllm.adapter", among=("netllm.",))
    assert loaded and loaded <= found_by(MODEL)
    assert Path(inspect.getfile(student_of)) in loaded, "what decides in evaluations is among what the model is made of"


def test_every_source_of_a_playback_is_in_a_cell_s_key():
    loaded = modules_with("testbed.sim.abr", "testbed.metrics", among=("testbed.", "traces.", "controllers."))
    reading = {CHECKOUT / name for name in ("testbed/errors.py", "traces/columns.py", "traces/text.py")}  # what they read is in the key
    assert loaded and loaded - reading | {Path(playing.__file__)} <= found_by(SIMULATION)


def test_another_language_model_is_another_policy(tmp_path, monkeypatch):
    """Under the same name, with the same adapter: that of the package, and that of a folder which netllm.json names."""

    def seen() -> str:
        ((contender,), _) = contenders(("netllm",), (), str(folder))
        return contender.members[0].identity

    folder = Path(shutil.copytree(SHIPPED, tmp_path / "adapter"))
    identities = [seen()]
    monkeypatch.setattr("netllm.backbone.embedded_folder", lambda: tmp_path / "smollm2-135m-other")
    identities.append(seen())
    content = json.loads((folder / "netllm.json").read_text())
    content["backbone"]["name"] = str(tmp_path / "llm")
    (folder / "netllm.json").write_text(json.dumps(content))
    (tmp_path / "llm").mkdir()
    for text in ("one", "two"):
        (tmp_path / "llm" / "model.safetensors").write_text(text)
        identities.append(seen())
    assert len(set(identities)) == 4 and seen() == identities[-1]


def modules_with(*imported: str, among: tuple[str, ...]) -> set[Path]:
    """Files of the modules that these bring along."""
    code = f"import sys, {', '.join(imported)}; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith({among})))"
    told = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split()
    return {Path(file) for file in told if not file.endswith("__init__.py")}


def found_by(patterns: tuple[str, ...]) -> set[Path]:
    return {file for pattern in patterns for file in CHECKOUT.glob(pattern)}
