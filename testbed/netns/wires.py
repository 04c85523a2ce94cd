"""`Wires.join`: a wire between two hosts, for a cluster's data and for control: unshaped, at one constant rate, or under traces.

| spec | made of | rate and queue | delay |
| --- | --- | --- | --- |
| `WireSpec()` | a veth pair, offloads on | unbounded | none |
| `by="kernel"` | a veth pair | TBF at each end, for what leaves there | none: Linux would delay before it paces |
| `by="relay"` | two TAP devices and the relay in C | its bottleneck in each direction, one rate or a trace; report and verdict | yes |

**TBF rather than HTB.** At one rate both pace alike, within 0.5 % of 10 to 1000 Mbit/s beside busy processes. But TCP hands a device
packets of up to 64 kB, which HTB's queue takes or drops whole: a short one loses 40 packets at a time, and TCP has been seen to collapse on
it. TBF cuts what is larger than its burst into packets of the wire's size before they enter the queue, so a burst well below the queue's
bound makes a loss a packet. It has no class either, and so no cburst, quantum or r2q that could be left wrong.

**Burst.** So much may go at once after idleness, and a timer that is late by less than the burst's time costs no throughput: 2 ms at the
rate, at most an eighth of the queue, at least two packets. The relay gets no larger packets either: up to 64 kB, cut by the kernel where
the rate is low.

**Where the queue is.** At the sending end of each direction, as in a network card. A TCP socket of that very host sees its packets wait
there and holds back (TCP small queues): that queue stays short and seldom overflows, as in a real host. What a router forwards has no such
socket behind it: its queue towards a receiver fills and overflows when several send there at once, as a switch's does. See `star`.

Rates are in IP bytes, with the Ethernet headers of full packets allowed for (a small one still costs its 14 bytes more). What was set is
read back.
"""

import json
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from testbed.errors import TestbedError, UserError
from testbed.link import Endpoint, Link, LinkReport, PathSpec
from testbed.netns.hosts import Spawner, run_scripts
from testbed.netns.hostsetup import RING_PACKETS, Port
from testbed.shapers.kernel import tried
from testbed.shapers.userspace import RelaySet
from testbed.units import ETHERNET_BYTES, MTU_BYTES, bytes_per_s_from_bps
from traces.trace import RateTrace, Trace

Shaper = Literal["kernel", "relay"]
MIN_RATE_BPS, MAX_RATE_BPS = 10e3, 10e9
FRAME_BYTES = ETHERNET_BYTES + MTU_BYTES
QUEUE_S = 0.025
"""Of the default queue, at the wire's rate."""
MIN_DEFAULT_QUEUE_BYTES = 300_000
"""Of the default queue: two packets for each of 100 connections that end in one host."""
BURST_S = 0.002
BURSTS_PER_QUEUE = 8
MAX_OFFLOADED_BYTES = 65536
"""The largest packet that TCP hands a device by default."""
RELAY_MAX_BYTES = 2**24
"""The relay keeps no more than that in queue and delay of a direction."""
TRACE_S = 3600.0
NOBODY = "02:00:00:00:00:00"
"""A hardware address that no interface has."""


@dataclass(frozen=True)
class WireSpec:
    """What a wire does to packets, in each direction."""

    rate_bps: float | None = None
    """Of IP bytes; None: as fast as this machine goes."""
    delay_s: float = 0.0
    """One way."""
    queue_bytes: int | None = None
    """Bound of each direction's queue; None: 25 ms at the rate, at least 300 kB."""
    by: Shaper = "kernel"

    def __post_init__(self) -> None:
        if self.by not in get_args(Shaper):
            raise UserError(f"the wire is shaped by {self.by!r}, wanted one of {', '.join(get_args(Shaper))}")
        if not (math.isfinite(self.delay_s) and self.delay_s >= 0):
            raise UserError(f"the wire's delay_s is {self.delay_s}, wanted a finite number of at least 0")
        if self.delay_s and self.by == "kernel":
            raise UserError(f'the wire\'s delay_s is {self.delay_s}, wanted 0 when the kernel shapes it; by="relay" can delay')
        if self.rate_bps is None:
            self._check_unshaped()
        elif not MIN_RATE_BPS <= self.rate_bps <= MAX_RATE_BPS:
            raise UserError(f"the wire's rate_bps is {self.rate_bps}, wanted {MIN_RATE_BPS:g} to {MAX_RATE_BPS:g}")
        if self.queue_bytes is not None and self.queue_bytes < 2 * FRAME_BYTES:
            raise UserError(f"the wire's queue is {self.queue_bytes} bytes, wanted at least {2 * FRAME_BYTES} (two packets)")
        if self.by == "relay" and self.bound_bytes + bytes_per_s_from_bps(self.rate_bps or 0) * self.delay_s > RELAY_MAX_BYTES:
            held = f"a queue of {self.bound_bytes} bytes and {self.delay_s} s at {self.rate_bps:g} bit/s"
            raise UserError(f"the wire is to hold {held}, wanted at most {RELAY_MAX_BYTES} bytes in all")

    def _check_unshaped(self) -> None:
        if self.by == "relay":
            raise UserError("the wire through the relay has no rate_bps, wanted one")
        if self.queue_bytes is not None:
            raise UserError(f"the wire's queue is {self.queue_bytes} bytes, wanted none without a rate_bps")

    @property
    def bound_bytes(self) -> int:
        """The queue's bound; 0 when unshaped."""
        default = max(round(self._rate_bytes_per_s * QUEUE_S), MIN_DEFAULT_QUEUE_BYTES) if self.rate_bps else 0
        return default if self.queue_bytes is None else self.queue_bytes

    @property
    def _rate_bytes_per_s(self) -> float:
        return bytes_per_s_from_bps(self.rate_bps or 0.0)

    @property
    def whole_bytes(self) -> int:
        """What may pass at once: 2 ms at the rate, at most an eighth of the queue, at least two packets."""
        burst = min(round(self._rate_bytes_per_s * BURST_S), self.bound_bytes // BURSTS_PER_QUEUE)
        return max(burst, 2 * FRAME_BYTES)

    @property
    def tbf(self) -> dict[str, int]:
        """TBF's `rate` (Ethernet bytes per second), `burst` and `limit` (bytes) where the kernel shapes."""
        rate = round(self._rate_bytes_per_s * FRAME_BYTES / MTU_BYTES)
        return {"rate": rate, "burst": self.whole_bytes, "limit": self.bound_bytes}

    @property
    def offloaded_bytes(self) -> int:
        """The largest packet that the relay gets; the kernel cuts larger ones beforehand."""
        return min(self.whole_bytes, MAX_OFFLOADED_BYTES)


UNSHAPED = WireSpec()


@dataclass(frozen=True)
class Sent:
    """What left one end of a wire since it was made."""

    packets: int
    """Those that the kernel left unsegmented count as one, except where TBF paces."""
    size_bytes: int
    """IP bytes."""
    drops: int
    """By the queue or the interface; the relay's own drops are in `Wire.report`."""


class Wire:
    """Two hosts joined. `ports` is what `hostsetup.script` needs to give them addresses."""

    def __init__(
        self, spawner: Spawner, hosts: tuple[Any, Any], ports: tuple[Port, Port], spec: WireSpec, link: Link | None = None
    ) -> None:
        self.hosts, self.spec, self.link = hosts, spec, link
        self.ports = (replace(ports[0], unqueued=True), replace(ports[1], unqueued=True)) if link else ports
        self._spawner = spawner

    def _run(self, command: str) -> list[str]:
        """`command` at both ends, `{}` the interface; what it printed there."""
        scripts = {host: command.format(port.interface) for host, port in zip(self.hosts, self.ports, strict=True)}
        outputs = run_scripts(self._spawner, scripts)
        return [outputs[host] for host in self.hosts]

    def shape(self) -> None:
        """Set both ends up as the spec says."""
        if self.link:
            size = self.spec.offloaded_bytes
            self._run(f"ip link set dev {{0}} txqueuelen {RING_PACKETS} gso_max_size {size}\ntc qdisc replace dev {{0}} root noqueue")
            self._start(self.link)
        elif self.spec.rate_bps:
            tbf = self.spec.tbf
            self._run(f"tc qdisc add dev {{}} root tbf rate {tbf['rate']}bps burst {tbf['burst']} limit {tbf['limit']}")  # bps: byte/s
        self.check()

    def _start(self, link: Link) -> None:
        trace = RateTrace(f"wire {link.lane}", (0.0, TRACE_S), (self.spec.rate_bps or MAX_RATE_BPS,))
        self.load(trace, trace.name)
        self.start()

    def load(self, trace: Trace, trial_id: str) -> None:
        """Get ready to pace both directions by `trace`, on its mean rate until `start`. UserError without a relay."""
        self._relayed().load(trace, 0.0, trial_id, uplink=trace)

    def start(self) -> None:
        """Begin the trace that was loaded."""
        link = self._relayed()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(b"start", str(link.start_path))

    def cut(self) -> None:
        """Lose all packets in both directions from now on, as a cable that is pulled behind a switch: both ends stay up."""
        self._address([NOBODY, NOBODY])

    def mend(self) -> None:
        """Undo `cut`."""
        self._address([port.neighbour_mac for port in self.ports])

    def _address(self, macs: list[str]) -> None:
        """Where each end sends its packets to."""
        scripts = {
            host: f"ip neighbour replace {port.neighbour_ip} lladdr {mac} dev {port.interface} nud permanent"
            for host, port, mac in zip(self.hosts, self.ports, macs, strict=True)
        }
        run_scripts(self._spawner, scripts)

    def check(self) -> None:
        """Read back what rules both ends: TestbedError at the first thing that is not as asked for."""
        outputs = self._run("ip -details -json link show dev {0}\ntc -raw -json qdisc show dev {0}")
        for host, port, output in zip(self.hosts, self.ports, outputs, strict=True):
            where = f"wire of host {host.name}, interface {port.interface}"
            interface, queue = _documents(output)
            if self.link:
                _compare(where, "qdisc", interface.get("qdisc"), "noqueue")
                _compare(where, "ring", interface.get("txqlen"), RING_PACKETS)
                _compare(where, "gso_max_size", interface.get("gso_max_size"), self.spec.offloaded_bytes)
            else:
                _check_queue(where, queue, self.spec)

    def sent(self) -> tuple[Sent, Sent]:
        """By the first host and by the second."""
        outputs = self._run("ip -statistics -json link show dev {0}\ntc -statistics -json qdisc show dev {0}")
        first, second = (self._sent(*_documents(output)) for output in outputs)
        return first, second

    def _sent(self, interface: Mapping[str, Any], queue: Mapping[str, Any]) -> Sent:
        passed = interface["stats64"]["tx"]
        if queue.get("kind") == "tbf":
            return Sent(queue["packets"], queue["bytes"] - ETHERNET_BYTES * queue["packets"], queue["drops"] + passed["dropped"])
        return Sent(passed["packets"], passed["bytes"] - ETHERNET_BYTES * passed["packets"], passed["dropped"])

    def report(self) -> LinkReport:
        """The relay's account since the last one, or since the wire was made; what was in its queues is lost. UserError without a relay."""
        link = self._relayed()
        report = link.stop()
        self._start(link)
        return report

    def _relayed(self) -> Link:
        if not self.link:
            raise UserError('the wire has neither trace nor report, wanted one shaped by="relay"')
        return self.link


class Wires:
    """Makes wires between hosts (anything with `name` and `pid`). They end with the hosts' namespaces, the relay with `close`."""

    def __init__(self, spawner: Spawner, folder: Path) -> None:
        self._spawner, self._folder = spawner, folder / "wires"
        self._relay: RelaySet | None = None
        self.wires: list[Wire] = []

    def join(self, host_a: Any, port_a: Port, host_b: Any, port_b: Port, spec: WireSpec) -> Wire:
        """Make the two interfaces, down and without addresses, and shape what goes between them.

        UserError when this host can't, TestbedError when the kernel does otherwise than asked.
        """
        hosts, ports = (host_a, host_b), (port_a, port_b)
        if spec.by == "relay":
            wire = Wire(self._spawner, hosts, ports, spec, self._attach(hosts, ports, spec))
        else:
            if spec.rate_bps:
                _require_tbf()
            pair = f"ip link add name {port_a.interface} type veth peer name {port_b.interface} netns {host_b.pid}"
            run_scripts(self._spawner, {host_a: pair})
            wire = Wire(self._spawner, hosts, ports, spec)
        if spec != UNSHAPED:
            wire.shape()
        self.wires.append(wire)
        return wire

    def _attach(self, hosts: tuple[Any, Any], ports: tuple[Port, Port], spec: WireSpec) -> Link:
        if not self._relay:
            self._folder.mkdir()
            self._relay = RelaySet(self._spawner.spawn, self._folder)
        server, client = (Endpoint(host.pid, port.interface) for host, port in zip(hosts, ports, strict=True))
        path = PathSpec(rtt_s=2 * spec.delay_s, queue_bytes=spec.bound_bytes)
        return self._relay.attach(len(self.wires), server, client, path, offload=True)

    def check(self) -> None:
        """Read all of them back: `Wire.check`."""
        for wire in self.wires:
            wire.check()

    @property
    def facts(self) -> Mapping[str, object]:
        """Of the relay; none without one."""
        return self._relay.facts if self._relay else {}

    def close(self) -> None:
        """End the relay, if there is one; callable twice."""
        if self._relay:
            self._relay.close()
        self._relay = None


@cache
def _require_tbf() -> None:
    """UserError when this kernel can't pace."""
    if not tried("tc qdisc add dev lo root tbf rate 1mbit burst 3028 limit 30000"):
        raise UserError('the kernel can\'t pace a wire: no tc or no sch_tbf; by="relay" can')


def _documents(output: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The interface as `ip` tells it, and its queue as `tc` does (nothing where there is none)."""
    (interface,), queues = (json.loads(line) for line in output.strip().splitlines())
    return interface, next((queue for queue in queues if queue.get("root")), {})


def _check_queue(where: str, queue: Mapping[str, Any], spec: WireSpec) -> None:
    _compare(where, "qdisc", queue.get("kind", "noqueue"), "tbf" if spec.rate_bps else "noqueue")
    for name, wanted in spec.tbf.items() if spec.rate_bps else ():
        seen = queue["options"].get(name)
        near = name == "burst" and isinstance(seen, int) and math.isclose(seen, wanted, rel_tol=0.01)  # the kernel keeps it in ticks
        _compare(where, f"tbf {name}", wanted if near else seen, wanted)


def _compare(where: str, what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise TestbedError(f"{where}: {what} is {seen}, wanted {wanted}")
