"""`run.py fidelity`: bulk traffic through links, captured at both their ends, and judged by the captures instead of by the links.

Root makes network, traffic and captures. Reading the captures is done by a process of the invoking user, and again by `fidelity DIR`.
"""

import contextlib
import dataclasses
import math
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from testbed.clock import now_s, utc_now, wall_offset_ns
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError
from testbed.fidelity.capture import RETIRE_S, Tap, compress, require_tcpdump
from testbed.fidelity.evidence import Course, Evidence, Folder, Said, write
from testbed.host import host_facts
from testbed.link import PathSpec
from testbed.netns import owned
from testbed.network import Lane, Network
from testbed.results import check_base, give, new_folder
from testbed.trial import partner, spread
from testbed.units import bps_from_mbps, s_from_ms
from testbed.user import invoking_user, popen_tied
from traces.store import resolve, resolve_uplink
from traces.trace import MAX_DURATION_S, Trace

PORT = 5001
OVERLOAD = 1.2
"""UDP comes at so many times the trace's mean rate."""
MOST_UDP_BPS = bps_from_mbps(100.0)
"""As much as one Python process sends and a link's check needs."""
BUSY_LOOPS = 2
MARGIN_S = 20.0
QUIET_S = 0.5
MOST_QUIET_S = 8.0
POLL_S = 0.1
START_S = 0.1
"""For a trace to start before traffic does."""


@dataclass(frozen=True)
class Check:
    """Check links by captures: compare what they did to each packet with the reference model, and with what they say of themselves."""

    folder: tyro.conf.Positional[Path | None] = None
    """A folder that a check left: judge it again. Needs no root and takes no other option."""
    trace: str = "fcc"
    """A catalogued set (`fcc`, `fcc/test`, `fcc/test:FILE`), or a file or folder. Each lane gets another trace of a set."""
    uplink: str | None = None
    """Traces of the way back, as for a run: then traffic goes both ways. Default: delay only, and only acknowledgements go back."""
    link: Literal["userspace", "python", "kernel"] = "userspace"
    """Back end of the links."""
    rtt_ms: float = 80.0
    """Round-trip time of the path, milliseconds."""
    queue: int = 100_000
    """Bound of the bottleneck's queue, bytes."""
    queue_packets: int | None = None
    """A second bound of the queue, packets. Default: none."""
    aqm: Literal["droptail", "codel"] = "droptail"
    """What the queue drops."""
    seconds: float = 20.0
    """How long traffic of each kind goes on."""
    offset_s: float = 0.0
    """Where in the trace the check starts, seconds."""
    traffic: Literal["tcp", "udp", "both"] = "both"
    """What is sent: a TCP bulk transfer, datagrams at 1.2 times the trace's mean rate, or one after the other."""
    load: Literal["none", "busy"] = "none"
    """busy: two processes compute all the time, as a language model does beside an experiment."""
    lanes: int = 1
    """Links checked side by side."""
    cc: str = "cubic"
    """TCP congestion control."""
    seed: int = 1
    """Of the traces' random losses."""
    out: str = "results"
    """Folder in which the check's own folder is made."""

    def __post_init__(self) -> None:
        checks = (
            ("lanes", self.lanes, 1 <= self.lanes <= 32, "1 to 32"),
            ("seconds", self.seconds, math.isfinite(self.seconds) and 1 <= self.seconds <= 600, "1 to 600"),
            ("rtt-ms", self.rtt_ms, math.isfinite(self.rtt_ms) and 0 <= self.rtt_ms <= 10_000, "0 to 10000"),
            ("offset-s", self.offset_s, 0 <= self.offset_s <= MAX_DURATION_S, f"0 to {MAX_DURATION_S:.0f} s"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63-1"),
        )
        for name, seen, ok, wanted in checks:
            if not ok:
                raise UserError(f"--{name} is {seen}, wanted {wanted}")
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.folder is not None and len(given) > 1:
            raise UserError(f"fidelity {self.folder} judges a folder again, wanted no --{given[1].replace('_', '-')}")
        _ = self.path  # raises what is wrong with it

    @property
    def path(self) -> PathSpec:
        """Of each lane."""
        return PathSpec(s_from_ms(self.rtt_ms), self.queue, self.link, self.queue_packets, self.aqm)

    @property
    def kinds(self) -> tuple[Literal["tcp", "udp"], ...]:
        """Of traffic, in order."""
        return ("tcp", "udp") if self.traffic == "both" else (self.traffic,)


def run(check: Check, console: Console) -> int:
    """Check, or judge again what a check left; the exit code: 0 when links pass and both accounts agree, 1 when not."""
    if check.folder is not None:
        from testbed.fidelity.page import judge  # scapy takes half a second to load

        return judge(check.folder, console)
    owned.require_root()
    require_tcpdump()
    check_base(Path(check.out))
    ways, notes = find_ways(check)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    folder = _captured(check, ways, notes, console)
    console.print(f"judging the captures in {folder}", markup=False, soft_wrap=True)
    command = [sys.executable, "-m", "testbed.cli", "fidelity", str(folder)]
    with popen_tied(invoking_user(), command) as process:
        return process.wait()


@dataclass(frozen=True)
class Way:
    """What a lane's link is to carry."""

    down: Trace
    up: Trace | None


def find_ways(check: Check) -> tuple[list[Way], list[str]]:
    """One for each lane, and notes on where traces come from. UserError when there are none."""
    found = resolve(check.trace)
    uplinks = resolve_uplink(check.uplink) if check.uplink else None
    chosen = spread(found.traces, check.lanes)
    traces = [chosen[lane % len(chosen)] for lane in range(check.lanes)]
    ways = [Way(trace, partner(trace, uplinks.traces) if uplinks else None) for trace in traces]
    return ways, [each.note for each in (found, uplinks) if each and each.note]


def _captured(check: Check, ways: Sequence[Way], notes: Sequence[str], console: Console) -> Path:
    """Run all traffic and leave the captures in a new folder; that is removed when anything goes wrong."""
    user, started = invoking_user(), utc_now()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(_network(check))
        folder = new_folder(Path(check.out), f"{started:%Y%m%dT%H%M%SZ}-fidelity", user)
        stack.push(lambda kind, *_: shutil.rmtree(folder, ignore_errors=True) if kind else None)
        evidence = capture(check, ways, network, folder, console)
        write(folder, _folder(check, started.isoformat(timespec="seconds"), evidence, notes, dict(network.facts)))
        give(folder, user)
    return folder


@contextlib.contextmanager
def _network(check: Check) -> Iterator[Network]:
    with owned.run_lock() as run, Network(check.lanes, check.path, check.cc, run) as network:
        yield network


def capture(check: Check, ways: Sequence[Way], network: Network, folder: Path, console: Console) -> list[Evidence]:
    """Drive all traffic through the lanes of `network`, which has to be what `check` asks for; the captures go into `folder`."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        if check.load == "busy":
            _keep_busy(network, stack)
        progress = stack.enter_context(Progress(*columns, console=console, refresh_per_second=2))
        return [one for kind in check.kinds for one in Round(check, ways, network, folder, kind).evidence(progress)]


def _keep_busy(network: Network, stack: contextlib.ExitStack) -> None:
    for _ in range(BUSY_LOOPS):
        process = network.popen_controller([sys.executable, "-c", "while True: pass"])
        stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _folder(check: Check, started: str, evidence: Sequence[Evidence], notes: Sequence[str], facts: dict[str, Any]) -> Folder:
    return Folder(
        command=shlex.join(["testbed/run.py", *sys.argv[1:]]),
        commit=checkout_commit(),
        started_utc=started,
        options={name: value for name, value in msgspec.to_builtins(check).items() if name != "folder"},
        host={**host_facts(), **facts},
        notes=tuple(notes),
        evidence=tuple(evidence),
    )


class Round:
    """One kind of traffic through all lanes at once."""

    def __init__(self, check: Check, ways: Sequence[Way], network: Network, folder: Path, kind: Literal["tcp", "udp"]) -> None:
        self._check, self._ways, self._lanes, self._folder, self._kind = check, ways, network.lanes, folder, kind

    def evidence(self, progress: Progress) -> list[Evidence]:
        """Send, capture, stop, count."""
        many = f"{len(self._lanes)} links" if len(self._lanes) > 1 else "a link"
        bar = progress.add_task(f"{self._kind.upper()} through {many}", total=self._check.seconds)
        with contextlib.ExitStack() as stack:
            taps = [self._tap(lane, stack) for lane in self._lanes]
            places = [flow for lane in self._lanes for flow in self._flows(lane, "sink")]
            sinks = [self._start(popen, [f"{self._kind}-sink", ip], stack) for popen, ip, _ in places]
            _wait_ready(sinks)
            sources = [flow for lane in self._lanes for flow in self._flows(lane, "send")]
            lasts = f"{self._check.seconds:g}"
            senders = [self._start(popen, [f"{self._kind}-send", ip], stack, lasts, *rate) for popen, ip, rate in sources]
            _wait_ready(senders)
            for tap in (tap for pair in taps for tap in pair):
                tap.wait_ready()
            before_ns = wall_offset_ns()
            self._go(senders)
            self._wait(senders, progress, bar)
            progress.update(bar, description=f"{self._kind.upper()}: waiting for the links to run dry")
            self._settle()
            for sink in sinks:
                _end(sink)
            self._settle()  # a connection whose reset was lost has only now come to its end
            said = [(now_s(), Said.of(lane.link.stop())) for lane in self._lanes]
            after_ns = wall_offset_ns()
            time.sleep(RETIRE_S)
            found = []
            for lane, (stopped_s, one), pair in zip(self._lanes, said, taps, strict=True):
                server, client = (compress(self._folder, tap.stop()) for tap in pair)
                ends = {"server": server, "client": client, "wall_offset_before_ns": before_ns, "wall_offset_after_ns": after_ns}
                found.append(self._one(lane, stopped_s, one, ends))
        progress.update(bar, description=f"{self._kind.upper()} through {many}", completed=self._check.seconds)
        return found

    def _tap(self, lane: Lane, stack: contextlib.ExitStack) -> tuple[Tap, Tap]:
        """At both ends."""
        path = self._folder / self._name(lane)
        server = Tap(lane.popen_server, lane.link.server_interface, path.with_name(f"{path.name}-server.pcap"))
        stack.callback(server.kill)
        client = Tap(lane.popen_client, lane.link.client_interface, path.with_name(f"{path.name}-client.pcap"))
        stack.callback(client.kill)
        return server, client

    def _name(self, lane: Lane) -> str:
        return f"lane{lane.index}-{self._kind}"

    def _flows(self, lane: Lane, role: Literal["sink", "send"]) -> Iterator[tuple[Any, str, list[str]]]:
        """Where each process of a role starts, the receiver's address, and a datagram sender's rate."""
        way = self._ways[lane.index]
        yield (lane.popen_client if role == "sink" else lane.popen_server), lane.client_ip, self._rate(way.down)
        if way.up:
            yield (lane.popen_server if role == "sink" else lane.popen_client), lane.server_ip, self._rate(way.up)

    def _rate(self, trace: Trace) -> list[str]:
        return [f"{min(OVERLOAD * trace.mean_rate_bps, MOST_UDP_BPS):.0f}"] if self._kind == "udp" else []

    def _start(self, popen: Any, what: list[str], stack: contextlib.ExitStack, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "testbed.fidelity.traffic", *what, str(PORT), *more]
        process: subprocess.Popen[bytes] = popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stack.callback(_end, process)
        return process

    def _go(self, senders: Sequence[subprocess.Popen[bytes]]) -> None:
        """Arm and start the links, then the traffic."""
        for lane, way in zip(self._lanes, self._ways, strict=True):
            lane.link.load(way.down, self._check.offset_s, self._name(lane), uplink=way.up, seed=self._check.seed)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
            for lane in self._lanes:
                origin.sendto(b"start", str(lane.link.start_path))
        time.sleep(START_S)
        for sender in senders:
            assert sender.stdin
            sender.stdin.write(b"go\n")
            sender.stdin.flush()

    def _wait(self, senders: Sequence[subprocess.Popen[bytes]], progress: Progress, bar: Any) -> None:
        """Until all senders are done. TestbedError when one fails, or goes on for too long."""
        begin_s = now_s()
        while (running := [sender for sender in senders if sender.poll() is None]) and now_s() - begin_s < self._check.seconds + MARGIN_S:
            progress.update(bar, completed=min(now_s() - begin_s, self._check.seconds))
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].wait(2 * POLL_S)
        for sender in senders:
            if sender.poll() is None:
                raise TestbedError(f"a sender of {self._kind} goes on {MARGIN_S:g} s after its time, wanted it to end")
            if sender.returncode:
                raise TestbedError(f"a sender of {self._kind} ended with code {sender.returncode}: {_said(sender)}")

    def _settle(self) -> None:
        """Wait until nothing moves any more. Links that still hold packets then have stood still for long, and say how many they hold."""
        seen, quiet_since_s, give_up_s = [_moved(lane) for lane in self._lanes], now_s(), now_s() + MOST_QUIET_S
        while now_s() < min(quiet_since_s + QUIET_S + self._check.path.rtt_s, give_up_s):
            time.sleep(POLL_S)
            if (now := [_moved(lane) for lane in self._lanes]) != seen:
                seen, quiet_since_s = now, now_s()

    def _one(self, lane: Lane, stopped_s: float, said: Said, ends: dict[str, Any]) -> Evidence:
        way = self._ways[lane.index]
        return Evidence(
            name=self._name(lane),
            lane=lane.index,
            traffic=self._kind,
            path=self._check.path,
            down=Course.of(way.down),
            up=Course.of(way.up) if way.up else None,
            offset_s=self._check.offset_s,
            server_ip=lane.server_ip,
            client_ip=lane.client_ip,
            stopped_s=stopped_s,
            said=said,
            **ends,
        )


def _wait_ready(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            raise TestbedError(f"bulk traffic (process {process.pid}) did not start: {_said(process)}")


def _said(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr
    return process.stderr.read().decode(errors="replace").strip()[-500:] if process.poll() is not None else "it is silent"


def _moved(lane: Lane) -> tuple[str, str]:
    """Counters of both ends, as they stand in /proc; they change when a packet passes."""
    ends = ((lane.server, lane.link.server_interface), (lane.client, lane.link.client_interface))
    first, second = (
        next(line for line in Path(f"/proc/{host.pid}/net/dev").read_text().splitlines() if line.strip().startswith(f"{interface}:"))
        for host, interface in ends
    )
    return first, second
