"""The statistics of an evaluation, on sessions made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions

from controllers.loader import PolicyReference
from netllm.abr.suite.analysis import analyse
from netllm.abr.suite.cells import CELL, Cell
from netllm.abr.suite.contenders import ABLATION, COMPARED, LEARNED, NETLLM, RULE, Contender, Member
from netllm.abr.suite.header import header
from netllm.abr.suite.markdown import _ablations as ablation_table
from netllm.abr.suite.markdown import ablations_document, document, trainings
from netllm.abr.suite.page import render
from netllm.abr.suite.play import OPTIMUM
from netllm.abr.suite.sentences import finding
from netllm.abr.suite.settings import Playback, Prepared, Setting
from testbed import stats
from tests.abr_cases import session, steady

SETTING = Setting("toy", "Toy", "toy", "toy", "all")


def contender(name, kind=RULE, role=COMPARED, members=1):
    return Contender(name, name.upper(), "#123456", "", kind, role, (Member(PolicyReference(name, name), name),) * members)


def prepared(units, groups=None, setting=SETTING):
    groups = groups or units
    playbacks = tuple(Playback(steady(1.0 + i), 0.0, unit, group) for i, (unit, group) in enumerate(zip(units, groups, strict=True)))
    return Prepared(setting, session(), playbacks, "path", "0" * 64, "")


def cell(*qoe):
    return Cell(tuple((value, *(0.1 * i for i in range(1, len(CELL)))) for value in qoe))


def analysis(played, who, units="abcdefghij", groups=None, reference="netllm"):
    """`played`: policy to QoE per unit, or to {(member, seed): QoE per unit}."""
    cells = {}
    for policy, values in played.items():
        for (member, seed), row in (values if isinstance(values, dict) else {(0, 0): values}).items():
            cells["toy", policy, member, seed] = cell(*row)
    cells.setdefault(("toy", OPTIMUM, 0, 0), cell(*[2.0] * len(units)))
    return analyse([prepared(list(units), groups)], who, cells, reference)


def test_differences_are_paired_and_the_strongest_rule_is_the_one_of_the_setting():
    base = np.arange(10.0)
    who = [contender("netllm", NETLLM), contender("bba"), contender("mpc"), contender("pensieve", LEARNED)]
    found = analysis({"netllm": base + 0.5, "bba": base, "mpc": base + 0.25, "pensieve": base + 0.4}, who).settings[0]
    assert [each.b for each in found.differences] == ["pensieve", "mpc", "bba"]
    assert found.strongest(RULE, "netllm") == "mpc" and found.strongest(LEARNED, "netllm") == "pensieve"
    against = found.against("mpc")
    assert against.estimate.mean == pytest.approx(0.25) and against.estimate.ci95 == pytest.approx((0.25, 0.25))
    assert (against.wins, against.losses, against.ties) == (10, 0, 0) and against.verdict == "better"
    assert found.share("netllm").mean == pytest.approx((base + 0.5).mean() / 2)


def test_a_weak_difference_is_not_clear_once_there_are_many_comparisons():
    rng = np.random.default_rng(5)
    own = rng.normal(0, 1, 10)
    values = rng.normal(0, 1, 10)
    shifted = own - (values - values.mean()) - 2.5 * distributions.sem(values)  # p is about 0.03
    who = [contender("netllm", NETLLM), contender("a"), contender("b"), contender("c")]
    alone = analysis({"netllm": own, "a": shifted}, who[:2]).settings[0].against("a")
    among = analysis({"netllm": own, "a": shifted, "b": own + values, "c": own - values}, who).settings[0].against("a")
    assert alone.verdict == "better" and among.verdict == "not clear"
    assert alone.p == among.p and alone.estimate == among.estimate


def test_seeds_are_averaged_per_trace_and_their_spread_stands_apart():
    base = np.arange(10.0)
    who = [contender("netllm", NETLLM), contender("genet", LEARNED, members=2)]
    played = {(member, seed): base + member + 0.1 * seed for member in (0, 1) for seed in (0, 1, 2)}
    outcome = analysis({"netllm": base, "genet": played}, who).settings[0].outcomes["genet"]
    assert outcome.by_unit == pytest.approx(base + 0.6)
    assert outcome.training.means == pytest.approx((4.6, 5.6)) and outcome.training.sd == pytest.approx(np.sqrt(0.5))
    assert outcome.sampling.means == pytest.approx((5.0, 5.1, 5.2)) and outcome.sampling.sd == pytest.approx(0.1)
    assert outcome.qoe.n == 10


def test_sessions_of_one_unit_are_averaged_before_the_interval():
    who = [contender("netllm", NETLLM), contender("bba")]
    found = analysis({"netllm": [1, 3, 5, 7, 9, 11], "bba": [0] * 6}, who, units="aabbcc").settings[0]
    assert found.outcomes["netllm"].qoe.n == 3
    assert found.outcomes["netllm"].by_unit.tolist() == [2, 6, 10]
    assert found.against("bba").estimate.n == 3


def test_what_was_measured_together_is_the_unit_of_intervals_and_p_values_but_not_of_means():
    who = [contender("netllm", NETLLM), contender("bba")]
    played = {"netllm": [1, 1, 1, 1, 2, 3], "bba": [0] * 6}
    together, apart = (
        analysis(played, who, units="abcdef", groups=groups).settings[0] for groups in (["x"] * 4 + ["y", "z"], list("uvwxyz"))
    )
    for found in (together.against("bba").estimate, together.outcomes["netllm"].qoe):
        assert found.n == 6 and found.clusters == 3 and found.mean == pytest.approx(1.5)
        assert found.half_width > apart.against("bba").estimate.half_width
    assert together.against("bba").p > apart.against("bba").p
    assert together.share("netllm").clusters == 3


def test_ablations_are_measured_against_their_reference_and_adjusted_apart():
    base = np.arange(10.0)
    who = [contender("netllm", NETLLM), contender("bba"), *(contender(name, NETLLM, ABLATION, 2) for name in ("full", "no lora"))]
    two = {(member, 0): base + 0.02 * member for member in (0, 1)}
    less = {key: row - 0.5 for key, row in two.items()}
    found = analysis({"netllm": base, "bba": base, "full": two, "no lora": less}, who, reference="full")
    assert found.comparisons == found.ablation_comparisons == 1
    (ablation,) = found.settings[0].ablations
    assert (ablation.a, ablation.b, ablation.verdict) == ("no lora", "full", "worse")
    assert ablation.estimate.mean == pytest.approx(-0.5)
    assert [each.b for each in found.settings[0].differences] == ["bba"]
    rows = [line for line in ablation_table(found) if line.startswith("| toy")]
    assert [row.split(" | ")[1] for row in rows] == ["full", "no lora"], "the reference's own values come first"
    assert rows[0].startswith("| toy | full | 4.510 ± ") and rows[0].endswith(
        " | 2, 0.014 | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} |"
    )


def test_an_ablation_is_no_clearer_than_its_training_seeds():
    """Every trace says 0.1 less, but seeds lie 0.1 apart: more seeds could say otherwise."""
    base, wobble = np.arange(10.0), 0.01 * np.array([1, -1] * 5)
    who = [contender("netllm", NETLLM), *(contender(name, NETLLM, ABLATION, 2) for name in ("full", "less", "much less"))]
    who.append(contender("once", NETLLM, ABLATION))
    played = {"netllm": base, "full": {(0, 0): base, (1, 0): base + 0.01}, "less": {(0, 0): base - 0.05, (1, 0): base - 0.15 + wobble}}
    played |= {"much less": {(0, 0): base - 1, (1, 0): base - 1.01}, "once": base - 0.1 + wobble}
    found = {each.a: each for each in analysis(played, who, reference="full").settings[0].ablations}
    assert {name: each.verdict for name, each in found.items()} == {"less": "not clear", "much less": "worse", "once": "not clear"}
    assert found["less"].losses == 10 and found["less"].estimate.ci95[0] < 0 < found["less"].estimate.ci95[1]
    assert found["less"].estimate.freedom < 2 and found["less"].p > 0.05


def test_ablations_of_one_seed_each_have_no_verdict_and_the_page_says_why():
    base = np.linspace(0.5, 1.5, 10)
    who = [contender("netllm", NETLLM), contender("no lora", NETLLM, ABLATION)]
    found = analysis({"netllm": base, "no lora": base - 0.5}, who)
    (each,) = found.settings[0].ablations
    assert (each.estimate.mean, each.estimate.ci95, each.p, each.p_holm, each.verdict) == (
        pytest.approx(-0.5),
        None,
        None,
        None,
        "not clear",
    )
    facts = header([each.prepared for each in found.settings], who, 1, False, (), {each.name: 1.0 for each in who})
    assert "Where no variant has several seeds there is neither" in ablations_document(found, facts)
    assert "Where none has several there is no interval" in render(found, facts)


def test_ablations_have_a_page_of_their_own():
    base = np.arange(10.0)
    who = [contender("netllm", NETLLM), contender("bba"), contender("no lora", NETLLM, ABLATION)]
    found = analysis({"netllm": base, "bba": base - 1, "no lora": base - 0.5}, who)
    facts = header([each.prepared for each in found.settings], who, 1, False, (), {})
    page, ablations = document(found, facts), ablations_document(found, facts)
    assert "no lora" not in page and "| toy | `bba` |" in page
    assert "`bba`" not in ablations and "| toy | no lora | 4.000 ± " in ablations and "minus `netllm`" in ablations


def test_the_commands_that_trained_ablations_are_told_row_by_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    who = [contender("netllm", NETLLM), *(contender(name, NETLLM, ABLATION, 2) for name in ("full", "few, no LoRA"))]
    for i, (folder, change) in enumerate((("out", "reference"), ("few", "no-lora")), start=1):
        made = [tmp_path / "results" / folder / f"{change}-{seed}" / "adapter" for seed in (1, 2)]
        for seed, path in enumerate(made, start=1):
            path.mkdir(parents=True)
            told = {"trained": {"command": f"scripts/ablate abr --seeds {seed} --names reference no-lora --steps {i}"}}
            (path / "netllm.json").write_text(json.dumps(told))
        members = tuple(replace(member, weights=(path,)) for member, path in zip(who[i].members, made, strict=True))
        who[i] = replace(who[i], members=members)
    two = {(member, 0): np.arange(10.0) + member for member in (0, 1)}
    lines = trainings(analysis({"netllm": np.arange(10.0), "full": two, "few, no LoRA": two}, who, reference="full"))
    assert lines[3:] == [
        "| full | `reference`: nothing but what the command says "
        "| `scripts/ablate abr --names reference --seeds 1 2 --out results/out --steps 1` |",
        "| few, no LoRA | `no-lora`: no LoRA: the backbone is what it was "
        "| `scripts/ablate abr --names no-lora --seeds 1 2 --out results/few --steps 2` |",
    ]
    assert trainings(analysis({"netllm": np.arange(10.0)}, who[:1])) == []


def test_who_can_not_play_is_left_out_of_means_and_named():
    who = [contender("netllm", NETLLM), contender("bba"), contender("mpc")]
    cells = {("toy", name, 0, 0): cell(*range(10)) for name in ("netllm", "bba", OPTIMUM)}
    cells["toy", "mpc", 0, 0] = Cell((), refused="five levels")
    found = analyse([prepared(list("abcdefghij"))], who, cells, "netllm").settings[0]
    assert found.refused == {"mpc": "five levels"} and "mpc" not in found.outcomes
    assert [each.b for each in found.differences] == ["bba"]


@pytest.mark.parametrize(
    ("shift", "word"), [(0.5, "better than the strongest rule there, BBA"), (-0.5, "worse than"), (0.0, "is not clear")]
)
def test_the_finding_says_no_more_than_the_intervals(shift, word):
    base = np.arange(10.0)
    wobble = 0.01 * np.array([1, -1] * 5)
    said = finding(analysis({"netllm": base + shift + wobble, "bba": base}, [contender("netllm", NETLLM), contender("bba")]))
    assert word in said and "% of the offline optimum" in said


def test_the_finding_tells_how_other_settings_went():
    base = np.arange(10.0)
    who = [contender("netllm", NETLLM), contender("bba")]
    settings = [replace(SETTING, name=name) for name in ("default", "far", "near")]
    cells = {}
    for setting, shift in zip(settings, (0.5, -0.5, 0.0), strict=True):
        cells |= {(setting.name, name, 0, 0): cell(*row) for name, row in (("netllm", base + shift), ("bba", base), (OPTIMUM, base + 9))}
    said = finding(analyse([prepared(list("abcdefghij"), setting=each) for each in settings], who, cells, "netllm"))
    assert said.endswith("Against the strongest rule of each other setting it is worse in far; not clear in near.")


def test_p_values_are_adjusted_within_a_setting_not_over_settings():
    rng = np.random.default_rng(7)
    own, weak = rng.normal(0, 1, 10), rng.normal(0.9, 1, 10)
    who = [contender("netllm", NETLLM), contender("bba"), contender("mpc")]
    settings = [replace(SETTING, name=f"setting {i}") for i in range(5)]
    cells = {}
    for setting in settings:
        rows = (("netllm", own), ("bba", own - weak), ("mpc", own - weak[::-1]), (OPTIMUM, own + 9))
        cells |= {(setting.name, name, 0, 0): cell(*row) for name, row in rows}
    found = analyse([prepared(list("abcdefghij"), setting=each) for each in settings], who, cells, "netllm")
    assert found.comparisons == 10
    for result in found.settings:
        assert [each.p_holm for each in result.differences] == stats.holm([each.p for each in result.differences])
