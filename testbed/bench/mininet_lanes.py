"""Paths that Mininet makes by itself: `TCLink` whose rate `tc change` follows a trace, and a plain veth pair that emulates nothing."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.bench.lanes import CONGESTION_CONTROL, ETHERNET_BYTES, Contender, Counted, End, Lane, Wanted
from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.netns.hosts import Spawner, make_host, run_scripts
from testbed.netns.hostsetup import Port, check, script
from testbed.netns.owned import Run
from testbed.units import MTU_BYTES, bits_from_bytes, mbps_from_bps
from traces.trace import Trace

FIRST_MBPS = 10.0
"""Of both directions before the first change; the direction back, of acknowledgements, stays there."""
FRAME_SHARE = (MTU_BYTES + ETHERNET_BYTES) / MTU_BYTES
"""HTB counts whole frames: it is set so much higher that full packets' IP bytes flow at the rate wanted. A script would hardly do that."""
LEAST_BPS = 100e3
"""`tc` refuses 0, and HTB waits the longer after an outage the lower it was set."""
PORTS = (
    Port("server-eth0", "10.79.0.1", "02:4e:4c:02:00:01", "10.79.0.2", "02:4e:4c:02:00:02"),
    Port("client-eth0", "10.79.0.2", "02:4e:4c:02:00:02", "10.79.0.1", "02:4e:4c:02:00:01"),
)


def held_rates(trace: Trace, step_s: float, seconds: float) -> list[float]:
    """The trace's mean rate in each step, in bit/s: what a link that is changed so often can follow."""
    return [
        bits_from_bytes(float(trace.bytes_by((i + 1) * step_s)) - float(trace.bytes_by(i * step_s))) / step_s
        for i in range(math.ceil(seconds / step_s))
    ]


@contextlib.contextmanager
def two_hosts(spawner: Spawner, join: Callable[[Any, Any], object], unqueued: bool = False) -> Iterator[tuple[Any, Any]]:
    """Two Mininet hosts that `join` gives their interfaces, the first two of `PORTS`; set up as those of `Network` are."""
    hosts = []
    try:
        hosts = [make_host(spawner, "server"), make_host(spawner, "client")]
        join(*hosts)
        ports = {host: replace(port, unqueued=unqueued) for host, port in zip(hosts, PORTS, strict=True)}
        outputs = run_scripts(spawner, {host: script([port], CONGESTION_CONTROL) for host, port in ports.items()})
        for host, port in ports.items():
            check(host.name, outputs[host], [port], CONGESTION_CONTROL)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.terminate()


def _mininets(kind: str, **parameters: Any) -> Callable[[Any, Any], object]:
    """Joins hosts by one of Mininet's own links."""

    def join(server: Any, client: Any) -> None:
        from mininet import link as mininet_link

        try:
            getattr(mininet_link, kind)(server, client, intfName1=PORTS[0].interface, intfName2=PORTS[1].interface, **parameters)
        except Exception as error:  # Mininet raises nothing more specific
            raise TestbedError(f"Mininet's {kind}: {str(error).strip()}") from error

    return join


class _MininetLane(Lane):
    """Emulates nothing."""

    def __init__(self, spawner: Spawner, server: Any, client: Any) -> None:
        super().__init__(spawner)
        self._server = server
        self.server, self.client = (End(host.pid, port.ip, port.interface) for host, port in zip((server, client), PORTS, strict=True))

    @property
    def pids(self) -> Sequence[int]:
        return ()

    def load(self, trace: Trace) -> None: ...

    def start(self) -> None:
        self.began_s = now_s()

    def stop(self) -> Counted:
        return Counted(known=False)


class _TcLane(_MininetLane):
    """A thread runs `tc` in the server's shell at each step, as scripts for Mininet do."""

    def __init__(self, spawner: Spawner, server: Any, client: Any, step_s: float) -> None:
        super().__init__(spawner, server, client)
        self._step_s = step_s
        self._rates_bps: list[float] = []
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._changes = 0

    def load(self, trace: Trace) -> None:
        self._rates_bps = held_rates(trace, self._step_s, trace.duration_s)
        self._change(self._rates_bps[0])

    def start(self) -> None:
        super().start()
        self._halt.clear()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for step, rate_bps in enumerate(self._rates_bps[1:], start=1):
            if self._halt.wait(max(self.began_s + step * self._step_s - now_s(), 0)):
                return
            self._change(rate_bps)

    def _change(self, rate_bps: float) -> None:
        rate = f"{mbps_from_bps(max(rate_bps, LEAST_BPS) * FRAME_SHARE):.6f}Mbit"
        said = self._server.cmd(f"tc class change dev {self.server.interface} parent 5:0 classid 5:1 htb rate {rate} burst 15k")
        if "rror" in said:
            raise TestbedError(f"tc refused {rate}: {said.strip()}")

    def stop(self) -> Counted:
        self._halt.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        return Counted(known=False)


@dataclass(frozen=True)
class TcLink(Contender):
    """Mininet's TCLink, changed every `step_s`."""

    phases: tuple[str, ...] = ("rate",)
    step_s: float = 1.0

    def lacks(self) -> str:
        """See `Contender`."""
        return ""

    @contextlib.contextmanager
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> Iterator[Lane]:
        """See `Contender`."""
        with two_hosts(spawner, _mininets("TCLink", bw=FIRST_MBPS)) as (server, client):
            lane = _TcLane(spawner, server, client, self.step_s)
            try:
                yield lane
            finally:
                lane.stop()


@dataclass(frozen=True)
class NoEmulator(Contender):
    """A plain veth pair: what hosts and traffic generators could do."""

    phases: tuple[str, ...] = ("tcp", "flood")

    def lacks(self) -> str:
        """See `Contender`."""
        return ""

    @contextlib.contextmanager
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> Iterator[Lane]:
        """See `Contender`."""
        with two_hosts(spawner, _mininets("Link")) as (server, client):
            yield _MininetLane(spawner, server, client)
