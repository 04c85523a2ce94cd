"""Model cards: results of a test stand only as long as the adapter that was tested."""

import json
import shutil

import pytest

from netllm.abr import choose
from netllm.abr.adapt import Score
from netllm.adapter import SHIPPED
from netllm.cards import TASKS, set_results, write_card

MEASURED = "## Results\nvery good"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SHIPPED / "abr", tmp_path / "adapter")


def card(folder):
    return (folder / "README.md").read_text()


def change(folder, **facts):
    content = json.loads((folder / "netllm.json").read_text())
    for name, value in facts.items():
        content["settings"][name] = value
    (folder / "netllm.json").write_text(json.dumps(content))


@pytest.mark.parametrize("task", TASKS)
def test_what_ships_has_its_results(task, tmp_path):
    folder = shutil.copytree(SHIPPED / task, tmp_path / "adapter")
    results = card(folder).partition("<!-- results -->")[2]
    assert "\n## Results\n" in results
    write_card(folder)
    assert card(folder).partition("<!-- results -->")[2] == results


def test_results_are_kept_while_the_adapter_is_the_same(folder):
    set_results(folder, MEASURED)
    write_card(folder)
    write_card(folder)
    assert card(folder).count(MEASURED) == 1


@pytest.mark.parametrize("changed", ["adapter_model.safetensors", "modules.safetensors", "netllm.json"])
def test_a_changed_adapter_is_unmeasured(folder, changed):
    set_results(folder, MEASURED)
    if changed == "netllm.json":  # as `scripts/adapt cjs-trust` does
        change(folder, context_steps=7)
    else:
        shutil.copy(SHIPPED / "vp" / changed, folder / changed)
    write_card(folder)
    assert MEASURED not in card(folder) and TASKS["abr"].unmeasured in card(folder)


def test_results_from_before_that_name_no_weights_are_not_kept(folder):
    (folder / "README.md").write_text(f"<!-- results -->\n{MEASURED}\n<!-- end of results -->\n")
    write_card(folder)
    assert MEASURED not in card(folder)


def test_who_is_chosen_does_not_inherit_what_lay_there(folder, tmp_path):
    """`scripts/adapt abr-choose --into` replaces an adapter."""
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copy(SHIPPED / "vp" / "modules.safetensors", other / "modules.safetensors")
    set_results(folder, MEASURED)
    score = Score(1.0, 0.1, {"valid": 1.0})
    same, better = (choose.Tried(each, score, None) for each in (folder, other))
    choose._ship(same, [same, better], folder, {"sessions": 3, "commit": "0" * 12})
    assert MEASURED in card(folder), "the one that lay there was chosen again"
    choose._ship(better, [same, better], folder, {"sessions": 3, "commit": "0" * 12})
    assert MEASURED not in card(folder)


def test_a_card_says_what_was_done_not_what_is_usual(folder):
    """The adapter that ships had no round of DAgger, and no running mean."""
    write_card(folder)
    text = card(folder)
    assert "| sessions | 3000 collected, all states labelled" in text and "student" not in text
    assert "| weights | those of the step itself |" in text
    content = json.loads((folder / "netllm.json").read_text())
    content["trained"] |= {"dagger_rounds": 2, "sessions": [3000, 800]}
    content["trained"]["optimiser"]["keep"] = 0.98
    (folder / "netllm.json").write_text(json.dumps(content))
    write_card(folder)
    text = card(folder)
    assert "| sessions | 3000 collected and 800 of 2 DAgger rounds, all states" in text and "; in DAgger rounds the student |" in text
    assert "| weights | running mean, factor 0.98 a step |" in text
