"""`Star`: hosts that all reach each other, each over an access link of its own, shaped in both directions; several such networks if wanted.

    e0 == core of "data" == e1 ...        e0 == core of "control" == driver ...        (==: a wire)

The core of a network is a namespace of ours that forwards IP packets: a router, not a bridge. A bridge would ask the machine's firewall,
whose FORWARD chain Docker makes drop, and would learn, flood and ask for addresses; a namespace has a firewall of its own, without rules.

Towards the core a host's packets wait in the host, as before its network card. From the core to a host they wait in the core, as in a
switch: all that send to this host share that queue, and its overflow is counted there.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from testbed.errors import TestbedError, UserError
from testbed.netns.hosts import Spawner, keep_awake, make_host, run_scripts
from testbed.netns.hostsetup import Port, check, script
from testbed.netns.owned import Run, require_root, undisturbed
from testbed.netns.wires import Wire, Wires, WireSpec
from testbed.network import adopt, check_congestion_control, congestion_control_allowed

MAX_NETWORKS = 10
MAX_HOSTS = 250
FIRST = 100
"""The first network is 10.100.0.0/16."""
FORWARD = "echo 1 > /proc/sys/net/ipv4/ip_forward"


class Star:
    """Makes hosts and networks and undoes all of it at any end. `networks` says which hosts hang on which network by what wire:

    `with run_lock() as run, Star({"data": {"e0": WireSpec(20e6), "e1": WireSpec(20e6)}, "control": {"e0": WireSpec()}}, run) as star:`

    `namespaces` gives a host the network namespace of a process that is there already; `awake` keeps a virtual machine's cores awake.
    Entering raises UserError when this machine can't give what is asked for.
    """

    def __init__(
        self,
        networks: Mapping[str, Mapping[str, WireSpec]],
        run: Run,
        congestion_control: str = "cubic",
        namespaces: Mapping[str, int] | None = None,
        *,
        awake: bool = False,
    ) -> None:
        _check_names(networks)
        check_congestion_control(congestion_control)
        self._networks, self._congestion_control, self._run = networks, congestion_control, run
        self._namespaces, self._awake = namespaces or {}, awake
        self._spawner: Spawner | None = None
        self._wires: Wires | None = None
        self.hosts: dict[str, Any] = {}
        """Mininet hosts by name; `core-NETWORK` are the routers."""
        self.wires: dict[str, dict[str, Wire]] = {}
        """By network and host; of its two ends the first is the host's, the second the core's."""
        self.facts: dict[str, object] = {}
        """TCP's settings as read back, and what the relay is, if there is one."""

    def __enter__(self) -> Self:
        require_root()
        try:
            self._spawner = Spawner(self._run)
            self._wires = Wires(self._spawner, self._run.folder)
            self._make(self._spawner, self._wires)
            self.facts["awake"] = self._awake and keep_awake(self._spawner)
        except BaseException:
            self._undo()
            raise
        return self

    def _make(self, spawner: Spawner, wires: Wires) -> None:
        """Hosts, wires, addresses, in that order; then read back."""
        leaves = dict.fromkeys(host for specs in self._networks.values() for host in specs)
        for name in (*leaves, *map(_core, self._networks)):
            self.hosts[name] = make_host(spawner, name, self._namespaces.get(name))
        for index, (network, specs) in enumerate(self._networks.items()):
            core, joined = self.hosts[_core(network)], self.wires.setdefault(network, {})
            for place, (name, spec) in enumerate(specs.items()):
                port, opposite = _ports(index, place, name, network)
                joined[name] = wires.join(self.hosts[name], port, core, opposite, spec)
                adopt(self.hosts[name], port)
                adopt(core, opposite)
        with congestion_control_allowed(spawner, self._run, core, self._congestion_control):
            outputs = run_scripts(spawner, {host: self._script(name) for name, host in self.hosts.items()})
        for name, host in self.hosts.items():
            self.facts = {**wires.facts, **check(name, outputs[host], self._ports_of(name), self._congestion_control)}
        wires.check()

    def _ports_of(self, name: str) -> list[Port]:
        host = self.hosts[name]
        wires = [wire for joined in self.wires.values() for wire in joined.values()]
        return [port for wire in wires for end, port in zip(wire.hosts, wire.ports, strict=True) if end is host]

    def _script(self, name: str) -> str:
        """For a host: its ports, and the way to the other hosts of its networks; or for a core: that it forwards."""
        routes = [FORWARD] if name in map(_core, self._networks) else []
        for index, network in enumerate(self._networks):
            if wire := self.wires[network].get(name):
                routes.append(f"ip route add 10.{FIRST + index}.0.0/16 via {wire.ports[1].ip} dev {wire.ports[0].interface}")
        return "\n".join([script(self._ports_of(name), self._congestion_control), *routes])

    def ip(self, network: str, host: str) -> str:
        """Address of `host` on `network`."""
        return self.wires[network][host].ports[0].ip

    def popen(
        self,
        host: str | None,
        argv: Sequence[str],
        *,
        user: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a process in `host` (None: outside) as `user` (uid, gid), else as root; it dies with the testbed. From any thread."""
        if not self._spawner:
            raise TestbedError(f"the network is down, wanted it up to start {argv[0]}")
        return self._spawner.spawn(argv, namespace_pid=self.hosts[host].pid if host else None, user=user, env=env, **popen)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo()

    def _undo(self) -> None:
        """End processes, relay and hosts; Ctrl-C and SIGTERM meanwhile are ignored."""
        with undisturbed():
            try:
                if self._spawner:
                    self._spawner.end([host.shell for host in self.hosts.values()])
            finally:
                if self._wires:
                    self._wires.close()
                for host in self.hosts.values():
                    host.terminate()
                self.hosts, self.wires, self._wires, self._spawner = {}, {}, None, None


def _check_names(networks: Mapping[str, Mapping[str, WireSpec]]) -> None:
    if not 1 <= len(networks) <= MAX_NETWORKS:
        raise UserError(f"{len(networks)} networks are asked for, wanted 1 to {MAX_NETWORKS}")
    for network, specs in networks.items():
        if not 1 <= len(specs) <= MAX_HOSTS:
            raise UserError(f"network {network!r} has {len(specs)} hosts, wanted 1 to {MAX_HOSTS}")
        for name in (network, *specs):
            if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", name):
                raise UserError(f"a network or host is called {name!r}, wanted up to 10 lower-case letters and digits")


def _core(network: str) -> str:
    return f"core-{network}"


def _ports(index: int, place: int, host: str, network: str) -> tuple[Port, Port]:
    """Of the wire between the host at `place` in network number `index` and its core: a network of two addresses."""
    ips = [f"10.{FIRST + index}.{place}.{end}" for end in (1, 2)]
    macs = [f"02:4e:4c:{FIRST + index:02x}:{place:02x}:{end:02x}" for end in (1, 2)]  # locally administered
    return (
        Port(f"{host}-eth{index}", ips[0], macs[0], ips[1], macs[1]),
        Port(f"{network}-{place}", ips[1], macs[1], ips[0], macs[0]),
    )
