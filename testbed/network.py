"""`Network`: K lanes on Mininet. Server host - emulated link - client host, and one controller host on an unshaped link to each client.

Everything lives in the hosts' own network namespaces, which end with their processes; the root namespace gets neither interface nor
address. Neighbours are static, IPv6 is off, TCP's settings are set in each host and read back.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.link import Endpoint, Link, LinkSet, PathSpec
from testbed.netns.hosts import Spawner, keep_awake, make_host, run_scripts
from testbed.netns.hostsetup import PREFIX_LENGTH, Port, check, script
from testbed.netns.owned import Run, require_root, undisturbed
from testbed.netns.wires import UNSHAPED, Wires, WireSpec

MAX_LANES = 64
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def _wires(lane: int, unqueued: bool) -> tuple[Port, Port, Port, Port]:
    """Addresses of a lane: server and client on the emulated link, client and controller on the control link."""
    server, client, control, controller = (f"02:4e:4c:00:{lane:02x}:{end:02x}" for end in range(1, 5))  # locally administered
    link, unshaped = f"10.77.{lane}", f"10.78.{lane}"
    return (
        Port(f"server{lane}-eth0", f"{link}.1", server, f"{link}.2", client, unqueued),
        Port(f"client{lane}-eth0", f"{link}.2", client, f"{link}.1", server, unqueued),
        Port(f"client{lane}-eth1", f"{unshaped}.2", control, f"{unshaped}.1", controller),
        Port(f"ctl-eth{lane}", f"{unshaped}.1", controller, f"{unshaped}.2", control),
    )


class Lane:
    """One emulated path with its hosts."""

    def __init__(self, index: int, spawner: Spawner, server: Any, client: Any, link: Link, wires: Sequence[Port]) -> None:
        self.index = index
        self.server_ip, self.client_ip = wires[0].ip, wires[1].ip
        self.controller_ip = wires[3].ip
        """Of the controller host as seen from this lane's client."""
        self.client_control_ip = wires[2].ip
        """Of this lane's client as seen from the controller host."""
        self.link = link
        self.server, self.client = server, client
        """Mininet hosts."""
        self._spawner = spawner

    def popen_server(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.Popen[bytes]:
        """Start a process in the server host, as root, in its own process group; it dies with the testbed, however that ends.

        `popen` are arguments of `subprocess.Popen`; `stdin` is /dev/null by default. May be called from any thread.
        """
        return self._spawner.spawn(argv, namespace_pid=self.server.pid, env=env, **popen)

    def popen_client(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.Popen[bytes]:
        """The same in the client host."""
        return self._spawner.spawn(argv, namespace_pid=self.client.pid, env=env, **popen)


class Network:
    """Makes the lanes, and undoes all of it at any end: `with run_lock() as run, Network(4, PathSpec(), "cubic", run) as network:`.

    `control` is what joins each client to the controller host; `awake` keeps a virtual machine's cores from halting while it is up.
    Entering raises UserError when the host can't give what is asked for: no root, no Mininet, no such congestion control, no netem.
    """

    def __init__(
        self, lanes: int, path: PathSpec, congestion_control: str, run: Run, *, control: WireSpec = UNSHAPED, awake: bool = False
    ) -> None:
        if not 1 <= lanes <= MAX_LANES:
            raise UserError(f"{lanes} lanes are asked for, wanted 1 to {MAX_LANES}")
        check_congestion_control(congestion_control)
        self._count, self._path, self._congestion_control, self._run = lanes, path, congestion_control, run
        self._control, self._awake = control, awake
        self._hosts: list[Any] = []
        self._wires: Wires | None = None
        self._links: LinkSet | None = None
        self._spawner: Spawner | None = None
        self.lanes: tuple[Lane, ...] = ()
        self.facts: dict[str, object] = {}
        """What was set and read back, for the run's header."""

    def __enter__(self) -> Self:
        require_root()
        begin_s = now_s()
        try:
            self._spawner = Spawner(self._run)
            self._links = _open_links(self._path, self._spawner, self._run.folder)
            self._wires = Wires(self._spawner, self._run.folder)
            self._make(self._spawner, self._links, self._wires)
            self.facts["awake"] = self._awake and keep_awake(self._spawner)
        except BaseException:
            self._undo()
            raise
        self.facts["setup_s"] = round(now_s() - begin_s, 3)
        return self

    def _make(self, spawner: Spawner, links: LinkSet, control: Wires) -> None:
        """Hosts, links, addresses, in that order; then read back."""
        controller = self._add_host(spawner, "controller")
        pairs = [(self._add_host(spawner, f"server{i}"), self._add_host(spawner, f"client{i}")) for i in range(self._count)]
        lanes, ports = [], {host: [] for host in self._hosts}  # type: list[Lane], dict[Any, list[Port]]
        for i, (server, client) in enumerate(pairs):
            wires = list(_wires(i, links.unqueued))
            link = links.attach(i, Endpoint(server.pid, wires[0].interface), Endpoint(client.pid, wires[1].interface), self._path)
            wires[2:] = control.join(client, wires[2], controller, wires[3], self._control).ports
            for host, port in zip((server, client, client, controller), wires, strict=True):
                adopt(host, port)
                ports[host].append(port)
            lanes.append(Lane(i, spawner, server, client, link, wires))
        with congestion_control_allowed(spawner, self._run, controller, self._congestion_control):
            outputs = run_scripts(spawner, {host: script(ports[host], self._congestion_control) for host in self._hosts})
        tcp = [check(host.name, outputs[host], ports[host], self._congestion_control) for host in self._hosts]
        path = {"lanes": self._count, **asdict(self._path)}
        self.facts = {**path, **links.facts, **tcp[0]}
        if self._control != UNSHAPED:
            self.facts["control"] = asdict(self._control)
        self.lanes = tuple(lanes)

    def _add_host(self, spawner: Spawner, name: str) -> Any:
        host = make_host(spawner, name)
        self._hosts.append(host)
        return host

    def popen_controller(
        self, argv: Sequence[str], *, user: tuple[int, int] | None = None, env: Mapping[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process in the controller host as `user` (uid, gid), else as root. Else as `Lane.popen_server`."""
        if not self._spawner:
            raise TestbedError("the network is down, wanted it up to start the controller")
        return self._spawner.spawn(argv, namespace_pid=self._hosts[0].pid, user=user, env=env, **popen)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo()

    def _undo(self) -> None:
        """End processes, relay and hosts; Ctrl-C and SIGTERM meanwhile are ignored."""
        with undisturbed():
            try:
                if self._spawner:
                    self._spawner.end([host.shell for host in self._hosts])
            finally:
                for links in (self._links, self._wires):
                    if links:
                        links.close()
                for host in self._hosts:
                    host.terminate()
                self._hosts, self._links, self._wires, self._spawner, self.lanes = [], None, None, None, ()


def check_congestion_control(name: str) -> None:
    """UserError when `name` can't be one."""
    if not re.fullmatch(r"[a-z0-9_]{1,15}", name):
        raise _unknown_congestion_control(name)


@contextmanager
def congestion_control_allowed(spawner: Spawner, run: Run, host: Any, name: str) -> Iterator[None]:
    """Within, hosts may take congestion control `name`; UserError when there is none of that name. `host` is one to try it in.

    Linux lets a new namespace choose only from the host's allowed list, which may be shorter than the available one.
    """
    if name not in AVAILABLE.read_text().split():  # root's asking may load the module
        run_scripts(spawner, {host: f"echo {name} > /proc/sys/net/ipv4/tcp_congestion_control || true"})
    if name not in AVAILABLE.read_text().split():
        raise _unknown_congestion_control(name)
    allowed = ALLOWED.read_text().split()
    if name in allowed:
        yield
    else:
        with run.changed(ALLOWED, " ".join([*allowed, name])):
            yield


def _open_links(path: PathSpec, spawner: Spawner, folder: Path) -> LinkSet:
    if path.back_end == "kernel":
        from testbed.shapers.kernel import KernelSet

        return KernelSet(spawner.spawn, folder, path)
    from testbed.shapers.userspace import RelaySet

    return RelaySet(spawner.spawn, folder, path.back_end)


def _unknown_congestion_control(name: str) -> UserError:
    offered = AVAILABLE.read_text().split()
    return UserError(f"congestion control {name!r} is not available on this host, wanted one of {', '.join(sorted(offered))}")


def adopt(host: Any, port: Port) -> None:
    """Tell Mininet of an interface that is in the host's namespace already, and of the addresses that `hostsetup` gives."""
    from mininet.link import Intf

    interface = Intf(port.interface, node=host, mac=port.mac, moveIntfFn=lambda *_: None, up=None)
    interface.ip, interface.prefixLen, interface.mac = port.ip, str(PREFIX_LENGTH), port.mac
