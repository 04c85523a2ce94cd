"""Back ends `userspace` and `python`: the testbed's side of a relay process, in C (`native/`) or in Python (`relay`)."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from testbed.errors import TestbedError, UserError
from testbed.link import BackEnd, Endpoint, Link, LinkReport, LinkSet, PathSpec
from testbed.setup import native
from testbed.shapers import codel, messages
from testbed.shapers.accounts import report
from testbed.shapers.encoding import encode
from testbed.shapers.kernelcalls import dropped_by_interface
from testbed.units import ns_from_s
from traces.trace import Trace

ANSWER_TIMEOUT_S = 10.0
NOT_BUILT = "the relay in C was not built (scripts/setup builds it where there is a C compiler): the one in Python stands in"
NO_OFFLOAD = "packets of 64 kB need the relay in C, which was not built; scripts/setup builds it where there is a C compiler"

Spawn = Callable[..., subprocess.Popen[bytes]]
"""`spawn(argv, **popen_arguments)`: starts a process of ours in the root network namespace."""


class RelaySet(LinkSet):
    """The relay process with all its lanes. `spawn` starts it, `folder` gets the start sockets."""

    unqueued = True

    def __init__(self, spawn: Spawn, folder: Path, back_end: BackEnd = "userspace") -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._program = native.built() if back_end == "userspace" else None
        self.notes = [NOT_BUILT] if back_end == "userspace" and not self._program else []
        """What the reader of a report should know of the relay."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            program = [str(self._program)] if self._program else [sys.executable, "-m", "testbed.shapers.relay"]
            self.process = spawn([*program, str(os.getpid()), str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._problems: list[str] | None = None
        self._fault = ""
        """Why it is asked no more: an answer that comes late would be taken for that to the next request."""

    @property
    def problems(self) -> list[str]:
        """What of the relay's real-time set-up this host refused. Waits until the relay is up."""
        with self._lock:
            return self._wait_ready()

    @property
    def facts(self) -> dict[str, object]:
        """See `LinkSet`."""
        relay = "C" if self._program else "Python"
        facts = {"back_end": "userspace", "relay": relay, "relay_pid": self.process.pid}
        return {**facts, "realtime": not self.problems, "realtime_problems": self.problems}

    def attach(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec, *, offload: bool = False) -> "RelayLink":
        """See `LinkSet`. With `offload` the hosts' kernels may hand over packets of up to 64 kB; only the relay in C takes these."""
        if offload and not self._program:
            raise UserError(NO_OFFLOAD)
        link = RelayLink(self, lane, server, client, self._folder / f"lane{lane}.sock")
        managed = path.discipline == "codel"
        self.request(
            messages.Attach(
                lane=lane,
                server_pid=server.pid,
                client_pid=client.pid,
                delay_ns=ns_from_s(path.rtt_s / 2),
                queue_bytes=path.queue_bytes,
                queue_packets=path.queue_packets or 0,
                codel_target_ns=codel.TARGET_NS if managed else 0,
                codel_interval_ns=codel.INTERVAL_NS if managed else 0,
                offload=offload,
                server_interface=server.interface,
                client_interface=client.interface,
                start_path=str(link.start_path),
            )
        )
        return link

    def request(self, request: messages.Request, *descriptors: int) -> None:
        """Ask the relay, wait until it's done. Raises `TestbedError` when it refuses, and ever after it did not answer once."""
        with self._lock:
            self._wait_ready()
            try:
                socket.send_fds(self._control, [request.encode()], descriptors)
            except OSError as error:
                raise self._lost(str(error)) from error
            kind, text = self._receive()
        if kind != messages.DONE:
            raise TestbedError(f"the relay could not carry out {type(request).__name__}: {text}")

    def _wait_ready(self) -> list[str]:
        if self._fault:
            raise TestbedError(self._fault)
        if self._problems is None:
            kind, text = self._receive()
            if kind != messages.READY:
                raise self._lost(f"it answered {kind} {text!r} instead of being ready")
            self._problems = text.splitlines()
        return self._problems

    def _receive(self) -> tuple[int, str]:
        try:
            data = self._control.recv(messages.MAX_MESSAGE_BYTES)
        except OSError as error:
            raise self._lost(str(error)) from error
        if len(data) < messages.ANSWER.size:
            raise self._lost("it closed its socket")
        (kind,) = messages.ANSWER.unpack_from(data)
        return kind, data[messages.ANSWER.size :].decode(errors="replace")

    def _lost(self, why: str) -> TestbedError:
        code = self.process.poll()
        self._fault = f"the relay process does not answer ({why}; {'it runs' if code is None else f'exit code {code}'})"
        return TestbedError(self._fault)

    def close(self) -> None:
        """See `LinkSet`."""
        self._control.close()
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for path in self._folder.glob("lane*.sock"):
            path.unlink(missing_ok=True)


class RelayLink(Link):
    """One lane of the relay."""

    def __init__(self, relay: RelaySet, lane: int, server: Endpoint, client: Endpoint, start_path: Path) -> None:
        self.lane, self.server_interface, self.client_interface = lane, server.interface, client.interface
        self._relay, self._ends, self._start_path = relay, (server, client), start_path
        self._trial_id: str | None = None
        self._dropped_before = 0

    @property
    def start_path(self) -> Path:
        """See `Link`."""
        return self._start_path

    def load(self, trace: Trace, offset_s: float, trial_id: str, *, uplink: Trace | None = None, seed: int = 1) -> None:
        """See `Link`."""
        request = encode(self.lane, trace, uplink, offset_s, seed)
        descriptor = os.memfd_create("traces")
        with open(descriptor, "wb") as file:
            file.write(request.numbers())
            file.flush()
            self._relay.request(request, descriptor)
        self._trial_id, self._dropped_before = trial_id, self._dropped_by_interfaces()

    def stop(self) -> LinkReport:
        """See `Link`."""
        if self._trial_id is None:
            raise TestbedError(f"lane {self.lane}: stop without load")
        trial_id, self._trial_id = self._trial_id, None
        with open(os.memfd_create("result"), "r+b") as file:
            self._relay.request(messages.Stop(lane=self.lane), file.fileno())
            file.seek(0)
            result = messages.Result.decode(file.read())
        interface_drops = self._dropped_by_interfaces() - self._dropped_before
        return report(trial_id, result, interface_drops, self._relay.problems, self._relay.notes)

    def _dropped_by_interfaces(self) -> int:
        try:
            return sum(dropped_by_interface(end.pid, end.interface) for end in self._ends)
        except OSError as error:
            raise TestbedError(f"lane {self.lane}: a host of the link is gone ({error})") from error
