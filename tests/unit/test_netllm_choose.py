"""Choosing among adapters: all play the same validation sessions, and the one that does best there is copied with what was tried."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from netllm.abr import choose as choosing
from netllm.abr.adapt import adapt
from netllm.abr.choose import ChooseSettings, choose
from netllm.adapter import MODULES, SETTINGS, load_adapter, read_settings
from testbed.errors import UserError
from tests.unit.test_netllm_adapt import settings  # noqa: F401

QUIET = Console(quiet=True)


@pytest.fixture
def adapters(settings, tmp_path):  # noqa: F811
    """Two of one recipe, by seed; the second is the first with all weights of encoders and head turned around."""
    first = adapt(replace(settings, steps=1, rounds=0, out=tmp_path / "seed-1"), QUIET)
    second = Path(shutil.copytree(first, tmp_path / "seed-2"))
    content = read_settings(first)
    content["trained"]["seed"] = 2
    del content["sha256"]  # of the weights before they are turned
    (second / SETTINGS).write_text(json.dumps(content), encoding="utf-8")
    save_file({name: -tensor for name, tensor in load_file(first / MODULES).items()}, second / MODULES)
    return first, second


@pytest.fixture
def asked(settings, adapters, tmp_path):  # noqa: F811
    return ChooseSettings(adapters, sessions=3, into=tmp_path / "shipped", dtype="float32", collect=settings.collect)


def test_the_best_is_copied_and_tells_what_was_tried(asked, monkeypatch):
    monkeypatch.setattr(choosing, "TOGETHER", 2)
    told = io.StringIO()
    best = choose(asked, Console(file=told, width=300))
    content = read_settings(asked.into)
    tried = content["chosen"]["tried"]
    assert best == asked.adapters[int(np.argmax([each["qoe"] for each in tried]))]
    assert content["trained"] == read_settings(best)["trained"] and [each["seed"] for each in tried] == [1, 2]
    assert content["chosen"]["sessions"] == 3 * len(tried[0]["families"])
    assert all(f"{each['qoe']:.4f}" in told.getvalue() for each in tried)
    assert "abr-choose" in (asked.into / "README.md").read_text(encoding="utf-8")
    for name, tensor in load_adapter(asked.into, dtype="float32").state_dict().items():
        np.testing.assert_array_equal(tensor, load_adapter(best, dtype="float32").state_dict()[name])


def test_who_plays_better_is_chosen(asked, monkeypatch):
    """Not by order, nor by what its training said of itself."""
    levels = iter([3, 0])  # the second adapter stays at the lowest level: it never stalls
    monkeypatch.setattr(choosing, "student_of", lambda model, task: _always(next(levels)))
    assert choose(asked, QUIET) == asked.adapters[1]


def _always(level):
    return lambda observations: [min(level, each.video.levels - 1) for each in observations]


def test_one_that_held_out_other_traces_is_refused(asked):
    with pytest.raises(UserError, match="held out other traces in training than these are validated on"):
        choose(replace(asked, collect=replace(asked.collect, held_out=0.5)), QUIET)
    assert not asked.into.exists()


def test_one_adapter_is_no_choice(asked):
    with pytest.raises(UserError, match="1 adapter is given, wanted at least two"):
        choose(replace(asked, adapters=asked.adapters[:1]), QUIET)
