"""What is read of the host's counters, on made-up /proc folders, and how a trial's share of it is found."""

import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from testbed.errors import TestbedError
from testbed.pressure import NO_STRAIN, Counters, Host, Sampler, between, strain
from testbed.records import HostRow

USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL = range(8)


def proc(folder: Path, ticks: list[int], waited_us: int | None = 1000, relay_ns: tuple[int, int] | None = None) -> Path:
    """A /proc with these counters; guest time (columns 9 and 10) is in user's already."""
    folder.mkdir(exist_ok=True)
    line = "cpu  " + " ".join(map(str, [*ticks, 7, 3]))
    (folder / "stat").write_text(f"{line}\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 99999 1 2 3\nctxt 1\n")
    if waited_us is not None:
        (folder / "pressure").mkdir(exist_ok=True)
        some = f"some avg10=1.00 avg60=2.00 avg300=3.00 total={waited_us}\n"
        (folder / "pressure" / "cpu").write_text(some + "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    if relay_ns:
        (folder / "42").mkdir(exist_ok=True)
        (folder / "42" / "schedstat").write_text(f"{relay_ns[0]} {relay_ns[1]} 12\n")
    return folder


def read(at_s: float, folder: Path) -> Counters:
    """The counters in a folder, of which 42 is the relay's process."""
    host = Host(42, folder)
    try:
        return host.read(at_s)
    finally:
        host.close()


def test_shares_are_those_of_the_kernels_counters(tmp_path: Path) -> None:
    before = read(10.0, proc(tmp_path, [100, 0, 50, 800, 30, 5, 5, 10], 2_000_000, (10**9, 10**8)))
    after = read(10.5, proc(tmp_path, [120, 4, 60, 840, 40, 6, 9, 21], 2_100_000, (10**9 + 5 * 10**7, 10**8 + 10**6)))
    row = between(before, after)
    assert row is not None
    assert (row.at_s, row.window_s) == (10.5, 0.5)
    assert row.busy_share == pytest.approx((20 + 4 + 10 + 1 + 4) / 100)
    assert row.steal_share == pytest.approx(11 / 100)
    assert row.cpu_pressure_share == pytest.approx(0.1 / 0.5)
    assert row.relay_busy_share == pytest.approx(0.1)
    assert row.relay_wait_share == pytest.approx(0.002)


def test_what_a_kernel_does_not_tell_is_not_known(tmp_path: Path) -> None:
    """No PSI, no relay, a relay that ended."""
    ticks = [1, 0, 0, 1, 0, 0, 0, 0]
    before, after = (read(at_s, proc(tmp_path, [n * (i + 1) for n in ticks], None)) for i, at_s in enumerate((0.0, 1.0)))
    row = between(before, after)
    assert row is not None
    assert (row.cpu_pressure_share, row.relay_busy_share, row.relay_wait_share) == (None, None, None)
    assert row.busy_share == 0.5


def test_a_relay_that_ends_meanwhile_is_not_known_any_more(tmp_path: Path) -> None:
    host = Host(42, proc(tmp_path, [1] * 8, relay_ns=(5, 6)))
    assert host.read(0.0).relay_ran_s == 5e-9
    os.truncate(tmp_path / "42" / "schedstat", 0)
    assert host.read(1.0).relay_ran_s is None
    host.close()


def test_a_host_without_counters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match="/proc/stat can't be read"):
        read(0.0, tmp_path)


def test_without_a_tick_there_is_no_window() -> None:
    ticks = (5,) * 8
    assert between(Counters(0.0, ticks, 0.0), Counters(0.1, ticks, 0.05)) is None


counters = st.lists(st.integers(0, 10**6), min_size=8, max_size=8)


@given(counters, counters, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.01, 100))
def test_shares_are_shares_whatever_the_kernel_counts(before, after, waited_s, later_s, window_s) -> None:
    """Also when counters go back, as those of idle and stolen time do on some kernels."""
    row = between(Counters(0.0, tuple(before), waited_s), Counters(window_s, tuple(after), later_s))
    assume(row is not None)
    assert row is not None and 0 <= row.busy_share <= 1 and 0 <= row.steal_share <= 1 and 0 <= (row.cpu_pressure_share or 0) <= 1
    assert row.busy_share + row.steal_share <= 1 + 1e-9


def window(at_s: float, steal: float, pressure: float | None = 0.0, width_s: float = 1.0) -> HostRow:
    return HostRow(at_s=at_s, window_s=width_s, busy_share=0.5, steal_share=steal, cpu_pressure_share=pressure)


def test_a_trials_share_weighs_windows_by_how_much_of_them_it_spans() -> None:
    rows = [window(1.0, 0.9), window(2.0, 0.1, 0.2), window(3.0, 0.3, 0.6), window(4.0, 0.8)]
    seen = strain(rows, 1.5, 3.0)
    assert seen.steal_share == pytest.approx((0.5 * 0.1 + 1.0 * 0.3) / 1.5)
    assert seen.worst_steal_share == 0.3
    assert seen.cpu_pressure_share == pytest.approx((0.5 * 0.2 + 1.0 * 0.6) / 1.5)
    assert seen.worst_cpu_pressure_share == 0.6
    assert seen.relay_wait_share is None
    assert strain(rows, 7.0, 8.0) == strain([], 0.0, 1.0) == NO_STRAIN


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 30), st.floats(0, 30))
def test_the_mean_lies_between_the_least_and_the_worst(shares, begin_s, end_s) -> None:
    seen = strain([window(i + 1.0, share) for i, share in enumerate(shares)], begin_s, end_s)
    if seen.steal_share is not None and seen.worst_steal_share is not None:
        assert min(shares) - 1e-9 <= seen.steal_share <= seen.worst_steal_share + 1e-9 <= max(shares) + 2e-9


def test_the_sampler_goes_on_until_it_is_told_to_end() -> None:
    """On this host's own counters: windows follow each other without a gap."""
    rows: list[HostRow] = []
    enough = threading.Event()

    def take(row: HostRow) -> None:
        rows.append(row)
        if len(rows) == 3:
            enough.set()

    with Sampler(take, period_s=0.02):
        assert enough.wait(30)
    for one, following in pairwise(rows):
        assert following.at_s - following.window_s == pytest.approx(one.at_s)
    assert not [thread for thread in threading.enumerate() if thread.name == "pressure"]


def test_what_stops_the_sampler_is_told() -> None:
    tried = threading.Event()

    def full(row: HostRow) -> None:
        tried.set()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"), Sampler(full, period_s=0.01):
        assert tried.wait(30)
