"""Back end `kernel`: a veth pair, HTB on an IFB at the client for the rate, netem at both senders for the delay.

Exact at constant rates. A varying trace is replayed by changing HTB's rate at each of its edges, and that is not exact: a class keeps the
waiting time that it owed at its old rate, so a step up after a low rate begins late. The rate has therefore a floor, outages leak, and the
verdict says so. Delivery opportunities are averaged over 100 ms. The rate is shaped at the client's ingress because a queue at the sending
host would hold TCP back (TCP small queues) instead of filling and dropping.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from testbed import clock
from testbed.errors import TestbedError, UserError
from testbed.link import Endpoint, Link, LinkReport, LinkSet, PathSpec
from testbed.records import LinkRow
from testbed.shapers.accounts import Histogram
from testbed.shapers.bottleneck import RATE_SCALE, RateCapacity
from testbed.shapers.kernelcalls import dropped_by_interface
from testbed.shapers.ledger import WINDOW_NS, Lateness
from testbed.units import MTU_BYTES, ns_from_s, s_from_ns
from traces.formats import to_rates
from traces.trace import RateTrace, Trace

FLOOR_BPS = 100e3
"""HTB is never set lower: it would sleep too long over a step up."""
IDLE_RATE_BPS = 100e6
HEADER_BYTES = 14
NETEM_LIMIT_PACKETS = 100_000
ANSWER_TIMEOUT_S = 5.0
START = b"start"

Spawn = Callable[..., subprocess.Popen[bytes]]


def netem_available() -> bool:
    """Whether this kernel can delay packets: tried in a network namespace that ends with the attempt. Needs root."""
    return _tried("tc qdisc add dev lo root netem delay 1ms")


def _tried(command: str) -> bool:
    try:
        return subprocess.run(["unshare", "--net", "sh", "-e", "-c", command], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _require(path: PathSpec) -> None:
    """UserError when this host can't carry the path."""
    advice = "use --link userspace"
    if missing := [tool for tool in ("tc", "ip", "ethtool") if not shutil.which(tool)]:
        raise UserError(f"--link kernel needs {missing[0]}, which is not installed; {advice}")
    if shutil.which("modprobe") and not Path("/sys/module/ifb").exists():  # loaded unasked it makes two interfaces, in the root namespace
        subprocess.run(["modprobe", "ifb", "numifbs=0"], capture_output=True, check=False)
    if not _tried("ip link add probe type ifb; tc qdisc add dev probe root htb; tc qdisc add dev lo ingress"):
        raise UserError(f"--link kernel needs sch_htb, sch_ingress and ifb, which this kernel does not offer; {advice}")
    if path.rtt_s > 0 and not netem_available():
        raise UserError(f"--link kernel needs sch_netem to delay packets, which this kernel does not offer; {advice}")


class KernelSet(LinkSet):
    """All links on HTB and netem. Each has a thread that changes rates and reads counters."""

    unqueued = False

    def __init__(self, spawn: Spawn, folder: Path, path: PathSpec) -> None:
        _require(path)
        self._spawn, self._folder = spawn, folder
        self._links: list[KernelLink] = []

    @property
    def facts(self) -> dict[str, object]:
        """See `LinkSet`."""
        return {"back_end": "kernel", "realtime": False, "rate_floor_bps": FLOOR_BPS}

    def attach(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec) -> "KernelLink":
        """See `LinkSet`."""
        veth = f"ip link add {server.interface} type veth peer name {client.interface} netns {client.pid}"
        offloads = "tso off gso off gro off tx off"
        ifb = f"ifb{lane}"
        delay = f"netem delay {path.rtt_s / 2:.6f}s limit {NETEM_LIMIT_PACKETS}"
        at_server = [veth, f"ethtool -K {server.interface} {offloads}"]
        at_client = [
            f"ethtool -K {client.interface} {offloads}",
            f"ip link add {ifb} type ifb",
            f"ip link set dev {ifb} up",
            f"tc qdisc add dev {client.interface} handle ffff: ingress",
            f"tc filter add dev {client.interface} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev {ifb}",
            f"tc qdisc add dev {ifb} root handle 1: stab overhead -{HEADER_BYTES} linklayer ethernet htb default 1",
            f"tc class add {_htb(ifb, IDLE_RATE_BPS)}",
            f"tc qdisc add dev {ifb} parent 1:1 handle 10: bfifo limit {path.queue_bytes}",
        ]
        if path.rtt_s:
            at_server.append(f"tc qdisc add dev {server.interface} root {delay}")
            at_client.append(f"tc qdisc add dev {client.interface} root {delay}")
        self._run(server, at_server)
        self._run(client, at_client)
        link = KernelLink(lane, server, client, self._folder / f"lane{lane}.sock", Tc(self._spawn, client.pid, ifb))
        self._links.append(link)
        return link

    def _run(self, end: Endpoint, commands: list[str]) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = self._spawn(["sh", "-e", "-c", "\n".join(commands)], namespace_pid=end.pid, **pipes)
        _, errors = process.communicate()
        if process.returncode:
            raise TestbedError(f"interface {end.interface}: setting up its queues failed: {errors.decode(errors='replace').strip()}")

    def close(self) -> None:
        """See `LinkSet`."""
        for link in self._links:
            link.close()
        self._links = []


def _htb(interface: str, rate_bps: float) -> str:
    """Class arguments: one packet of burst and of ceiling burst, so that the rate holds at 100 ms."""
    rate = f"{max(round(rate_bps), round(FLOOR_BPS))}bit"
    return f"dev {interface} parent 1: classid 1:1 htb rate {rate} ceil {rate} burst {MTU_BYTES} cburst {MTU_BYTES} quantum {MTU_BYTES}"


class Tc:
    """One `tc` that stays in the client's namespace and takes commands: a change costs a system call instead of a process."""

    def __init__(self, spawn: Spawn, pid: int, interface: str) -> None:
        self._interface = interface
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = spawn(["tc", "-statistics", "-json", "-force", "-batch", "-"], namespace_pid=pid, **pipes)
        assert self._process.stdin and self._process.stdout
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout

    def set_rate(self, rate_bps: float) -> None:
        """Change HTB's rate; an error shows at the next `counters`."""
        self._in.write(f"class change {_htb(self._interface, rate_bps)}\n".encode())
        self._in.flush()

    def counters(self) -> dict[str, int]:
        """Of the bottleneck's queue: `bytes` and `packets` that left it, `drops`, `backlog` (bytes), `qlen`; IP bytes."""
        self._in.write(f"qdisc show dev {self._interface}\n".encode())
        self._in.flush()
        if not select.select([self._out], [], [], ANSWER_TIMEOUT_S)[0]:
            raise TestbedError(f"interface {self._interface}: tc did not answer within {ANSWER_TIMEOUT_S} s")
        line = self._out.readline().decode(errors="replace").strip()
        try:
            return next(entry for entry in json.loads(line) if entry["handle"] == "10:")
        except (ValueError, StopIteration):
            raise TestbedError(f"interface {self._interface}: tc said {line!r}, wanted counters") from None

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            self._in.close()
        self._process.kill()
        self._process.wait()
        self._out.close()


class Replay:
    """One trial: its rates in absolute time, and what was seen. Used by the link's thread alone until it is reported."""

    def __init__(self, trial_id: str, trace: Trace, offset_s: float) -> None:
        self.trial_id, self.trace, self.offset_s = trial_id, trace, offset_s
        self.rates = trace if isinstance(trace, RateTrace) else to_rates(trace, s_from_ns(WINDOW_NS))
        self.started_ns: int | None = None
        self.lateness = Lateness()
        self.samples: list[tuple[int, dict[str, int]]] = []
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}

    def changes(self, start_ns: int) -> Iterator[tuple[int, float]]:
        """(when, rate) without end, beginning now."""
        edges = [ns_from_s(edge) for edge in self.rates.edges_s]
        offset_ns = ns_from_s(self.offset_s) % edges[-1]
        index, lap_ns = bisect_right(edges, offset_ns) - 1, start_ns - offset_ns
        while True:
            yield max(lap_ns + edges[index], start_ns), self.rates.rates_bps[index]
            index += 1
            if index == len(self.rates.rates_bps):
                index, lap_ns = 0, lap_ns + edges[-1]


class KernelLink(Link):
    """One lane. A thread waits for `start`, changes the rate when due, samples the counters every 100 ms."""

    def __init__(self, lane: int, server: Endpoint, client: Endpoint, start_path: Path, tc: Tc) -> None:
        self.lane, self.server_interface, self.client_interface = lane, server.interface, client.interface
        self._ends, self._start_path, self._tc = (server, client), start_path, tc
        self._starts = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._starts.bind(str(start_path))
        os.chmod(start_path, 0o666)
        self._halt = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._replay: Replay | None = None
        self._error: Exception | None = None
        self._dropped_before = 0

    @property
    def start_path(self) -> Path:
        """See `Link`."""
        return self._start_path

    def load(self, trace: Trace, offset_s: float, trial_id: str) -> None:
        """See `Link`. The queue is not emptied: HTB can't."""
        if error := self._end_thread():
            raise error
        while select.select([self._starts], [], [], 0)[0]:
            self._starts.recv(len(START) + 1)
        self._replay = Replay(trial_id, trace, offset_s)
        self._replay.first = self._tc.counters()
        self._dropped_before = self._dropped_by_interfaces()
        self._tc.set_rate(trace.mean_rate_bps)
        self._thread = threading.Thread(target=self._guard, args=(self._replay,), daemon=True)
        self._thread.start()

    def _guard(self, replay: Replay) -> None:
        try:
            self._follow(replay)
        except Exception as error:  # handed to stop, which raises it
            self._error = error

    def _follow(self, replay: Replay) -> None:
        """The thread's life: wait for `start`, then changes and samples as they fall due."""
        while True:
            if self._halt in select.select([self._starts.fileno(), self._halt], [], [])[0]:
                return
            if self._starts.recv(len(START) + 1) == START:
                break
        replay.started_ns = clock.now_ns()
        replay.samples.append((replay.started_ns, self._tc.counters()))
        sample_ns = replay.started_ns + WINDOW_NS
        changes = replay.changes(replay.started_ns)
        change_ns, rate_bps = next(changes)
        while True:
            now_ns = clock.now_ns()
            if now_ns >= change_ns:
                self._tc.set_rate(rate_bps)
                replay.lateness.add(clock.now_ns() - change_ns)
                change_ns, rate_bps = next(changes)
            elif now_ns >= sample_ns:
                replay.samples.append((now_ns, self._tc.counters()))
                sample_ns += WINDOW_NS
            elif select.select([self._halt], [], [], s_from_ns(min(change_ns, sample_ns) - now_ns))[0]:
                return

    def _end_thread(self) -> Exception | None:
        """Join it; returns what it failed of."""
        if self._thread:
            os.eventfd_write(self._halt, 1)
            self._thread.join()
            os.eventfd_read(self._halt)
            self._thread = None
        error, self._error = self._error, None
        return error

    def stop(self) -> LinkReport:
        """See `Link`. What waits is not dropped: HTB can't."""
        if self._replay is None:
            raise TestbedError(f"lane {self.lane}: stop without load")
        if error := self._end_thread():
            raise error
        replay, self._replay = self._replay, None
        now_ns = clock.now_ns()
        replay.last = self._tc.counters()
        self._tc.set_rate(replay.trace.mean_rate_bps)
        return report(replay, now_ns, self._dropped_by_interfaces() - self._dropped_before)

    def _dropped_by_interfaces(self) -> int:
        try:
            return sum(dropped_by_interface(end.pid, end.interface) for end in self._ends)
        except OSError as error:
            raise TestbedError(f"lane {self.lane}: a host of the link is gone ({error})") from error

    def close(self) -> None:
        """End the thread and tc, whatever state they are in."""
        self._end_thread()
        self._tc.close()
        self._starts.close()
        os.close(self._halt)
        self._start_path.unlink(missing_ok=True)


def report(replay: Replay, now_ns: int, interface_drops: int) -> LinkReport:
    """What the samples say. Lateness is that of rate changes, the only thing that is timed here."""
    rows, error_pct = judge(replay)
    lateness = Histogram.of_counts(replay.lateness)
    duration_ns = ns_from_s(replay.rates.duration_s)
    run_ns = now_ns - replay.started_ns + ns_from_s(replay.offset_s) % duration_ns if replay.started_ns else 0
    packets_out = replay.last["packets"] - replay.first["packets"]
    dropped = replay.last["drops"] - replay.first["drops"]
    inside = replay.last["qlen"]
    notes = ["packets are timed by the kernel: lateness is that of rate changes, and losses inside netem are not seen"]
    if any(rate < FLOOR_BPS for rate in replay.rates.rates_bps):
        notes.append(f"the trace goes below {FLOOR_BPS:g} bit/s, at which this back end holds it")
    return LinkReport(
        trial_id=replay.trial_id,
        started_at=None if replay.started_ns is None else s_from_ns(replay.started_ns),
        windows=rows,
        lateness=(lateness.row(replay.trial_id, "down"),),
        lateness_p50_s=lateness.quantile_s(0.5),
        lateness_p99_s=lateness.quantile_s(0.99),
        lateness_max_s=lateness.max_s,
        late_packets=lateness.late_packets,
        packets_in=packets_out + dropped + inside - replay.first["qlen"],
        packets_out=packets_out,
        packets_inside=inside,
        drops={"queue": dropped, "malformed": 0, "transmit": 0},
        uncounted_losses=interface_drops,
        rate_error_pct_100ms=error_pct,
        trace_wraps=run_ns // duration_ns,
        realtime=False,
        notes=tuple(notes),
    )


def judge(replay: Replay) -> tuple[tuple[LinkRow, ...], float]:
    """The samples as windows, and the rate error.

    HTB sends whole packets, so up to one packet may be due and not sent at a sample. Bytes due but not sent count as they change by more
    than that: b follows them as a slack of one packet allows, and the error is the sum of |change of b| over backlogged windows.
    """
    rows, error_bytes, due_bytes, behind, slack = [], 0.0, 0.0, 0.0, 0.0
    if replay.started_ns is None:
        return (), 0.0
    edges = [ns_from_s(edge) for edge in replay.rates.edges_s]
    rates = [round(rate * RATE_SCALE) for rate in replay.rates.rates_bps]
    capacity = RateCapacity(edges, rates, replay.started_ns, ns_from_s(replay.offset_s))
    allowed_before = 0.0
    for (at_ns, before), (end_ns, after) in pairwise(replay.samples):
        allowed_after = capacity.at(end_ns) / capacity.per_byte
        allowed, sent = allowed_after - allowed_before, after["bytes"] - before["bytes"]
        allowed_before = allowed_after
        dropped = (after["drops"] - before["drops"]) * MTU_BYTES
        backlogged = before["backlog"] > 0 and after["backlog"] > 0
        behind = behind + allowed - sent if backlogged else 0.0
        new_slack = min(max(slack, behind - MTU_BYTES), behind + MTU_BYTES) if backlogged else 0.0
        if backlogged:
            error_bytes, due_bytes = error_bytes + abs(new_slack - slack), due_bytes + allowed
        slack = new_slack
        wasted = 0.0 if backlogged else max(allowed - sent, 0.0)
        rows.append(
            LinkRow(
                trial_id=replay.trial_id,
                direction="down",
                start_s=s_from_ns(at_ns - replay.started_ns),
                allowed_bytes=sent + wasted,
                delivered_bytes=sent,
                wasted_bytes=wasted,
                dropped_bytes=dropped,
                queue_bytes=after["backlog"],
            )
        )
    return tuple(rows), 100 * error_bytes / due_bytes if due_bytes else 0.0
