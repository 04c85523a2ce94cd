"""This project's relay as links without a trace use it: packets cross it as large as the hosts' TCP makes them (GSO)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from testbed.bench.lanes import Contender, End, Lane, OwnLane, Wanted, part_of
from testbed.bench.mininet_lanes import PORTS, two_hosts
from testbed.link import Endpoint, Link, PathSpec
from testbed.netns.hosts import Spawner
from testbed.netns.owned import Run
from testbed.setup import native
from testbed.shapers.userspace import RelaySet
from testbed.units import MTU_BYTES


@dataclass(frozen=True)
class OffloadedLink(Contender):
    """The relay in C with offloads. For TCP's throughput alone: datagrams come one by one as on any link."""

    phases: tuple[str, ...] = ("tcp",)

    def lacks(self) -> str:
        """See `Contender`."""
        return "" if native.built() else native.fault() or "not built: run scripts/setup"

    @contextlib.contextmanager
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> Iterator[Lane]:
        """See `Contender`."""
        relay = RelaySet(spawner.spawn, part_of(run, self.key).folder)
        path = PathSpec(wanted.rtt_s, wanted.queue_packets * MTU_BYTES)
        links: list[Link] = []

        def join(server: Any, client: Any) -> None:
            ends = (Endpoint(server.pid, PORTS[0].interface), Endpoint(client.pid, PORTS[1].interface))
            links.append(relay.attach(0, ends[0], ends[1], path, offload=True))

        try:
            with two_hosts(spawner, join, unqueued=True) as hosts:
                server, client = (End(host.pid, port.ip, port.interface) for host, port in zip(hosts, PORTS, strict=True))
                yield OwnLane(spawner, links[0], server, client, [relay.process.pid])
        finally:
            relay.close()
