"""By how much a player is late for want of a core: what its thread waited, where that moved a time of its account."""

from pathlib import Path

import pytest

from players import waits
from players.waits import Waits
from tests.unit.schedstat import Kernel


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_only_the_last_wake_up_before_a_time_makes_it_late(kernel: Kernel) -> None:
    late = Waits()
    for waited_ms in (40, 50, 60):
        kernel.wait(waited_ms)
        late.woke()
    kernel.wait(5)
    late.timed()
    assert late.counted_s == pytest.approx(0.065)
    late.timed()
    assert late.counted_s == pytest.approx(0.065)
    late.close()
    late.close()


def test_a_long_wait_counts_wherever_it_is(kernel: Kernel) -> None:
    late = Waits()
    for waited_ms in (1, 300, 1, 1):
        kernel.wait(waited_ms)
        late.woke()
    late.timed()
    assert late.counted_s == pytest.approx(0.301)


def test_where_the_kernel_does_not_tell_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "SCHEDSTAT", tmp_path / "none")
    late = Waits()
    late.woke()
    late.timed()
    assert late.counted_s == 0.0
    late.close()


def test_this_kernel_tells() -> None:
    late = Waits()
    late.timed()
    assert waits.SCHEDSTAT.exists() and late.counted_s >= 0.0
    late.close()
