"""Back end `userspace`: the testbed's side of the relay process (`relay`)."""

import math
import os
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec

from testbed.errors import TestbedError, UserError
from testbed.link import Endpoint, Link, LinkReport, LinkSet, PathSpec
from testbed.shapers import messages
from testbed.shapers.accounts import report
from testbed.shapers.bottleneck import RATE_SCALE
from testbed.shapers.kernelcalls import dropped_by_interface
from testbed.shapers.ledger import COLUMNS
from testbed.units import ns_from_s
from traces.trace import RateTrace, Trace

ANSWER_TIMEOUT_S = 10.0

Spawn = Callable[..., subprocess.Popen[bytes]]
"""`spawn(argv, **popen_arguments)`: starts a process of ours in the root network namespace."""


class RelaySet(LinkSet):
    """The relay process with all its lanes. `spawn` starts it, `folder` gets the start sockets."""

    unqueued = True

    def __init__(self, spawn: Spawn, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._answers = msgspec.json.Decoder(messages.Answer)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            argv = [sys.executable, "-m", "testbed.shapers.relay", str(os.getpid()), str(theirs.fileno())]
            self.process = spawn(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._ready: messages.Ready | None = None

    @property
    def problems(self) -> list[str]:
        """What of the relay's real-time set-up this host refused. Waits until the relay is up."""
        with self._lock:
            return self._wait_ready().problems

    @property
    def facts(self) -> dict[str, object]:
        """See `LinkSet`."""
        return {"back_end": "userspace", "realtime": not self.problems, "realtime_problems": self.problems}

    def attach(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec) -> "RelayLink":
        """See `LinkSet`."""
        link = RelayLink(self, lane, server, client, self._folder / f"lane{lane}.sock")
        self.request(
            messages.Attach(
                lane=lane,
                server_pid=server.pid,
                server_interface=server.interface,
                client_pid=client.pid,
                client_interface=client.interface,
                start_path=str(link.start_path),
                delay_ns=ns_from_s(path.rtt_s / 2),
                queue_bytes=path.queue_bytes,
            )
        )
        return link

    def request(self, request: messages.Request, *descriptors: int) -> messages.Answer:
        """Ask the relay, wait for its answer."""
        with self._lock:
            self._wait_ready()
            try:
                socket.send_fds(self._control, [msgspec.json.encode(request)], descriptors)
            except OSError as error:
                raise self._lost(str(error)) from error
            answer = self._receive()
        if isinstance(answer, messages.Failed):
            raise TestbedError(f"the relay could not carry out {type(request).__name__}: {answer.reason}")
        return answer

    def _wait_ready(self) -> messages.Ready:
        if self._ready is None:
            answer = self._receive()
            if not isinstance(answer, messages.Ready):
                raise self._lost(f"it answered {answer!r} instead of being ready")
            self._ready = answer
        return self._ready

    def _receive(self) -> messages.Answer:
        try:
            data = self._control.recv(messages.MAX_MESSAGE_BYTES)
        except OSError as error:
            raise self._lost(str(error)) from error
        if not data:
            raise self._lost("it closed its socket")
        answer: messages.Answer = self._answers.decode(data)
        return answer

    def _lost(self, why: str) -> TestbedError:
        code = self.process.poll()
        return TestbedError(f"the relay process does not answer ({why}; {'it runs' if code is None else f'exit code {code}'})")

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

    def load(self, trace: Trace, offset_s: float, trial_id: str) -> None:
        """See `Link`."""
        request, numbers = encode(trace, offset_s, self.lane)
        descriptor = os.memfd_create("trace")
        try:
            os.write(descriptor, numbers)
            self._relay.request(request, descriptor)
        finally:
            os.close(descriptor)
        self._trial_id, self._dropped_before = trial_id, self._dropped_by_interfaces()

    def stop(self) -> LinkReport:
        """See `Link`."""
        if self._trial_id is None:
            raise TestbedError(f"lane {self.lane}: stop without load")
        trial_id, self._trial_id = self._trial_id, None
        stopped = self._relay.request(messages.Stop(lane=self.lane))
        if not isinstance(stopped, messages.Stopped):
            raise TestbedError(f"lane {self.lane}: the relay answered {stopped!r} to Stop")
        interface_drops = self._dropped_by_interfaces() - self._dropped_before
        return report(trial_id, stopped, self._windows(stopped.windows), interface_drops, self._relay.problems)

    def _dropped_by_interfaces(self) -> int:
        try:
            return sum(dropped_by_interface(end.pid, end.interface) for end in self._ends)
        except OSError as error:
            raise TestbedError(f"lane {self.lane}: a host of the link is gone ({error})") from error

    def _windows(self, count: int) -> "array[float]":
        rows = array("d")
        while len(rows) < count * COLUMNS:
            page = self._relay.request(messages.FetchWindows(lane=self.lane, first=len(rows) // COLUMNS))
            if not isinstance(page, messages.WindowPage) or not page.rows:
                raise TestbedError(f"lane {self.lane}: the relay handed over {len(rows) // COLUMNS} of {count} windows")
            rows.frombytes(page.rows)
        return rows


def encode(trace: Trace, offset_s: float, lane: int) -> tuple[messages.Load, bytes]:
    """The request and the numbers that go with it."""
    if not (math.isfinite(offset_s) and offset_s >= 0):
        raise UserError(f"trace {trace.name}: the offset is {offset_s} s, wanted a finite number of at least 0")
    if isinstance(trace, RateTrace):
        times, rates = [ns_from_s(t) for t in trace.edges_s], [round(rate * RATE_SCALE) for rate in trace.rates_bps]
    else:
        times, rates = [ns_from_s(t) for t in trace.times_s], []
    if times[-1] <= 0 or (rates and not any(rate > 0 and b > a for rate, a, b in zip(rates, times, times[1:], strict=False))):
        raise UserError(f"trace {trace.name}: carries nothing at a resolution of 1 ns and {1 / RATE_SCALE} bit/s, wanted more")
    request = messages.Load(
        lane=lane, points=len(times), rates=len(rates), offset_ns=ns_from_s(offset_s), mean_rate_bps=trace.mean_rate_bps
    )
    return request, array("q", times + rates).tobytes()
