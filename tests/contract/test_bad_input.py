"""Bad input: one sentence (what, where, seen, wanted), exit code 2, nothing started and nothing left behind."""

import io
import sys
from pathlib import Path

import polars
import pytest

from testbed.cli import main

TABLE = [
    ("unknown trace", ["--trace", "fccc"], ["fccc", "did you mean fcc"]),
    ("unknown split", ["--trace", "fcc/tset"], ["tset", "test"]),
    ("unknown file of a set", ["--trace", "fcc/test:nothing"], ["nothing"]),
    ("missing trace file", ["--trace", "./nowhere.txt"], ["nowhere.txt"]),
    ("empty trace", ["--trace", "{empty}"], ["empty.txt"]),
    ("non-monotonic trace", ["--trace", "{backwards}"], ["backwards.txt:3:", "0.5"]),
    ("zero-rate trace", ["--trace", "{dead}"], ["dead.txt", "0"]),
    ("garbage as a trace", ["--trace", "{garbage}"], ["garbage.bin"]),
    ("folder without traces", ["--trace", "{folder}"], ["folder"]),
    ("unknown policy", ["--policies", "bbba"], ["bbba", "did you mean"]),
    ("unknown option of a policy", ["--policies", "fixed+levle=3"], ["levle", "level"]),
    ("bad option of a policy", ["--policies", "fixed+level=high"], ["level", "high", "whole number"]),
    ("one policy twice", ["--policies", "bba,bba"], ["each policy once"]),
    ("policy file with a syntax error", ["--policies", "{broken}"], ["broken.py:1", "syntax"]),
    ("policy file that raises", ["--policies", "{raising}"], ["raising.py:1", "ZeroDivisionError"]),
    ("policy file without a policy", ["--policies", "{barren}"], ["barren.py", "AbrPolicy"]),
    ("missing policy file", ["--policies", "./nowhere.py"], ["nowhere.py"]),
    ("missing language model", ["--policies", "netllm", "--llm", "{folder}/nowhere"], ["nowhere: no such folder"]),
    ("language model for no policy", ["--policies", "bba", "--llm", "x"], ["--llm is x, wanted nothing, or netllm", "they are bba"]),
    ("missing adapter", ["--policies", "netllm+adapter={folder}/nowhere"], ["nowhere"]),
    ("empty language model", ["--llm", ""], ["--llm is '', wanted a name or a folder"]),
    ("empty address", ["--task", "cjs", "--policies", "fair", "--cluster", " "], ["--cluster is ' ', wanted an address"]),
    ("unknown video", ["--video", "video9"], ["video9", "video1"]),
    ("too many chunks", ["--chunks", "49"], ["--chunks is 49, wanted 2 to 48"]),
    ("no number of trials", ["--trials", "0"], ["--trials is 0"]),
    ("not a time", ["--rtt-ms", "nan"], ["--rtt-ms is nan"]),
    ("queue below two packets", ["--queue", "10"], ["--queue is 10"]),
    ("negative offset", ["--offset-s", "-1"], ["--offset-s"]),
    ("unknown key in a spec", ["--spec", "{spec}"], ["unknown key 'chunkz'", "did you mean chunks"]),
    ("spec without a value", ["--spec"], ["--spec"]),
    ("unknown key that is not in a spec", ["--chunkz", "3"], ["--chunkz", "did you mean --chunks"]),
    ("no integers", ["--seeds", "1,a"], ["--seeds", "'1,a'"]),
    ("seed too large", ["--seeds", "99999999999999999999"], ["--seeds", "2^63"]),
    ("a name too long for a file", ["--out", "{folder}/" + "x" * 300], ["File name too long", "wanted a path that can be used"]),
    ("an option of another task", ["--executors", "5"], ["--executors is 5, wanted nothing: it is for --task cjs"]),
    ("results in a folder whose name is no UTF-8", ["--out", "{folder}/\udce9"], ["\\udce9", "no text in UTF-8"]),
    ("trace whose name is no UTF-8", ["--trace", "{odd}"], ["\\udce9.txt", "no text in UTF-8"]),
    ("results where a file is", ["--out", "{empty}"], ["empty.txt is a file, wanted a folder"]),
    ("unknown command", ["reprot"], ["reprot", "did you mean report"]),
    ("report of no result folder", ["report", "{folder}"], ["folder", "not a result folder"]),
    *(
        (f"home of nobody for {before[0]}", [*before, f"~no_such_user/{name}"], [f"~no_such_user/{name}", "a user of this machine"])
        for before, name in (
            (["--trace"], "x"),
            (["--uplink"], "x"),
            (["--out"], "x"),
            (["--spec"], "experiment.toml"),
            (["--video"], "mine.json"),
            (["--policies"], "mine.py"),
            (["report"], "x"),
        )
    ),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Things that a user may hand in by mistake."""
    contents = {
        "empty": ("empty.txt", b""),
        "odd": ("\udce9.txt", b"0 1\n100 1\n"),
        "backwards": ("backwards.txt", b"0 1\n1 1\n0.5 1\n2 1\n"),
        "dead": ("dead.txt", b"0 0\n1 0\n2 0\n"),
        "garbage": ("garbage.bin", bytes(range(256))),
        "broken": ("broken.py", b"def ("),
        "raising": ("raising.py", b"1 / 0\n"),
        "barren": ("barren.py", b"x = 1\n"),
        "spec": ("experiment.toml", b"chunkz = 3\n"),
    }
    places = {"folder": str(tmp_path / "folder")}
    (tmp_path / "folder").mkdir()
    for key, (name, content) in contents.items():
        (tmp_path / name).write_bytes(content)
        places[key] = str(tmp_path / name)
    return places


@pytest.mark.parametrize(("arguments", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str],
    arguments: list[str],
    wanted: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(**files) for argument in arguments]
    if given[0] not in ("report", "reprot") and given != ["--spec"]:
        given = ["--simulate", *([] if "--policies" in given else ["--policies", "bba"]), *given]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    for word in wanted:
        assert word in said
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "1,a"], "Error parsing --seeds: '1,a' is not a list of integers such as 1,2,3"),
        (["--chunkz", "3"], "Unrecognized options: --chunkz, 3; did you mean --chunks?"),
        (["--rtt-ms"], "Missing value for argument '--rtt-ms'. Expected 1 values."),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8"])
def test_one_sentence_whatever_the_terminal_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, encoding: str
) -> None:
    """Boxes are drawn otherwise, with rules between their paragraphs, where standard output isn't called utf-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert (main(["--simulate", *arguments]), capsys.readouterr().err) == (2, f"error: {said}\n")


def test_a_trace_that_ends_early_wraps_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "short.txt"
    trace.write_text("".join(f"{second} 2.5\n" for second in range(31)))
    assert main(["--simulate", "--trace", str(trace), "--policies", "bba", "--out", str(tmp_path / "results")]) == 0
    assert "shorter than the 192 s of video, so they wrap: short" in capsys.readouterr().out.replace("\n", " ")
    assert polars.read_parquet(tmp_path / "results" / "latest" / "trials.parquet")["trace_wraps"][0] >= 3
