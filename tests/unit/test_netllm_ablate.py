"""Ablations: the same training with one thing changed; what is complete is kept, and the next command is told."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from netllm.ablate import CHANGES, AblateSettings, ablate
from netllm.adapter import read_settings
from netllm.training import OptimiserSettings
from testbed.errors import UserError
from tests.unit.test_netllm_adapt import settings  # noqa: F401

ABLATED = ("reference", "random-backbone", "no-lora", "rank-4", "history-5", "no-context", "no-return", "separate-tokens")


@pytest.fixture
def own(settings, tmp_path):  # noqa: F811
    adapted = replace(settings, rounds=0, optimiser=OptimiserSettings(batch=2, warmup_steps=1))
    return AblateSettings(names=("reference", "no-lora"), seeds=(1, 2), steps=2, out=tmp_path / "ablate", adapt=adapted)


def test_each_change_changes_one_thing(settings):  # noqa: F811
    assert tuple(CHANGES) == ABLATED and CHANGES["reference"](settings) == settings
    changed = {
        name: {key for key, value in vars(change(settings)).items() if value != vars(settings)[key]} for name, change in CHANGES.items()
    }
    del changed["reference"]
    assert all(len(each) == 1 for each in changed.values()), changed


def test_what_is_made_is_kept_and_compared_on_equal_data(own):
    told = io.StringIO()
    folders = ablate(own, Console(file=told, width=500))
    assert [folder.parent.name for folder in folders] == ["reference-1", "no-lora-1", "reference-2", "no-lora-2"]
    assert "--adapters reference=" in told.getvalue() and "no-lora-1/adapter," in told.getvalue()
    assert sorted(path.name for path in own.out.glob("*.parquet")) == ["experience-1.parquet", "experience-2.parquet"]
    seeds = [read_settings(folder)["trained"]["seed"] for folder in folders]
    assert seeds == [1, 1, 2, 2]
    before = [folder.stat().st_mtime_ns for folder in folders]
    assert ablate(own, Console(quiet=True)) == folders
    np.testing.assert_array_equal([folder.stat().st_mtime_ns for folder in folders], before)


def test_a_change_that_nobody_knows_is_refused(own):
    with pytest.raises(UserError, match="change 'no-lore' is unknown: did you mean"):
        ablate(replace(own, names=("no-lore",)), Console(quiet=True))
