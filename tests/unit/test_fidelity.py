"""The fidelity check's analysis: on packets that a made-up link carried, it agrees with a true account and finds each lie."""

import dataclasses
import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scapy.utils import RawPcapWriter

from testbed.cli import main
from testbed.errors import UserError
from testbed.fidelity.audit import Audit, Delay, audit
from testbed.fidelity.command import Check
from testbed.fidelity.evidence import Capture, Course, Evidence, Folder, Said, Sighting, read, read_packets, sightings, write
from testbed.fidelity.page import judge
from testbed.fidelity.replay import Model, Passage, by_window, curve, match, served
from testbed.link import PathSpec
from testbed.records import LatenessRow, LinkRow
from testbed.shapers.bottleneck import Bottleneck
from testbed.shapers.codel import CoDel
from testbed.shapers.conditions import Conditions as LinkConditions
from traces.trace import Conditions, OpportunityTrace, RateTrace, Trace

S, MS, US = 10**9, 10**6, 10**3
START, OFFSET_WALL = 50 * S, 1_700_000_000 * S
SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
STEADY = RateTrace("steady", (0, 10), (6e6,))
STEPS = RateTrace("steps", (0, 0.5, 1.1, 4), (1e6, 12e6, 3e6))
GRID = OpportunityTrace("grid", tuple(0.002 * (i // 3 + 1) for i in range(900)))
LATE = 100 * US
PATH = PathSpec(0.04, 60_000)


def frame(source: str, number: int) -> bytes:
    """The first bytes of a datagram with a number, as captured."""
    there = CLIENT if source == SERVER else SERVER
    ips = b"".join(bytes(int(part) for part in ip.split(".")) for ip in (source, there))
    return bytes(12) + b"\x08\x00" + bytes(12) + ips + bytes(8) + number.to_bytes(8, "little")


@dataclasses.dataclass
class Link:
    """A link that does what the model says, each packet `late_ns(number)` late; and what it and captures say of it."""

    trace: Trace
    path: PathSpec = PATH
    late_ns: int = LATE
    seconds: float = 2.0
    every_ns: int = 1 * MS
    wobble_ns: int = 0
    """By which the link reads a packet later than it came."""

    def bottleneck(self) -> Bottleneck:
        codel = CoDel() if self.path.discipline == "codel" else None
        return Bottleneck(None, round(self.path.rtt_s / 2 * S), self.path.queue_bytes, self.path.queue_packets or 0, codel)

    def conditions(self) -> LinkConditions | None:
        said = self.trace.conditions
        if said is None:
            return None
        edges = [round(edge * S) for edge in said.edges_s]
        delays = [round(delay * S) for delay in said.delay_s] if said.delay_s else [-1] * (len(edges) - 1)
        enter = [round(loss * 2**53) for loss in said.loss] if said.loss else [0] * len(delays)
        return LinkConditions(edges, delays, enter, enter, 1, START)

    def run(self) -> tuple[Evidence, dict[str, list[tuple[int, int, bytes]]]]:
        """What it says of itself, and packets in either capture: (wall ns, frame bytes, head)."""
        down = Model(self.trace, 0, 0, 0)
        inner = self.bottleneck()
        inner.switch(START, down.capacity(START), self.conditions())
        entered, left, rows, late = [], [], [], []
        edges = iter(range(START, START + round((self.seconds + 1) * S), 100 * MS))
        seen, edge = (0.0, 0.0), next(edges)
        arrivals = [START + 3 * MS + i * self.every_ns for i in range(round(self.seconds * S) // self.every_ns)]
        for number, at_ns in enumerate([*arrivals, START + round((self.seconds + 2) * S)]):
            read_ns = at_ns + self.wobble_ns * (number % 7) // 7
            while edge and edge < read_ns:
                spent = inner.spent_at(edge)
                if edge > START:
                    rows.append(tuple(b - a for a, b in zip(seen, spent, strict=True)))
                seen, edge = spent, next(edges, 0)
            if number < len(arrivals):
                inner.offer(read_ns, 1500, number)
                entered.append((OFFSET_WALL + at_ns, 1514, frame(SERVER, number)))
            while entry := inner.take(read_ns):
                out_ns = entry.due_ns + self.late_ns
                late.append(self.late_ns)
                left.append((OFFSET_WALL + out_ns, 1514, frame(SERVER, entry.payload)))
        counts = (len(entered), len(left), len(inner), {"malformed": 0, "transmit": 0, **inner.drops})
        return self.evidence(rows, counts), {"server": entered, "client": left}

    def evidence(self, rows: list[tuple[float, float]], counts: tuple[int, int, int, dict[str, int]]) -> Evidence:
        packets_in, packets_out, inside, drops = counts
        said = Said(
            verdict="pass",
            reasons=(),
            started_at=START / S,
            packets_in=packets_in,
            packets_out=packets_out,
            packets_inside=inside,
            drops=drops,
            uncounted_losses=0,
            lateness_p50_s=self.late_ns / S,
            lateness_p99_s=self.late_ns / S,
            lateness_max_s=self.late_ns / S,
            late_share=0.0,
            rate_error_pct_100ms=0.0,
            realtime=True,
            notes=(),
            lateness=(LatenessRow(trial_id="t", direction="down", upper_ms=[0.064, 0.128], counts=[0, packets_out]),),
            windows=tuple(_row(i, allowed, wasted) for i, (allowed, wasted) in enumerate(rows)),
        )
        return Evidence(
            name="lane0-udp",
            lane=0,
            traffic="udp",
            path=self.path,
            down=Course.of(self.trace),
            up=None,
            offset_s=0.0,
            server_ip=SERVER,
            client_ip=CLIENT,
            server=_capture("server", packets_in),
            client=_capture("client", packets_out),
            stopped_s=START / S + self.seconds + 2,
            wall_offset_before_ns=OFFSET_WALL,
            wall_offset_after_ns=OFFSET_WALL,
            said=said,
        )


def _row(index: int, allowed: float, wasted: float) -> LinkRow:
    numbers = {"allowed_bytes": allowed, "delivered_bytes": allowed - wasted, "wasted_bytes": wasted, "dropped_bytes": 0, "queue_bytes": 0}
    return LinkRow(trial_id="t", direction="down", start_s=index / 10, **numbers)


def _capture(end: str, packets: int) -> Capture:
    return Capture(file=f"{end}.pcap", interface=f"{end}0-eth0", captured=packets, received=packets, dropped=0)


def judged(link: Link, **said: object) -> Audit:
    """The audit of what `link` did, of which it says `said`."""
    evidence, packets = link.run()
    evidence = msgspec.structs.replace(evidence, said=msgspec.structs.replace(evidence.said, **said))
    return audit(Path(), evidence, lambda path: iter(packets[path.stem]))


LOSSY = RateTrace("lossy", (0, 1, 2), (8e6, 16e6), conditions=Conditions((0, 0.7, 2), delay_s=(0.03, 0.01), loss=(0.05, 0.0)))
LINKS = {
    "steady": Link(STEADY),
    "steps": Link(STEPS),
    "opportunities": Link(GRID, every_ns=500 * US),
    "not backlogged": Link(STEADY, every_ns=5 * MS),
    "bound in packets": Link(STEPS, PathSpec(0.04, 60_000, queue_packets=10)),
    "codel": Link(STEADY, PathSpec(0.04, 200_000, discipline="codel"), every_ns=1_900 * US),
    "read a little later": Link(STEPS, wobble_ns=40 * US),
    "delay and loss": Link(LOSSY, every_ns=2 * MS),
    "delay, loss and a full queue": Link(LOSSY),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_true_account_agrees(name):
    one = judged(LINKS[name])
    assert (one.verdict, one.voids, one.reasons) == ("agrees", (), ())
    assert one.passed
    drops = one.evidence.said.drops
    if name not in ("not backlogged", "delay and loss"):
        assert drops["queue"] + drops["codel"] > 20
    assert (drops["loss"] > 10) == ("loss" in name)
    assert one.sides[0].missing == sum(drops.values())


@pytest.mark.parametrize("name", [name for name in LINKS if "full" not in name and "later" not in name])
def test_each_packet_is_found_to_be_as_late_as_it_was(name):
    """To the nanosecond: the model is exact, and so are these captures."""
    assert set(judged(LINKS[name]).sides[0].error_ns.tolist()) == {LATE}


@pytest.mark.parametrize("name", ["steady", "steps", "opportunities", "bound in packets", "codel"])
def test_the_model_alone_drops_the_same(name):
    one = judged(LINKS[name])
    assert one.sides[0].fates == 0
    assert one.sides[0].model_drops.items() <= one.evidence.said.drops.items()


def test_constant_lateness_is_no_rate_error_and_bunching_is():
    assert judged(Link(STEADY, late_ns=900 * US)).sides[0].rates.error_pct_100ms < 0.001
    trace = RateTrace("t", (0, 10), (12e6,))
    packets = served(Model(trace, 0, 0, 0), [Passage(START + i, START + (i + 1) * MS, 1500) for i in range(1000)], START, [])
    edges = START + 100 * MS * np.arange(11)
    late = np.where(np.arange(1000) % 100 == 99, 20 * MS, 0)
    due, done = by_window(packets, edges, np.zeros(1000, dtype=int)), by_window(packets, edges, late)
    assert due.tolist() == [150_000] * 10
    assert done.tolist() == [148_500, *[150_000] * 9]  # each window passes one packet on


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        ({"packets_in": 1_999}, "packets in: 2000 captured, 1999 said by the link"),
        ({"packets_out": 17}, "packets out"),
        ({"drops": {"queue": 3}}, "packets in less out"),
        ({"uncounted_losses": 2}, "uncounted losses: 0 captured, 2 said"),
        ({"lateness_p50_s": 0.002}, "delay error p50: 0.1 ms captured, 2 said by the link"),
        ({"lateness_p99_s": 0.001}, "delay error p99"),
        ({"late_share": 0.01}, "packets later than 5 ms: 0 % captured, 1 said"),
        ({"rate_error_pct_100ms": 0.9}, "rate error 100 ms"),
        ({"windows": tuple(_row(i, 75_000, 20_000 * (i == 3)) for i in range(20))}, "largest difference: 20000 bytes captured"),
        ({"windows": tuple(_row(i, 75_000, 800) for i in range(20))}, "summed differences"),
    ],
)
def test_each_lie_is_found(lie, found):
    one = judged(Link(STEADY, late_ns=LATE), **lie)
    assert one.verdict == "disagrees" and not one.passed
    assert found in one.reasons[0]


@pytest.mark.parametrize("late_ns", [3 * MS, -1 * MS])
def test_a_link_that_is_later_or_earlier_than_it_says_is_found(late_ns):
    one = judged(Link(STEADY, late_ns=late_ns), lateness_p50_s=1e-4, lateness_p99_s=1e-4)
    assert any("delay error" in reason for reason in one.reasons)


def test_a_loss_that_the_link_does_not_count_is_found():
    evidence, packets = Link(STEADY, every_ns=5 * MS).run()
    del packets["client"][7]
    evidence = msgspec.structs.replace(evidence, client=_capture("client", len(packets["client"])))
    one = audit(Path(), evidence, lambda path: iter(packets[path.stem]))
    assert "uncounted losses: 1 captured, 0 said by the link" in " ".join(one.reasons)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"server": msgspec.structs.replace(_capture("server", 2000), dropped=3)}, "the capture at server0-eth0 missed 3 of 2003 packets"),
        ({"client": msgspec.structs.replace(_capture("client", 990), received=1000)}, "missed 10 of 1000"),
        ({"wall_offset_after_ns": OFFSET_WALL + 2 * MS}, "the wall clock was set by 2.000 ms"),
        ({"client_ip": "10.77.0.9", "server_ip": "10.77.0.8"}, "neither IPv4 between the hosts nor ARP"),
    ],
)
def test_captures_that_prove_nothing_are_void(change, why):
    evidence, packets = Link(STEADY).run()
    one = audit(Path(), msgspec.structs.replace(evidence, **change), lambda path: iter(packets[path.stem]))
    assert one.verdict == "void" and not one.passed
    assert why in one.voids[0]


def test_a_trace_that_never_started_is_void():
    assert judged(Link(STEADY), started_at=None, windows=()).verdict == "void"


def test_a_link_that_fails_its_own_verdict_does_not_pass():
    one = judged(Link(STEADY), verdict="fail", reasons=("late",))
    assert one.verdict == "agrees" and not one.passed


def sighted(*marks: bytes) -> list[Sighting]:
    return [Sighting(at, 100, mark) for at, mark in enumerate(marks)]


def test_packets_that_look_alike_are_matched_in_order_and_lost_ones_leave_doubt():
    found = match(sighted(b"a", b"a", b"b"), sighted(b"a", b"a", b"b"))
    assert [(one.in_ns, one.out_ns, one.sure) for one in found.passages] == [(0, 0, True), (1, 1, True), (2, 2, True)]
    found = match(sighted(b"a", b"a", b"b"), sighted(b"a", b"b"))
    assert [(one.out_ns, one.sure) for one in found.passages] == [(0, False), (None, False), (1, True)]


def test_strays_and_overtaking_are_counted():
    found = match(sighted(b"a", b"b", b"c"), sighted(b"b", b"x", b"a", b"c"))
    assert (found.strays, found.swapped) == (1, 0)  # within a millisecond it may be the stamps that are out of order
    assert [(one.in_ns, one.out_ns) for one in found.passages] == [(1, 0), (1, 2), (2, 3)]
    late = [Sighting(0, 100, b"a"), Sighting(2 * MS, 100, b"b")]
    assert match(late, sighted(b"b", b"a")).swapped == 1


@given(st.lists(st.tuples(st.integers(0, 5 * MS), st.integers(40, 1500), st.integers(0, 30 * MS)), min_size=1, max_size=60), st.booleans())
def test_windows_hold_all_bytes_wherever_edges_fall(packets, with_curve):
    at_ns, passages = START, []
    for gap_ns, size_bytes, late_ns in packets:
        at_ns += gap_ns
        passages.append(Passage(at_ns, at_ns + late_ns, size_bytes))
    model = Model(STEPS, 0, 0, 0)
    went = served(model, passages, START, [])
    late = np.array([late_ns for _, _, late_ns in packets])
    edges = START + np.arange(0, 60 * S, 37 * MS)
    total = by_window(went, edges, late, curve(model, START) if with_curve else None)
    assert total.min() >= 0
    assert total.sum() == pytest.approx(sum(size for _, size, _ in packets), rel=1e-6)


def test_delay_of_nothing():
    assert Delay.of(np.array([], dtype=np.int64)) == Delay(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_delays_of_one_direction_do_not_hide_those_of_the_other():
    nothing, late, early = (Delay.of(np.array(ns, dtype=np.int64)) for ns in ([], [9 * MS] + 99 * [MS], 4 * [-MS]))
    assert Delay.worst([late, nothing]) == late and Delay.worst([early, nothing]) == early
    assert Delay.worst([late, early]) == Delay(104, 1e-3, 1e-3, 9e-3, -1e-3, 1.0, 0.01)


# Folders with real files


def write_pcap(path: Path, packets: list[tuple[int, int, bytes]]) -> None:
    with gzip.open(path, "wb") as file:
        writer = RawPcapWriter(file, linktype=1, nano=True)
        writer.write_header(b"")
        for at_ns, wire_bytes, head in packets:
            writer.write_packet(head, sec=at_ns // S, usec=at_ns % S, caplen=len(head), wirelen=wire_bytes)
        writer.flush()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evidence, packets = Link(STEPS).run()
    for end, seen in packets.items():
        write_pcap(tmp_path / f"{end}.pcap", seen)
    found = Folder(command="run.py fidelity", commit="", started_utc="2026-01-01", options={}, host={}, notes=(), evidence=(evidence,))
    write(tmp_path, found)
    return tmp_path


def test_a_pcap_file_is_read_to_the_nanosecond(folder):
    evidence = read(folder).evidence[0]
    _, packets = Link(STEPS).run()
    assert list(read_packets(folder / "server.pcap")) == packets["server"]
    seen = sightings(folder, evidence.server, evidence)
    assert [(one.at_ns, one.size_bytes) for one in seen["down"]] == [(at - OFFSET_WALL, 1500) for at, _, _ in packets["server"]]
    assert seen["up"] == [] and seen["other"] == []


def test_arp_is_left_out_and_the_way_back_told_apart(folder):
    evidence = read(folder).evidence[0]
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    write_pcap(folder / "server.pcap", [(OFFSET_WALL, 42, arp), (OFFSET_WALL, 54, frame(CLIENT, 1)), (OFFSET_WALL, 60, b"\x86\xdd" * 30)])
    seen = sightings(folder, evidence.server, evidence)
    assert {name: len(found) for name, found in seen.items()} == {"down": 0, "up": 1, "other": 1}


def test_a_folder_is_judged_again(folder, capsys):
    assert main(["fidelity", str(folder)]) == 0
    assert "agree with it" in " ".join(capsys.readouterr().out.split())
    told = msgspec.json.decode((folder / "fidelity.json").read_bytes())
    assert (told["verdict"], told["passed"]) == ("agrees", True)
    assert told["links"][0]["delay_error"]["p99_s"] == pytest.approx(LATE / S)
    page = (folder / "fidelity.html").read_text()
    assert page.count("<svg") == 2
    assert not [word for word in ("<script", "http:", "https:", "src=") if word in page.replace("script-src", "")]


def test_the_exit_code_is_1_when_the_accounts_differ(folder):
    found = read(folder)
    said = msgspec.structs.replace(found.evidence[0].said, packets_out=1)
    write(folder, msgspec.structs.replace(found, evidence=(msgspec.structs.replace(found.evidence[0], said=said),)))
    assert judge(folder, Console(quiet=True)) == 1


def broken_folders(folder: Path) -> Iterator[str]:
    (folder / "client.pcap").write_bytes(b"not a capture at all")
    yield "client.pcap: .*wanted a pcap file"
    (folder / "client.pcap").unlink()
    yield "client.pcap: is not there"
    (folder / "captures.json").write_text('{"command": 3}')
    yield "captures.json: .*wanted what a fidelity check wrote"
    (folder / "captures.json").unlink()
    yield "captures.json: No such file"


def test_a_broken_folder_is_the_users_mistake(folder):
    for said in broken_folders(folder):
        with pytest.raises(UserError, match=said):
            judge(folder, Console(quiet=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lanes": 0}, "--lanes is 0, wanted 1 to 32"),
        ({"seconds": float("nan")}, "--seconds is nan"),
        ({"rtt_ms": -1.0}, "--rtt-ms is -1.0"),
        ({"queue": 10}, "queue is 10 bytes"),
        ({"folder": Path("x"), "lanes": 2}, "judges a folder again, wanted no --lanes"),
    ],
)
def test_impossible_checks_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Check(**options)


def test_only_the_analysis_loads_scapy():
    code = "import sys, testbed.fidelity.command, testbed.fidelity.audit, testbed.fidelity.evidence; sys.exit('scapy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
