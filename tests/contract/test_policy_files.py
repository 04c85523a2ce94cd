"""A user's policy on the command line: what it prints, answers, raises or never answers, from `main` to the result folder."""

import hashlib
import json
import os
from pathlib import Path

import polars
import pytest

from testbed import policycards, simulation
from testbed.cli import main

MINE = """
import sys, threading
import numpy as np
from controllers.api import AbrPolicy

class Mine(AbrPolicy):
    label = "Mine"
    def decide(self, observation):
        return 1
"""


def run(folder: Path, content: str, *arguments: str) -> tuple[int, Path]:
    (folder / "mine.py").write_text(content)
    (folder / "steady.txt").write_text("".join(f"{second} 2\n" for second in range(301)))
    out = str(folder / "results")
    given = ["--simulate", "--trace", str(folder / "steady.txt"), "--policies", f"bba,{folder}/mine.py", "--chunks", "5", "--out", out]
    return main([*given, *arguments]), folder / "results" / "latest"


def test_a_run_says_which_file_a_policy_was(tmp_path: Path) -> None:
    _, latest = run(tmp_path, MINE)
    policies = json.loads((latest / "summary.json").read_text())["policies"]
    mine = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert {name: each["source_sha256"] for name, each in policies.items()} == {"bba": None, "mine": mine}
    assert policies["mine"]["source_sha256"][:12] in (latest / "report.html").read_text()


@pytest.mark.parametrize("answer", ["np.int64(1)", "True", "print('x' * 100_000) or sys.stdin.read() or 1"])
def test_a_policy_may_answer_any_integer_and_print(tmp_path: Path, answer: str) -> None:
    code, latest = run(tmp_path, "print('hello')\n" + MINE.replace("return 1", f"return {answer}"))
    rows = polars.read_parquet(latest / "trials.parquet")
    assert (code, rows["valid"].to_list(), rows["decisions"].to_list()) == (0, [True, True], [4, 4])
    assert json.loads((latest / "summary.json").read_text())["policies"]["mine"]["decisions"] == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1.0", "ended early: policy answered 1.0, wanted a level of 0 to 5"),
        ("None", "ended early: policy answered None, wanted a level of 0 to 5"),
        ("-1", "ended early: policy answered -1, wanted a level of 0 to 5"),
        ("sys.exit()", "ended early: policy raised SystemExit:  (mine.py:9)"),
        ("threading.Event().wait()", "ended early: policy did not answer for 3 s"),
    ],
)
def test_a_policy_that_answers_no_level_has_invalid_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, reason: str
) -> None:
    monkeypatch.setattr(simulation, "SILENCE_S", 3.0)
    _, latest = run(tmp_path, MINE.replace("return 1", f"return {answer}"), "--trials", "2")
    rows = polars.read_parquet(latest / "trials.parquet").filter(polars.col("policy") == "mine")
    assert rows["valid"].to_list() == [False]
    assert rows["invalid_reason"][0].startswith(reason)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{MINE}    def __init__(self):\n        sys.stderr.write('noise'); raise OSError('no\\nfile')\n", ["no file (mine.py:11)"]),
        (MINE + "    def reset(self, session, seed):\n        raise KeyError(session.chunks)\n", ["raised KeyError: 5 (mine.py:11)"]),
        (MINE.replace('"Mine"', "5"), ["policy 'mine': label is 5, wanted a text"]),
        (MINE + '    colour = "orange"\n', ["policy 'mine': colour is 'orange', wanted #rrggbb"]),
        (MINE + "    def reset(self):\n        pass\n", ["raised TypeError", "reset()"]),
        ("import threading\nthreading.Event().wait()\n", ["mine.py", "took over 2 s"]),
    ],
    ids=[
        "can't be made",
        "can't be reset",
        "has a label that is none",
        "has a colour that no page shows",
        "has another reset",
        "never ends its import",
    ],
)
def test_a_policy_that_can_not_start_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str, words: list[str]
) -> None:
    monkeypatch.setattr(policycards, "LOAD_S", 2.0 if "wait()" in content else 60.0)
    code, latest = run(tmp_path, content)
    said = capsys.readouterr().err
    assert (code, said.count("\n"), os.path.lexists(latest)) == (2, 1, False), said
    for word in words:
        assert word in said


def test_a_helper_that_a_policy_starts_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the process's standard error, and may outlive it."""
    monkeypatch.setattr(policycards, "LOAD_S", 20.0)
    helper = "    def reset(self, session, seed):\n        import subprocess; subprocess.Popen(['sleep', '30'])\n"
    assert run(tmp_path, MINE + helper)[0] == 0


def test_where_every_policy_fails_the_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alone.py").write_text(MINE.replace("return 1", "raise ValueError('no')"))
    code, latest = run(tmp_path, MINE, "--policies", f"{tmp_path}/alone.py")
    told = capsys.readouterr()
    assert code == 1 and "failed: every policy failed" in told.err
    assert "alone has no mean, for it failed in 1 of 1 trials" in " ".join(told.out.split()) and (latest / "report.html").is_file()


def test_a_home_in_the_results_place_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    code, _ = run(tmp_path, MINE, "--out", "~/found")
    assert code == 0 and (tmp_path / "home" / "found" / "latest" / "trials.parquet").is_file() and not (tmp_path / "~").exists()


def test_numbers_are_whole_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long name is folded before a number is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    named = MINE.replace("    label", "    def __init__(self, an_option_with_a_long_name: int = 1):\n        pass\n    label")
    code, latest = run(tmp_path, named, "--policies", f"{tmp_path}/mine.py+an_option_with_a_long_name=2,bba")
    told, mean = capsys.readouterr().out, json.loads((latest / "summary.json").read_text())["policies"]["bba"]["mean"]
    assert code == 0 and f"{mean:.2f}" in told and "\N{HORIZONTAL ELLIPSIS}" not in told
    assert f"results: {latest.resolve()}" in told
