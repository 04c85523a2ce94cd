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


@pytest.mark.parametrize("task", TASKS)
def test_what_ships_has_the_card_that_its_settings_give(task, tmp_path):
    folder = shutil.copytree(SHIPPED / task, tmp_path / "adapter")
    before = card(folder)
    write_card(folder)
    assert card(folder) == before


def written(task, tmp_path, change):
    """The card of an adapter whose settings file tells of another training."""
    folder = shutil.copytree(SHIPPED / task, tmp_path / "adapter")
    content = json.loads((folder / "netllm.json").read_text())
    change(content)
    (folder / "netllm.json").write_text(json.dumps(content))
    write_card(folder)
    return " ".join(card(folder).split())


def test_a_card_names_the_traces_that_were_trained_on(tmp_path):
    def change(content):
        source = content["trained"]["experience"]
        source["sets"] = [each for each in source["sets"] if each["name"] == "fcc"]
        source["settings"]["synthetic"], source["held_out"] = 0.0, ["unit:909"]
        del content["validation"]["families"]["valid"]

    text = written("abr", tmp_path, change)
    assert "Trained on FCC broadband rates; other rates are outside that." in text
    assert "Norwegian" not in text and "synthetic traces" not in text and "fcc/valid" not in text
    assert "| held out for validation | 1 units (named in `netllm.json`) |" in text


def test_a_card_of_synthetic_traces_alone_says_so(tmp_path):
    def change(content):
        content["trained"]["experience"]["sets"] = [{"name": "mine", "split": "", "traces": 3, "sha256": "0" * 64}]
        content["trained"]["experience"]["settings"]["synthetic"] = 1.0

    wanted = "Trained on synthetic traces between 0.4 and 8 Mbit/s, some of them with pieces of `mine` rates; other rates"
    assert wanted in written("abr", tmp_path, change)


def test_a_predictors_card_says_what_it_sees_and_that_frames_have_no_mirror(tmp_path):
    def change(content):
        content["settings"] |= {"image_features": 8, "heading": False, "base": "last", "horizon": 10}

    text = written("vp", tmp_path, change)
    assert "movement and the frames at the newest samples" in text and "stretches, none mirrored" in text
    assert "It is not told where viewers have their front." in text and "2 s to 2 s:" in text


def test_a_predictor_that_always_knew_the_front_never_learnt_to_do_without(tmp_path):
    text = written("vp", tmp_path, lambda content: content["trained"].update(no_front=0.0))
    assert "It knows where the viewers of Jin2022 have their front, and never learnt to do without." in text


@pytest.mark.parametrize(
    ("usual", "small", "said"),
    [
        (1.0, 0.0, "50 executors, at most 200 jobs"),
        (0.0, 1.0, "8 to 16 executors, at most 30 jobs"),
        (0.5, 0.5, "8 to 16 and 50 executors, at most 200 jobs"),
        (0.5, 0.0, "16 to 60 executors (none of 25 to 35), at most 200 jobs"),
    ],
)
def test_a_schedulers_card_names_the_clusters_that_were_drawn(tmp_path, usual, small, said):
    def change(content):
        for each in content["trained"]["experience"]:
            each["settings"] |= {"usual": usual, "small": small, "rule_only": 0.25}
        content["trained"]["budget"] = "steps"

    text = written("cjs", tmp_path, change)
    assert f"Trained on TPC-H jobs, {said}; other clusters" in text
    assert "In some sessions it was taught by that rule's own decisions alone." in text
    assert "| the first 50% of the steps: encoder and heads alone |" in text


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
