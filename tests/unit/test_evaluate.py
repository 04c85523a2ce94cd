"""An evaluation as a user runs it: what it writes, that it goes on where it stopped, and how it takes a user's mistakes."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from controllers.abr.bba import BBA
from controllers.loader import discover, load
from netllm.abr.suite import play as playing
from netllm.abr.suite.markdown import card, document
from netllm.abr.suite.run import EvaluateSettings, test
from netllm.abr.suite.settings import chosen, prepare
from netllm.adapter import new_model, save_adapter
from netllm.command import evaluate_command
from netllm.lora import LoraSettings
from netllm.tasks.vp import VpTask
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.sim.abr import run_session
from testbed.sim.optimum import offline_optimum
from tests.unit.test_netllm_experience import write_trace
from tests.unit.tiny_models import lively, save_tiny

torch.set_num_threads(1)
QUIET = Console(quiet=True)
measure = test
del test  # pytest would take it for one
TRACES = 3

POLICIES = """
from controllers.api import AbrPolicy

class Dice(AbrPolicy):
    label, colour = "Dice", "#123456"
    def decide(self, observation):
        return int(self.rng.integers(observation.video.levels))

class Picky(AbrPolicy):
    label = "Picky"
    def reset(self, session, seed):
        from testbed.errors import UserError
        raise UserError("policy picky: six levels are too many, wanted five")
    def decide(self, observation):
        return 0

class Broken(AbrPolicy):
    def decide(self, observation):
        return [][0]

class Trained(AbrPolicy):
    label = "Trained"
    def __init__(self, weights: str = ""):
        self.level = int(weights or 1)
    def decide(self, observation):
        return self.level
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def traces(tmp_path):
    """Names the setting: three traces of the user's own with the synthetic video."""
    folder = tmp_path / "traces"
    folder.mkdir()
    for number in range(TRACES):
        write_trace(folder / f"mine_{number}", number)
    return f"{folder}@synthetic"


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(POLICIES)
    return path


@pytest.fixture
def settings(tmp_path, traces):
    return EvaluateSettings(settings=(traces,), policies=("bba", "rate"), out=tmp_path / "out", samples=4)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of two tiny adapters and of their language model."""
    llm = save_tiny(tmp_path_factory.mktemp("llm"))
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        save_adapter(lively(llm, seed, name=f"evaluated {seed}"), folder, {"trained": {"experience": {"settings": {"videos": ["video2"]}}}})
        folders.append(str(folder))
    return str(llm), folders


def test_it_writes_every_session_and_every_number(settings, traces):
    analysis = measure(settings, QUIET)
    rows = pl.read_parquet(settings.out / "results.parquet")
    assert rows["policy"].unique(maintain_order=True).to_list() == ["optimum", "bba", "rate"] and len(rows) == 3 * TRACES
    prepared = prepare(chosen([traces])[0])
    for playback, row in zip(prepared.playbacks, rows.filter(pl.col("policy") == "bba").to_dicts(), strict=True):
        expected = summarise(run_session(playback.trace, prepared.session, BBA(), 0), prepared.session.video)
        assert (row["trace"], row["trace_sha256"]) == (playback.trace.name, playback.trace.sha256)
        assert (row["qoe"], row["rebuffer_s"], row["startup_s"]) == (expected.qoe, expected.rebuffer_s, expected.startup_s)
        assert row["optimum"] == offline_optimum(playback.trace, prepared.session) >= row["qoe"]
        assert row["qoe"] == pytest.approx(row["bitrate_mbps"] - 4.3 * row["rebuffer_s"] - row["switch_mbps"])
    header = json.loads(pl.read_parquet_metadata(settings.out / "results.parquet")["netllm"])
    assert header["sets"][0]["sha256"] and header["commit"] and header["versions"]["python"] and header["samples"] == 4
    summary = json.loads((settings.out / "summary.json").read_text())
    assert summary["settings"][traces]["policies"]["bba"]["qoe"]["mean"] == pytest.approx(analysis.settings[0].outcomes["bba"].qoe.mean)
    assert summary["main"] == "bba" and summary["comparisons"] == 1
    assert not list(settings.out.glob(".*"))


def test_done_sessions_are_kept_and_changed_ones_played_again(settings, traces, mine, monkeypatch):
    settings = replace(settings, policies=("bba", f"{mine}:Trained+weights=1"))
    first = measure(settings, QUIET)
    played = []
    monkeypatch.setattr(playing, "play", lambda task, play=playing.play: played.append(task.policy) or play(task))
    assert measure(settings, QUIET).settings[0].outcomes["bba"].qoe == first.settings[0].outcomes["bba"].qoe and played == []
    measure(replace(settings, policies=("bba", f"{mine}:Trained+weights=2")), QUIET)
    assert [name.rpartition("=")[2] for name in played] == ["2"]
    mine.write_text(POLICIES + "CHANGED = True\n")
    measure(settings, QUIET)
    assert len(played) == 2
    for cell in (settings.out / "cells").glob("*bba*"):
        cell.write_bytes(cell.read_bytes()[:100])
    measure(settings, QUIET)
    assert played[2:] == ["bba"], "a file cut short is played again"


def test_ctrl_c_keeps_what_is_done(settings, monkeypatch, capsys):
    arguments = ["abr", "--settings", *settings.settings, "--policies", "bba", "rate", "--out", str(settings.out)]

    def cut(task, play=playing.play):
        if task.policy == "rate":
            raise KeyboardInterrupt
        return play(task)

    monkeypatch.setattr(playing, "play", cut)
    assert evaluate_command(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(path.name.split("--")[1] for path in (settings.out / "cells").iterdir()) == ["bba", "optimum"]
    monkeypatch.undo()
    assert evaluate_command(arguments) == 0


def test_a_policy_that_draws_numbers_is_played_with_every_seed_and_others_once(settings, mine):
    analysis = measure(replace(settings, policies=("bba", f"{mine}:Dice")), QUIET)
    rows = pl.read_parquet(settings.out / "results.parquet")
    seeds = {name: rows.filter(pl.col("policy") == name)["seed"].unique().to_list() for name in ("bba", "mine:Dice")}
    assert seeds == {"bba": [0], "mine:Dice": [0, 1, 2, 3]}
    outcome = analysis.settings[0].outcomes["mine:Dice"]
    assert len(outcome.sampling.means) == 4 and outcome.sampling.sd > 0 and outcome.qoe.n == TRACES
    by_trace = rows.filter(pl.col("policy") == "mine:Dice").group_by("trace", maintain_order=True).agg(pl.col("qoe").mean())
    np.testing.assert_allclose(outcome.by_unit, by_trace["qoe"])


def test_a_family_is_the_mean_of_its_training_seeds(settings, mine):
    family = f"trained={mine}:Trained,{mine}:Trained+weights=2,{mine}:Trained+weights=0"
    outcome = measure(replace(settings, policies=("bba", family)), QUIET).settings[0].outcomes["trained"]
    assert outcome.contender.kind == "learned" and len(outcome.training.means) == 3
    assert outcome.qoe.mean == pytest.approx(np.mean(outcome.training.means))


def test_processes_give_what_one_gives(settings):
    alone = measure(settings, QUIET).settings[0]
    together = measure(replace(settings, processes=2, out=settings.out.with_name("two")), QUIET).settings[0]
    for name in ("bba", "rate"):
        np.testing.assert_array_equal(alone.outcomes[name].sessions, together.outcomes[name].sessions)


def test_a_language_model_decides_together_as_it_does_alone(settings, traces, adapters):
    llm, (folder, _) = adapters
    own = replace(settings, policies=("bba", "netllm"), adapter=folder, llm=llm, dtype="float32")
    analysis = measure(own, QUIET)
    assert analysis.main == "netllm", "the language model is the main policy, whatever the order"
    prepared = prepare(chosen([traces])[0])
    policy = analysis.named("netllm").members[0].make()
    alone = [summarise(run_session(each.trace, prepared.session, policy, 0), prepared.session.video).qoe for each in prepared.playbacks]
    np.testing.assert_allclose(analysis.settings[0].outcomes["netllm"].by_unit, alone)


def test_ablations_stand_against_their_reference_with_their_seeds(settings, traces, adapters):
    llm, (one, two) = adapters
    asked = (f"full={one},{two}", f"less={two}")
    analysis = measure(replace(settings, adapters=asked, reference="full", llm=llm, dtype="float32"), QUIET)
    (found,) = analysis.settings[0].ablations
    assert (found.a, found.b) == ("less", "full")
    seeds = analysis.settings[0].outcomes["full"].training
    assert len(seeds.means) == 2
    assert found.estimate.mean == pytest.approx(seeds.means[1] - np.mean(seeds.means))
    page = (settings.out / "report.html").read_text()
    assert "Ablations" in page and "less" in page


def test_a_video_trained_on_is_not_called_unseen(settings, adapters):
    from netllm.abr.suite.contenders import contenders
    from netllm.abr.suite.header import header

    llm, (folder, _) = adapters
    who, _ = contenders(("netllm",), (), folder, llm)
    prepared = prepare(replace(chosen(settings.settings)[0], video="synthetic", unseen="the video"))
    assert header([prepared], who, 1, False, (), {}).notes == ()
    seen = replace(prepared, setting=replace(prepared.setting, video="video2"))
    assert "trained on video2 too" in header([seen], who, 1, False, (), {}).notes[0]


def test_who_refuses_a_setting_is_named_not_counted(settings, mine):
    analysis = measure(replace(settings, policies=("bba", f"{mine}:Picky")), QUIET)
    assert "six levels are too many" in analysis.settings[0].refused["mine:Picky"]
    assert "six levels are too many" in (settings.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("policies", "main"),
    [(("bba",), "bba"), (("netllm+adapter={two}", "netllm"), "netllm+adapter="), (("both=netllm,netllm+adapter={two}",), "both")],
)
def test_no_other_policy_s_results_go_into_an_adapter_s_card(settings, adapters, monkeypatch, policies, main):
    monkeypatch.setattr("netllm.abr.suite.run.SETTINGS", settings.settings)
    llm, (one, two) = adapters
    asked = replace(settings, policies=tuple(each.format(two=two) for each in policies), adapter=Path(one), llm=llm, card=True)
    with pytest.raises(UserError, match=f"--card is for the card of adapter {one}, seen {re.escape(main)}.* as the main policy"):
        measure(asked, QUIET)
    assert not (Path(one) / "README.md").exists() and not settings.out.exists()


def test_the_results_of_an_adapter_go_into_its_own_card(settings, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr("netllm.abr.suite.run.SETTINGS", settings.settings)
    llm, (one, _) = adapters
    own = Path(shutil.copytree(one, tmp_path / "own"))
    (own / "README.md").write_text("<!-- results --><!-- end of results -->")
    asked = (f"netllm+adapter={own}+llm={llm}+dtype=float32", "bba")
    measure(replace(settings, policies=asked, adapter=own, card=True), QUIET)
    assert f"`netllm+adapter={own}" in (own / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--policies", "{mine}:Broken"),
            r"policy 'mine:Broken' failed on setting .*, trace mine_0: it raised IndexError: .*\(mine.py:\d+\)",
        ),
        (("--policies", "bab"), "policy 'bab' is unknown, did you mean bba"),
        (("--policies", "bba", "bba"), "policy 'bba' is given twice, wanted each name once"),
        (("--policies", "both=bba,pensieve"), "family 'both' holds policies of the kinds learned, rule, wanted one kind"),
        (("--adapters", "no-lora"), "adapters 'no-lora': name or folder is missing, wanted NAME=FOLDER"),
        (("--adapters", "a=/nowhere"), "adapters 'a=/nowhere': /nowhere is no folder, wanted one made by scripts/adapt"),
        (("--policies", "netllm+adapter={mine}"), "adapter .*mine.py: has no netllm.json, wanted a folder made by scripts/adapt"),
        (("--policies", "bba", "netllm", "--llm", "./nowhere"), "language model ./nowhere: no such folder"),
        (("--policies", "bba", "netllm", "--llm", "nowhere"), "language model nowhere can't be loaded"),
        (("--policies", "bba", "netllm", "--dtype", "int8"), "dtype 'int8' is unknown, wanted one of bfloat16, float32"),
        (("--llm", "./nowhere"), "--llm is ./nowhere, wanted nothing, or netllm without options among the policies: they are bba"),
        (("--adapter", "./mine"), "--adapter is mine, wanted nothing, or netllm"),
        (("--reference", "none"), "--reference is none, wanted nothing without --adapters"),
        (("--settings", "moon"), "setting 'moon' is unknown"),
        (("--samples", "0"), "--samples is 0, wanted at least 1"),
        (("--figures", "bmp"), "--figures is bmp, wanted one of pdf, png, svg"),
        (("--quick", "--card"), "--quick is no result, wanted without --write and --card"),
        (
            ("--settings", "default", "fcc/valid@video1", "--write"),
            "--write and --card are for test traces, seen --settings fcc/valid@video1",
        ),
        (("--out", "{mine}"), "mine.py: is a file, wanted a folder for the results"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(settings, mine, capsys, more, said):
    arguments = ["abr", "--settings", *settings.settings, "--policies", "bba", "--out", str(settings.out)]
    assert evaluate_command([*arguments, *(part.format(mine=mine) for part in more)]) == 2
    printed = capsys.readouterr().err
    assert re.search(said, printed) and printed.count("\n") == 1
    if "Broken" not in said:
        assert not settings.out.exists(), "something was played before the mistake was told"


def test_an_adapter_of_another_task_is_refused_by_name(settings, adapters, tmp_path):
    llm, _ = adapters
    save_adapter(new_model(llm, "float32", VpTask(hidden=16), LoraSettings(rank=4), "moving"), tmp_path / "moving", {})
    with pytest.raises(UserError, match="policy 'moving': its adapter is for task vp, wanted abr"):
        measure(replace(settings, adapters=(f"moving={tmp_path / 'moving'}",), reference="moving", llm=llm, dtype="float32"), QUIET)


def test_an_unknown_task_is_exit_code_2(capsys):
    assert evaluate_command(["chess"]) == 2
    assert capsys.readouterr().err == "scripts/evaluate: task 'chess' is unknown, wanted one of abr, cjs, vp\n"


def test_the_report_fetches_nothing_and_the_documents_say_what_was_done(settings):
    analysis = measure(replace(settings, figures="svg"), QUIET)
    page = (settings.out / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"|url\(|@import", page)
    figures = sorted(path.name for path in (settings.out / "figures").iterdir())
    assert figures == ["qoe_by_setting.svg", "qoe_cdf.svg", "qoe_difference.svg"]
    facts = header_of(settings)
    for text in (document(analysis, facts), card(analysis, facts)):
        for wanted in ("sha256", "±", "`bba`", "`rate`", "offline optimum", facts.commit):
            assert wanted in text
        columns = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        assert columns and all(count > 2 for count in columns)


def header_of(settings):
    from netllm.abr.suite.header import Header

    told = json.loads(pl.read_parquet_metadata(settings.out / "results.parquet")["netllm"])
    return Header(**told)


def test_a_command_names_no_folder_of_this_machine(monkeypatch):
    from netllm.evaluation.origin import origin

    asked = ["abr", "--adapters", "a=/some/where/one,/some/where/two", "--policies", "~/mine.py", "--settings", "fcc/valid@video1"]
    monkeypatch.setattr("sys.argv", ["scripts/evaluate", *asked])
    assert origin("")["command"] == "scripts/evaluate abr --adapters a=one,two --policies mine.py --settings fcc/valid@video1"


def test_no_two_policies_share_a_colour():
    colours = [load(name).colour for name in discover()]
    assert len(set(colours)) == len(colours)


def test_a_user_error_of_the_traces_is_told(settings):
    with pytest.raises(UserError, match="neither a catalogued set nor a file or folder"):
        measure(replace(settings, settings=("nowhere/at/all@synthetic",)), QUIET)


def test_ctrl_c_ends_the_processes_and_keeps_what_is_done(settings, mine):
    mine.write_text(POLICIES.replace("return [][0]", "import time; time.sleep(60)"))
    asked = ["abr", "--settings", *settings.settings, "--policies", "bba", f"{mine}:Broken", "--processes", "2", "--out", str(settings.out)]
    code = "import sys; from netllm.command import evaluate_command; sys.exit(evaluate_command(sys.argv[1:]))"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *asked], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True
    )
    cells = settings.out / "cells"
    while process.poll() is None and len(list(cells.glob("[!.]*"))) < 2:  # those of the optimum and of BBA
        select.select([], [], [], 0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted; the same command goes on from here\n")
    assert len(list(cells.iterdir())) == 2
