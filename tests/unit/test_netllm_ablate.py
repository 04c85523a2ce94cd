"""Ablations: the same training with one thing changed; what is complete is kept, and the next command is told."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from netllm import ablations
from netllm.abr.ablate import CHANGES, AblateSettings, ablate
from netllm.adapter import read_settings
from netllm.training import OptimiserSettings
from testbed.errors import UserError
from tests.unit.test_netllm_adapt import settings  # noqa: F401

QUIET = Console(quiet=True)
ABLATED = ("reference", "random-backbone", "no-lora", "rank-4", "history-5", "no-context", "no-return", "separate-tokens")


@pytest.fixture
def own(settings, tmp_path):  # noqa: F811
    adapted = replace(settings, rounds=0, optimiser=OptimiserSettings(batch=2, warmup_steps=1))
    return AblateSettings(names=("reference", "no-lora"), seeds=(1, 2), steps=2, out=tmp_path / "ablate", adapt=adapted)


def test_each_change_changes_one_thing(settings):  # noqa: F811
    assert tuple(CHANGES) == ABLATED and CHANGES["reference"].make(settings) == settings
    changed = {
        name: {key for key, value in vars(change.make(settings)).items() if value != vars(settings)[key]}
        for name, change in CHANGES.items()
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
    assert ablate(own, QUIET) == folders
    np.testing.assert_array_equal([folder.stat().st_mtime_ns for folder in folders], before)


def test_a_change_that_nobody_knows_is_refused(own):
    with pytest.raises(UserError, match="change 'no-lore' is unknown: did you mean"):
        ablate(replace(own, names=("no-lore",)), QUIET)


@pytest.fixture
def made(own):
    """One complete run."""
    asked = replace(own, names=("reference",), seeds=(1,))
    ablate(asked, QUIET)
    return asked


def test_a_run_of_other_settings_is_refused_not_compared(made):
    """Else two steps and four would stand in one table as equals."""
    with pytest.raises(UserError, match=r"reference-1: was begun with steps 2 \(now 4\), wanted equal settings, or another --out"):
        ablate(replace(made, steps=4), QUIET)
    adapted = replace(made.adapt, optimiser=OptimiserSettings(batch=3, warmup_steps=1), threads=2)
    with pytest.raises(UserError, match=r"was begun with optimiser.batch 2 \(now 3\), wanted"):
        ablate(replace(made, names=("no-lora", "reference"), adapt=adapted), QUIET)
    assert not (made.out / "no-lora-1").exists(), "refused before anything is trained"


def test_a_run_from_before_counts_by_its_card(made):
    (made.out / "reference-1.json").unlink()
    (made.out / "reference-1" / ablations.DONE).unlink()
    assert ablate(made, QUIET) == [made.out / "reference-1" / "adapter"]
    with pytest.raises(UserError, match="reference-1: was trained with seed 1 for 2 steps, wanted seed 1 and 4 steps, or another --out"):
        ablate(replace(made, steps=4), QUIET)
    (made.out / "reference-1").rename(made.out / "reference-2")
    with pytest.raises(UserError, match="reference-2: was trained with seed 1 for 2 steps, wanted seed 2 and 2 steps"):
        ablate(replace(made, seeds=(2,)), QUIET)
    shutil.rmtree(made.out / "reference-2" / "adapter")
    with pytest.raises(UserError, match="reference-2: holds no run that tells its settings"):
        ablate(replace(made, seeds=(2,)), QUIET)


def test_a_run_that_was_cut_goes_on(made):
    (made.out / "reference-1" / ablations.DONE).unlink()
    assert ablate(made, QUIET) == [made.out / "reference-1" / "adapter"]
    assert (made.out / "reference-1" / ablations.DONE).is_file()


def adapter(folder, command):
    folder.mkdir(parents=True)
    (folder / "netllm.json").write_text(json.dumps({"trained": {"command": command}}))
    return folder


def test_each_row_names_the_command_that_makes_it_again(tmp_path, monkeypatch):
    """Names, seeds and folder of the row alone: two trainings in one folder would meet each other's experience."""
    monkeypatch.chdir(tmp_path)
    told = "scripts/ablate abr --seeds {} --steps 3 --names reference no-lora --adapt.rounds 1"
    few = [adapter(tmp_path / f"results/few/no-lora-{seed}/adapter", told.format(seed)) for seed in (1, 2)]
    shipped = adapter(tmp_path / "shipped", "scripts/adapt abr --minutes 5")
    found = ablations.trainings({"few, no LoRA": few, "netllm": [shipped], "unknown": [adapter(tmp_path / "x", "")]}, CHANGES)
    assert found == [
        (
            "few, no LoRA",
            "`no-lora`: no LoRA: the backbone is what it was",
            "`scripts/ablate abr --names no-lora --seeds 1 2 --out results/few --steps 3 --adapt.rounds 1`",
        ),
        ("netllm", "no ablation: an adapter by itself", "`scripts/adapt abr --minutes 5`"),
    ]
