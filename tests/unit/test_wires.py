"""Wires without a network: what specs are refused, what TBF is told, what is said when it reads back otherwise, names in a star."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from testbed.errors import TestbedError, UserError
from testbed.netns import wires
from testbed.netns.hostsetup import Port
from testbed.netns.owned import Run
from testbed.netns.wires import FRAME_BYTES, MTU_BYTES, UNSHAPED, Wire, WireSpec
from testbed.star import MAX_HOSTS, MAX_NETWORKS, Star, _ports
from testbed.units import bps_from_mbps, bytes_per_s_from_bps

PORTS = (Port("e0-eth0", "10.1.0.1", "02::1", "10.1.0.2", "02::2"), Port("data-0", "10.1.0.2", "02::2", "10.1.0.1", "02::1"))


class Host(NamedTuple):
    name: str
    pid: int


HOSTS = (Host("e0", 1), Host("core-data", 2))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"rate_bps": 0}, "rate_bps is 0, wanted 10000 to 1e"),
        ({"rate_bps": -5e6}, "rate_bps is -5000000.0"),
        ({"rate_bps": math.nan}, "rate_bps is nan"),
        ({"rate_bps": math.inf}, "rate_bps is inf"),
        ({"rate_bps": 1e6, "by": "tc"}, "'tc', wanted one of kernel, relay"),
        ({"rate_bps": 1e6, "delay_s": -1.0}, "delay_s is -1.0"),
        ({"rate_bps": 1e6, "delay_s": math.nan}, "delay_s is nan"),
        ({"rate_bps": 1e6, "delay_s": 0.01}, 'wanted 0 when the kernel shapes it; by="relay" can delay'),
        ({"delay_s": 0.01}, 'by="relay" can delay'),
        ({"by": "relay"}, "has no rate_bps, wanted one"),
        ({"queue_bytes": 100_000}, "wanted none without a rate_bps"),
        ({"rate_bps": 1e6, "queue_bytes": 1514}, "wanted at least 3028"),
        ({"rate_bps": 1e9, "delay_s": 1.0, "by": "relay"}, "wanted at most 16777216 bytes in all"),
    ],
)
def test_specs_that_make_no_sense_are_refused(spec: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError) as refused:
        WireSpec(**spec)
    assert wanted in str(refused.value)


@pytest.mark.parametrize("mbps", [0.01, 1, 10, 100, 1000, 10_000])
def test_full_packets_get_the_rate_in_ip_bytes(mbps: float) -> None:
    tbf = WireSpec(bps_from_mbps(mbps)).tbf
    assert tbf["rate"] * MTU_BYTES / FRAME_BYTES == pytest.approx(bytes_per_s_from_bps(bps_from_mbps(mbps)), abs=1)


@pytest.mark.parametrize("queue_bytes", [None, 3028, 20_000, 64_000, 10_000_000])
@pytest.mark.parametrize("mbps", [0.01, 10, 1000, 10_000])
def test_a_loss_is_never_most_of_a_queue(mbps: float, queue_bytes: int | None) -> None:
    """What passes TBF's burst is queued whole."""
    spec = WireSpec(bps_from_mbps(mbps), queue_bytes=queue_bytes)
    assert 2 * FRAME_BYTES <= spec.tbf["burst"] <= max(spec.tbf["limit"] / 8, 2 * FRAME_BYTES)


def test_the_default_queue_grows_with_the_rate() -> None:
    assert [WireSpec(bps_from_mbps(mbps)).bound_bytes for mbps in (10, 1000)] == [300_000, 3_125_000]
    assert UNSHAPED.bound_bytes == 0


def test_the_relay_gets_packets_of_which_several_fit_into_its_queue_and_that_pass_soon() -> None:
    specs = [(1e9, 3028), (1e9, 100_000), (1e9, 10_000_000), (100e6, 10_000_000), (1e6, 10_000_000)]
    sizes = [WireSpec(rate_bps, queue_bytes=queue, by="relay").offloaded_bytes for rate_bps, queue in specs]
    assert sizes == [3028, 12_500, 65_536, 25_000, 3028]


def read_back(monkeypatch: pytest.MonkeyPatch, queue: dict[str, Any], interface: dict[str, Any]) -> None:
    """What `ip` and `tc` are to tell, at both ends."""
    output = json.dumps([interface]) + "\n" + json.dumps([{"root": True, **queue}] if queue else []) + "\n"
    monkeypatch.setattr(wires, "run_scripts", lambda spawner, scripts: dict.fromkeys(scripts, output))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"burst": 6260}, None),
        ({"burst": 1500}, "tbf burst is 1500, wanted 6250"),
        ({"rate": 3_000_000}, "tbf rate is 3000000, wanted 3154167"),
        ({"limit": 4000}, "tbf limit is 4000, wanted 300000"),
        ({"limit": None}, "tbf limit is None, wanted 300000"),
        ({"kind": "pfifo"}, "qdisc is pfifo, wanted tbf"),
        ({"kind": None}, "qdisc is noqueue, wanted tbf"),
    ],
)
def test_what_reads_back_otherwise_is_said(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str | None) -> None:
    spec = WireSpec(25e6)
    queue = {"kind": change.get("kind", "tbf"), "options": {**spec.tbf, **change}}
    read_back(monkeypatch, queue if queue["kind"] else {}, {})
    wire = Wire(SimpleNamespace(), HOSTS, PORTS, spec)  # type: ignore[arg-type]
    if said is None:
        return wire.check()
    with pytest.raises(TestbedError, match=f"wire of host e0, interface e0-eth0: {said}"):
        wire.check()
    return None


def test_bytes_sent_are_ip_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {"stats64": {"tx": {"packets": 3, "bytes": 9000, "dropped": 1}}}
    read_back(monkeypatch, {"kind": "tbf", "packets": 6, "bytes": 6 * 1514, "drops": 4}, passed)
    shaped = Wire(SimpleNamespace(), HOSTS, PORTS, WireSpec(1e6)).sent()[0]  # type: ignore[arg-type]
    assert (shaped.packets, shaped.size_bytes, shaped.drops) == (6, 9000, 5)
    read_back(monkeypatch, {}, passed)
    unshaped = Wire(SimpleNamespace(), HOSTS, PORTS, UNSHAPED).sent()[1]  # type: ignore[arg-type]
    assert (unshaped.packets, unshaped.size_bytes, unshaped.drops) == (3, 9000 - 3 * 14, 1)


def test_only_the_relay_reports() -> None:
    with pytest.raises(UserError, match='wanted one shaped by="relay"'):
        Wire(SimpleNamespace(), HOSTS, PORTS, WireSpec(1e6)).report()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ({}, "0 networks are asked for, wanted 1 to 10"),
        ({"data": {}}, "network 'data' has 0 hosts, wanted 1 to 250"),
        ({"data": {f"e{i}": UNSHAPED for i in range(251)}}, "has 251 hosts"),
        ({"data": {"core-data": UNSHAPED}}, "called 'core-data', wanted up to 10 lower-case letters"),
        ({"averylongname": {"e0": UNSHAPED}}, "called 'averylongname'"),
        ({"data": {"e0; reboot": UNSHAPED}}, "called 'e0; reboot'"),
    ],
)
def test_a_star_that_makes_no_sense_is_refused(tmp_path: Path, networks: dict[str, dict[str, WireSpec]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Star(networks, Run("test", tmp_path))


def test_a_stars_names_fit_into_what_linux_allows() -> None:
    ports = _ports(MAX_NETWORKS - 1, MAX_HOSTS - 1, "abcdefghij", "klmnopqrst")
    assert [port.interface for port in ports] == ["abcdefghij-eth9", "klmnopqrst-249"]
    assert all(len(port.interface) <= 15 for port in ports)
