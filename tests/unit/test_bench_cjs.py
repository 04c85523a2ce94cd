"""The scheduling simulator's benchmark: what it refuses, when it says nothing, and that it plays."""

from pathlib import Path

import pytest

from testbed.bench.cjs_reference import Played
from testbed.bench.cjs_sim import CjsSimSettings, agree, cjs_sim, page
from testbed.bench.command import command
from testbed.errors import TestbedError, UserError
from traces.tpch import load_profiles

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["cjs-sim", "--reference", str(tmp_path)]) == 2
    assert "wanted a checkout of NetLLM" in capsys.readouterr().err
    with pytest.raises(UserError, match="0 jobs"):
        CjsSimSettings(jobs=0)
    with pytest.raises(UserError, match="0 seeds"):
        CjsSimSettings(seeds=())


def test_simulators_that_do_not_play_the_same_are_not_reported() -> None:
    agree({"plain": [1.0, 2.0], "compiled": [1.0, 2.0], "NetLLM's simulator": [1.02, 2.01]})
    with pytest.raises(TestbedError, match="plain and compiled differ"):
        agree({"plain": [1.0], "compiled": [1.0000001]})
    with pytest.raises(TestbedError, match="more than 3%"):
        agree({"plain": [1.0], "compiled": [1.0], "NetLLM's simulator": [1.04]})


def test_the_page_has_ratios_within_repetitions() -> None:
    """Twice and three times the pace of plain Python: 2.5 in the middle."""
    runs = {
        "compiled": [[Played(100, 5.0, 0.5, 0.1)], [Played(100, 5.0, 1.0, 0.1)]],
        "plain": [[Played(100, 5.0, 1.0, 0.2)], [Played(100, 5.0, 3.0, 0.2)]],
    }
    text = page(runs, CjsSimSettings())
    assert "| compiled | 5.0 | 100 | 150 (100 to 200) | 2.5 (2.0 to 3.0) | 0.100 |" in text
    assert "| plain | 5.0 | 100 | 67 (33 to 100) | 1.0 (1.0 to 1.0) | 0.200 |" in text


def test_it_measures_and_writes(tmp_path: Path) -> None:
    try:
        load_profiles()
    except UserError as error:
        pytest.skip(str(error))
    text = cjs_sim(CjsSimSettings(executors=4, jobs=4, seeds=(1,), repetitions=1, write=tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == text
    assert all(f"| {name} |" in text for name in ("compiled", "plain", "compiled, conserving rules"))
