"""The cost of the two types: turns, ratios within repetitions, and the works themselves on their adapters."""

import subprocess
import sys

import pytest

from netllm.backbone import DEFAULT_DTYPE
from netllm.bench import dtypes
from netllm.bench.dtypes import DtypesSettings
from testbed.bench import command
from testbed.errors import UserError


def test_types_take_turns_and_ratios_are_taken_within_a_repetition(monkeypatch, tmp_path):
    done = []
    costs_s = {"bfloat16": iter([9.0, 2.0, 8.0]), "float32": iter([9.0, 1.0, 2.0])}  # the first is not counted
    now_s = [0.0]

    def make(dtype):
        def work():
            done.append(dtype)
            now_s[0] += next(costs_s[dtype])
            return 10

        return work

    monkeypatch.setattr(dtypes, "WORKS", {"a decision": make})
    monkeypatch.setattr(dtypes, "cpu_s", lambda: now_s[0])
    text = dtypes.dtypes(DtypesSettings(repetitions=2, write=tmp_path / "page.md"))
    assert done == ["bfloat16", "float32"] * 3
    assert "| a decision | 500.00 (200.00 to 800.00) | 150.00 (100.00 to 200.00) | 3.00 (2.00 to 4.00) |" in text
    assert f"the default here is {DEFAULT_DTYPE}." in text
    assert (tmp_path / "page.md").read_text() == text


@pytest.mark.parametrize("work", dtypes.WORKS)
def test_each_work_is_done(work, monkeypatch):
    monkeypatch.setattr(dtypes, "TOGETHER", 2)
    monkeypatch.setattr(dtypes, "LIVE", 2)
    monkeypatch.setattr(dtypes, "LEARNT", 1)
    assert dtypes.WORKS[work](DEFAULT_DTYPE)() > 0


def test_no_repetition_is_refused():
    with pytest.raises(UserError, match="0 repetitions are asked for, wanted at least 1"):
        DtypesSettings(repetitions=0)


def test_it_is_a_process_of_its_own():
    """`scripts/bench dtypes` replaces its process, so that nothing of the testbed loads a language model."""
    code = "import sys; from testbed.bench.command import command; sys.exit(command(['dtypes', '--repetitions', '0']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "0 repetitions are asked for, wanted at least 1\n")
    assert "dtypes" in command.BENCHMARKS
