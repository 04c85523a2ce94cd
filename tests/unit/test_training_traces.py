"""What may be trained on: nothing is called free of leaks that was compared with nothing."""

from pathlib import Path

import pytest

from testbed.errors import UserError
from traces import training
from traces.store import TraceSet
from traces.trace import RateTrace
from traces.training import Sources, load_sources, validation


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No catalogued split can be had."""
    monkeypatch.setattr(training, "find_or_fetch", lambda entry, split: (None, "no network"))


def stored(name: str, source: str = "store") -> TraceSet:
    """A train split."""
    traces = tuple(RateTrace(f"{name}{i}", (0.0, 60.0), (1e6 + i,)) for i in range(4))
    return TraceSet(name, "train", source, traces, "0" * 64, f"{name}/train is modelled, not measured" if source == "model" else "")


@pytest.mark.usefixtures("lacking")
def test_a_set_without_its_test_split_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "resolve", stored)
    with pytest.raises(UserError, match="norway/test is not on this machine .no network., wanted it there for training on norway"):
        load_sources(["norway"])


@pytest.mark.usefixtures("lacking")
def test_nor_validated_without_its_validation_split() -> None:
    sources = Sources(stored("fcc").traces, (), ({"name": "fcc", "source": "store"},))
    with pytest.raises(UserError, match="fcc/valid is not on this machine"):
        validation(sources, count=1)


def test_modelled_traces_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "resolve", lambda name: stored(name, "model"))
    with pytest.raises(UserError, match="fcc/train is modelled, not measured, wanted the measured ones"):
        load_sources(["fcc"])


@pytest.mark.usefixtures("lacking")
def test_traces_of_ones_own_are_trained_on_without_any_data_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        (tmp_path / f"mine{i}").write_text("".join(f"{t}\t{1 + (t * (i + 3)) % 7}\n" for t in range(0, 65, 5)))
    sources = load_sources([str(tmp_path)])
    assert [each["source"] for each in sources.sets] == ["path"]
    assert {each.family for each in validation(sources, count=2)} == {"held_out", "synthetic"}
    said = capsys.readouterr().err
    for split in ("fcc/test", "norway/test", "fcc/valid"):
        assert f"note: {split} is not on this machine (no network)" in said
