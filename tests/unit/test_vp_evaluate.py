"""`scripts/evaluate vp`: its statistics, what it writes, and how it takes a user's mistakes."""

import json
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controllers.loader import load
from netllm.command import evaluate_command
from netllm.vp.suite import page, run
from netllm.vp.suite.ablations import families
from netllm.vp.suite.analysis import Difference, Evaluation, Outcome, clustered, difference, setting_result
from netllm.vp.suite.page import document, finding
from netllm.vp.suite.settings import NAMED, chosen
from testbed.errors import UserError
from testbed.sim.vp import WindowErrors, measure
from testbed.stats import Estimate, estimate, p_value_of
from tests.vp_cases import viewing, windows

QUIET = Console(quiet=True)


@pytest.fixture
def recorded(monkeypatch):
    """Four viewers on two videos, made by arithmetic, in place of the test split."""
    known = tuple(viewing(video, user, samples=150) for video in (4, 8) for user in (83, 15, 3, 35))
    monkeypatch.setattr(run, "load_split", lambda name: known)
    return known


def errors(mae_deg, users, videos=None):
    values = np.array(mae_deg, dtype=float)
    videos = np.array(videos if videos is not None else np.zeros(len(values), dtype=int))
    axes = np.repeat(values[:, None], 3, axis=1)
    return WindowErrors(videos, np.array(users), np.arange(len(values)), values, axes, values, values, values)


def outcome(name, *given):
    return Outcome(replace(load("static", "vp"), name=name, label=name.title()), errors(*given))


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=10))
def test_one_window_a_viewer_is_the_plain_interval(values):
    found, plain = clustered(np.array(values), np.arange(len(values))), estimate(values)
    assert (found.mean, found.n) == (pytest.approx(plain.mean, abs=1e-9), plain.n)
    assert found.ci95 == pytest.approx(plain.ci95, abs=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=8), st.integers(2, 5))
def test_copies_of_a_viewer_s_windows_tell_nothing_new(values, copies):
    once, more = (clustered(np.repeat(values, n), np.repeat(np.arange(len(values)), n)) for n in (1, copies))
    assert more.mean == pytest.approx(once.mean, abs=1e-9)
    assert more.ci95 == pytest.approx(once.ci95, abs=1e-6)


def test_the_mean_is_over_windows_also_where_viewers_have_unequal_numbers():
    found = clustered(np.array([1.0, 1.0, 1.0, 5.0, 9.0]), np.array([7, 7, 7, 8, 9]))
    assert (found.mean, found.n) == (pytest.approx(17 / 5), 3)


def test_intervals_over_viewers_hold_the_truth_as_often_as_they_say():
    """Viewers differ by 2 degrees, windows of one by 1; intervals over windows would hold the mean in half of the draws."""
    rng, held = np.random.default_rng(5), 0
    users = np.repeat(np.arange(12), 15)
    for _ in range(400):
        values = 9 + np.repeat(rng.normal(0, 2, 12), 15) + rng.normal(0, 1, 180)
        low, high = clustered(values, users).ci95
        held += low <= 9 <= high
    assert 0.92 < held / 400 < 0.98


def test_differences_are_paired_and_counted():
    users, videos = [1, 1, 2, 2, 3, 3], [1, 2, 1, 2, 1, 2]
    found = difference(outcome("a", [1, 2, 3, 4, 6, 6], users, videos), outcome("b", [2, 3, 5, 6, 5, 6], users, videos))
    assert found.over_users.mean == pytest.approx(-5 / 6)
    assert (found.better_users, found.users, found.better_videos, found.videos) == (2, 3, 2, 2)
    assert found.over_videos.ci95 is None, "two videos are too few"
    reverse = difference(outcome("b", [2, 3, 5, 6, 5, 6], users, videos), outcome("a", [1, 2, 3, 4, 6, 6], users, videos))
    assert reverse.over_users.ci95 == pytest.approx([-end for end in found.over_users.ci95[::-1]])
    assert reverse.p == pytest.approx(found.p)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9).filter(lambda values: np.ptp(values) > 1e-3))
def test_the_interval_leaves_out_zero_just_when_p_is_below_five_percent(values):
    found = estimate(values)
    low, high = found.ci95
    assert (p_value_of(found) < 0.05) == (low > 0 or high < 0)


def test_p_of_differences_without_spread_or_without_interval():
    assert p_value_of(Estimate(2.0, (2.0, 2.0), 5)) == 0.0
    assert p_value_of(Estimate(0.0, (0.0, 0.0), 5)) == 1.0
    assert p_value_of(Estimate(2.0, None, 2)) is None


@pytest.mark.parametrize(
    ("mean", "p", "verdict"), [(-1.0, 0.01, "better"), (1.0, 0.01, "worse"), (-1.0, 0.06, "not clear"), (-1.0, None, "not clear")]
)
def test_verdicts(mean, p, verdict):
    assert Difference("a", "b", Estimate(mean, None, 3), Estimate(mean, None, 3), 0, 3, 0, 3, p, p).verdict == verdict


def test_p_values_are_adjusted_for_the_comparisons_with_one_reference():
    rng, users = np.random.default_rng(1), np.repeat(np.arange(6), 4)
    base = rng.uniform(5, 9, 24)
    outcomes = {"static": outcome("static", base, users)}
    outcomes |= {name: outcome(name, base + by + rng.normal(0, 0.6, 24), users) for name, by in (("a", -0.9), ("b", 0.2), ("c", 0.4))}
    found = {each.a: each for each in setting_result(NAMED["code"], outcomes, {}, ["static"]).differences["static"]}
    smallest = min(found.values(), key=lambda each: each.p)
    assert smallest.p_holm == pytest.approx(3 * smallest.p)
    assert all(each.p_holm >= each.p for each in found.values())


def test_named_settings_and_own_ones():
    assert [each.name for each in chosen(["code", "figures:1:2", "code"])] == ["code", "figures:1:2"]
    own = chosen(["figures:1:2"])[0]
    assert (own.rule.tail, own.history_s, own.horizon_s) == (30, 1.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--settings", "figure"], "setting 'figure' is unknown: did you mean figures?"),
        (["--settings", "figures:1"], "setting 'figures:1' is unknown"),
        (["--settings", "figures:1:x"], "lengths that are no numbers, wanted seconds, such as figures:1:2"),
        (["--settings", "figures:1:0.5"], "the horizon is 0.5 s, wanted a multiple of 0.2 s"),
        (["--settings", "figures:9:2"], "the history is 9 s, wanted at most the 6 s"),
        (["--settings", "midgets:1:2"], "windows 'midgets' are unknown"),
        (["--settings"], "--settings names none"),
        (["--policies", "statik"], "policy 'statik' is unknown, did you mean static?"),
        (["--against", "nothing"], "policy 'nothing' is unknown"),
        (["--policies", "static", "static"], "policy 'static' is given twice"),
        (["--seed", "-1"], "--seed is -1, wanted at least 0"),
    ],
)
def test_mistakes_are_told_in_one_sentence(recorded, capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert evaluate_command(["vp", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_told(capsys):
    assert evaluate_command(["vpp"]) == 2
    assert "task 'vpp' is unknown, wanted one of abr, cjs, vp" in capsys.readouterr().err


def test_an_evaluation_writes_every_window_and_every_number(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "DOCS", tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    asked = run.VpEvaluateSettings(
        ("figures", "code"), ("static", f"{tmp_path}/mine.py"), ("static", "velocity"), out=tmp_path / "out", write=True
    )
    results = run.test(asked, QUIET)
    assert [list(each.outcomes) for each in results] == [["static", "mine", "velocity"]] * 2
    frame = pl.read_parquet(tmp_path / "out" / "windows.parquet")
    seen = windows_of(recorded)
    assert len(frame) == 3 * (len(seen) + results[1].windows)
    static = frame.filter(policy="static", setting="figures")
    expected = measure(load("static", "vp")(), seen)
    np.testing.assert_array_equal(static["mae_deg"], expected.mae_deg)
    np.testing.assert_array_equal(static["yaw_mae_deg"], expected.axis_mae_deg[:, 2])
    assert static["user"].unique().sort().to_list() == [3, 15, 35, 83]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    figures = summary["settings"][0]
    assert figures["policies"]["static"]["mean"] == pytest.approx(expected.mae_deg.mean())
    assert {(each["a"], each["b"]) for each in figures["comparisons"]} == {
        ("mine", "static"), ("velocity", "static"), ("static", "velocity"), ("mine", "velocity"),
    }  # fmt: skip
    text = (tmp_path / "vp.md").read_text()
    assert f"| `static` | {expected.mae_deg.mean():.2f} ± " in text
    assert "| NetLLM, Llama-2-7B | 11.96 | \N{EN DASH} |" in text
    assert str(tmp_path) not in text


def windows_of(viewings):
    from traces.windows import RULES, cut

    return cut(viewings, RULES["figures"])


MINE = """
import numpy as np
from controllers.api import VpPolicy
from testbed.errors import UserError

class Mine(VpPolicy):
    label = "Mine"
    def decide(self, observation):
        return np.repeat(observation.history_deg[-1:] + 1, observation.session.horizon, axis=0)
"""


def test_a_policy_that_refuses_is_told_and_one_that_fails_ends_it(recorded, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusing = MINE + "    def reset(self, session, seed):\n        raise UserError('policy picky: 20 samples are too many, wanted 5')\n"
    (tmp_path / "picky.py").write_text(refusing)
    (tmp_path / "broken.py").write_text(MINE.replace("observation.session.horizon", "2"))
    assert evaluate_command(["vp", "--settings", "figures", "--policies", "picky.py", "--against", "static"]) == 0
    assert "picky can't serve it: policy picky: 20 samples are too many, wanted 5" in capsys.readouterr().out
    assert evaluate_command(["vp", "--settings", "figures", "--policies", "broken.py"]) == 2
    said = capsys.readouterr().err
    assert "policy 'broken' failed on setting figures: it answered numbers of shape (2, 3), wanted (20, 3)" in said


def test_the_command_in_the_page_can_be_repeated(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/evaluate", "vp", "--policies", "/some/where/mine.py", "--out", str(tmp_path)])
    header = run.vp_header([load("mlp", "vp"), load("static", "vp")], "test")
    assert header.command == "scripts/evaluate vp --policies mine.py"
    assert list(header.weights) == ["mlp"]


def test_who_errs_alike_as_far_as_the_table_shows_shares_the_finding():
    users, errors = np.repeat(np.arange(6), 4), np.linspace(4, 9, 24)
    alike = {"static": outcome("static", errors + 2, users), "a": outcome("a", errors, users), "b": outcome("b", errors + 1e-4, users)}
    (said,) = finding([setting_result(NAMED["code"], alike, {}, ["static"])])
    assert "A and B have the least error" in said


def test_a_card_tells_each_setting_and_what_it_was_compared_with():
    users, errors = np.repeat(np.arange(6), 4), np.linspace(4, 9, 24)
    outcomes = {name: outcome(name, errors + more, users) for name, more in (("static", 2), ("netllm", 0))}
    header = run.vp_header([load("static", "vp")], "test")
    text = page.card([setting_result(NAMED["code"], outcomes, {}, ["static"])], "netllm", header)
    assert "| 6.50 ± " in text and "| \N{MINUS SIGN}2.00 to `static`: better |" in text
    assert NAMED["code"].title in text and header.command in text and "\nTest viewings, " in text
    assert "\nValid viewings, " in page.card(
        [setting_result(NAMED["code"], outcomes, {}, ["static"])], "netllm", replace(header, split="valid")
    )


def test_no_page_is_written_of_other_viewings_than_the_test_s(recorded, tmp_path):
    with pytest.raises(UserError, match="--write is for results on test viewings, seen --split valid"):
        run.test(run.VpEvaluateSettings(("code",), ("static",), split="valid", out=tmp_path / "out", write=True), QUIET)
    assert not (tmp_path / "out").exists()


def test_no_other_policy_s_results_go_into_the_shipped_adapter_s_card(recorded, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run, "DOCS", tmp_path)
    monkeypatch.setattr(run, "set_results", lambda *arguments: written.append(arguments))
    (tmp_path / "netllm.py").write_text(MINE)
    asked = run.VpEvaluateSettings(("figures",), (f"{tmp_path}/netllm.py",), ("static",), out=tmp_path / "out", write=True)
    with pytest.raises(UserError, match="--write: the policy 'netllm' is .*netllm.py, wanted our own under that name"):
        run.test(asked, QUIET)
    assert not written and not (tmp_path / "vp.md").exists()


def test_a_finding_says_no_more_than_the_interval_allows():
    users = np.repeat(np.arange(6), 4)
    noisy = np.random.default_rng(2).normal(0, 3, 24)
    close = {"static": outcome("static", np.full(24, 9.0), users), "a": outcome("a", 8.95 + noisy - noisy.mean(), users)}
    (said,) = finding([setting_result(NAMED["code"], close, {}, ["static"])])
    assert "A has the least error" in said
    assert "not clearly different from Static" in said
    far = {"static": outcome("static", np.full(24, 9.0), users), "a": outcome("a", np.full(24, 5.0), users)}
    result = setting_result(NAMED["code"], far, {"b": "too long"}, ["static"])
    (said,) = finding([result])
    assert "better than Static: -4.00 (-4.00 to -4.00)" in said.replace("\N{MINUS SIGN}", "-")
    header = run.vp_header([], "test")
    assert "`b` can't serve it: too long" in document(Evaluation((result,)), header)


def test_errors_are_those_of_the_windows():
    assert measure(load("static", "vp")(), windows()).mae_deg.shape == (len(windows()),)


CHANGED = {"still": "reference", "lively": "no-lora"}


def test_ablations_are_measured_against_their_reference_and_seeds_are_averaged(recorded, tmp_path, monkeypatch):
    """Two families of two adapters of a tiny model each; the adapters of one do nothing."""
    import torch

    from netllm.adapter import new_model, save_adapter
    from netllm.lora import LoraSettings
    from netllm.tasks.vp import VpTask
    from tests.unit.tiny_models import save_tiny

    llm = str(save_tiny(tmp_path / "llm"))
    folders = {}
    for name in ("still-1", "still-2", "lively-1", "lively-2"):
        model = new_model(llm, "float32", VpTask(hidden=8, base="last"), LoraSettings(rank=0), name)
        if name.startswith("lively"):
            torch.nn.init.normal_(model.head.linear.weight, std=0.2)
        folders[name] = tmp_path / "made" / f"{CHANGED[name[:-2]]}{name[-2:]}" / "adapter"
        save_adapter(model, folders[name], {"trained": {"command": "scripts/ablate vp --names reference no-lora --steps 9 --seeds 1 2"}})
        model.switch.remove()
    groups = tuple(f"{name}={folders[f'{name}-1']},{folders[f'{name}-2']}" for name in ("still", "lively"))
    monkeypatch.setattr(run, "DOCS", tmp_path)
    asked = run.VpEvaluateSettings(
        ("figures",), ("static",), ("static",), adapters=groups, reference="still", out=tmp_path / "out", timed=3, write=True
    )
    run.test(asked, QUIET)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (ablation,) = summary["ablations"]
    static = summary["settings"][0]["policies"]["static"]["mean"]
    assert ablation["seeds_mae_deg"]["still"] == pytest.approx([static] * 2, abs=1e-4)
    one, two = ablation["seeds_mae_deg"]["lively"]
    assert one != two and ablation["policies"]["lively"]["mean"] == pytest.approx((one + two) / 2)
    (compared,) = ablation["comparisons"]
    assert (compared["a"], compared["b"]) == ("lively", "still")
    (low, high), spread = compared["over_users"]["ci95"], abs(one - two) / 2  # sd over the root of two seeds
    assert 1 <= compared["over_users"]["freedom"] < 3 and (high - low) / 2 > 3 * spread, "three viewers and two seeds are few"
    assert not (tmp_path / "vp.md").exists()
    text = (tmp_path / "vp_ablations.md").read_text()
    assert "| still | `reference`: nothing but" in text
    assert "`scripts/ablate vp --names reference --seeds 1 2 --out made --steps 9` |" in text
    assert "ablations of the language model" in text and "| `lively` |" in text and "`static`" not in text
    assert summary["decision_ms"]["static"]["p50"] > 0


@pytest.mark.parametrize(
    ("adapters", "reference", "said"),
    [
        (("mine",), "netllm", "name or folder is missing"),
        (("mine=nowhere",), "netllm", "has no netllm.json"),
    ],
)
def test_adapters_that_are_none_are_told(adapters, reference, said):
    with pytest.raises(UserError, match=said):
        families(adapters, reference)


def test_another_data_set_that_cannot_be_had_is_left_out_unless_it_is_alone(recorded, tmp_path, monkeypatch, capsys):
    def lacking(name):
        if name.startswith("wu2017"):
            raise UserError("data set viewports_wu2017 is not on this machine")
        return recorded

    monkeypatch.setattr(run, "load_split", lacking)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "DOCS", tmp_path)
    assert evaluate_command(["vp", "--settings", "figures", "wu2017", "--policies", "static", "--against", "static", "--write"]) == 0
    text = (tmp_path / "vp.md").read_text()
    assert "was left out: its data were not there (`scripts/fetch_data viewports_wu2017`" in text and NAMED["wu2017"].note in text
    assert "setting wu2017 is left out" in " ".join(capsys.readouterr().out.split())
    assert evaluate_command(["vp", "--settings", "wu2017", "--policies", "static", "--against", "static"]) == 2
    assert "viewports_wu2017 is not on this machine" in capsys.readouterr().err


def test_videos_of_another_set_have_no_front(recorded, tmp_path, monkeypatch):
    fronts = []
    spying = load("static", "vp")().__class__

    class Spy(spying):
        def decide_all(self, observations):
            fronts.append(self.session.front_deg)
            return super().decide_all(observations)

    monkeypatch.setattr(run, "_policies", lambda settings: [replace(load("static", "vp"), policy_class=Spy)])
    run.test(run.VpEvaluateSettings(("figures", "wu2017"), against=("static",), out=tmp_path / "out", timed=0), QUIET)
    assert set(fronts) == {90.0, None}


def test_frames_are_there_when_decisions_are_timed_too(recorded, tmp_path):
    for video in (4, 8):
        (tmp_path / "frames" / f"video{video}").mkdir(parents=True)
        np.save(tmp_path / "frames" / f"video{video}" / "0.npy", np.full((2, 4, 3), video, np.uint8))
    (tmp_path / "mine.py").write_text(MINE.replace("return", "assert observation.frame.shape == (2, 4, 3)\n        return"))
    asked = run.VpEvaluateSettings(
        ("figures",), (f"{tmp_path}/mine.py",), ("static",), frames=tmp_path / "frames", out=tmp_path / "out", timed=3
    )
    run.test(asked, QUIET)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["decision_ms"]["mine"]["p50"] > 0
