"""The decision service's process, watched from the root namespace: started, asked for its health, restarted when dead or hung."""

import http.client
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from controllers.config import ControllerConfig, ControllerReady
from testbed.child import Child
from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.user import User, home

PORT = 9000
"""TCP port of the service, inside the controller's namespace."""
LOAD_S = 300.0
"""Longest wait for policies to be loaded and started, wherever: a large model comes from a slow disk at 100 MB/s."""
HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 5.0
END_S = 2.0
"""From SIGTERM to SIGKILL."""
MOST_RESTARTS = 10
"""After that many the players are left to their local rule."""


class Controller:
    """One decision service, started by `popen` (of a host). `launch`, `wait_ready`, then `watch` every now and then, then `stop`."""

    def __init__(
        self,
        popen: Callable[..., subprocess.Popen[bytes]],
        references: Sequence[str],
        user: User | None,
        folder: Path,
        load_s: float = LOAD_S,
        *,
        task: str = "abr",
        host: str = "0.0.0.0",
        port: int = PORT,
    ) -> None:
        self._popen, self._user, self._load_s = popen, user, load_s
        unix_socket = str(folder / "controller.sock")
        self._config = ControllerConfig(host=host, port=port, unix_socket=unix_socket, task=task, policies=tuple(references))
        self.port = port
        """Where it listens; told by the service when it was 0."""
        self._child: Child | None = None
        self._ready = False
        self._given_up = False
        self._launched_s = self._asked_s = 0.0
        self.restarts = 0

    def launch(self) -> None:
        """Start the process; it loads its policies meanwhile. Call `wait_ready` next."""
        Path(str(self._config.unix_socket)).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"HOME": home(self._user)} if self._user else {})}
        self._child = Child(self._popen, "controllers.server", user=self._user, env=environment)
        self._child.hand(self._config)
        self._ready, self._launched_s = False, now_s()

    def wait_ready(self) -> None:
        """Block until every policy is loaded. Raises `UserError` when one can't be, `TestbedError` when the service dies or hangs."""
        assert self._child
        line = self._child.first_line(self._load_s)
        if line is None:
            raise TestbedError(f"the controller was not ready after {self._load_s:g} s")
        if not line:
            if self._child.wait() == 2:
                raise UserError(self._child.said().strip())
            raise TestbedError(f"the controller {self._child.fault()} before it was ready")
        self._heard(line)

    def watch(self) -> str:
        """Restart a dead or hung service, at most `MOST_RESTARTS` times. Returns a sentence when something happened, else nothing.

        It doesn't wait for the new one's policies: the next calls look whether it is ready, or died, or takes longer than `load_s`.
        """
        fault = "" if self._given_up else self._fault()
        if not fault or not self._child:
            return ""
        self._child.kill()  # SIGTERM would have to be waited for, and the lanes are watched from the same loop
        if self.restarts >= MOST_RESTARTS:
            self._given_up = True
            return f"the controller {fault}, after {MOST_RESTARTS} restarts: from now on local rules decide"
        self.restarts += 1
        self.launch()
        return f"the controller {fault} and was restarted"

    def _fault(self) -> str:
        assert self._child
        if not self._ready and (line := self._child.first_line(0)):
            self._heard(line)
        silent = self._ready and self._hung()
        if self._child.ended():
            return self._child.fault()
        if not self._ready:
            return f"was not ready after {self._load_s:g} s" if now_s() - self._launched_s > self._load_s else ""
        return "did not answer when asked for its health" if silent else ""

    def _heard(self, line: bytes) -> None:
        self.port = msgspec.json.decode(line, type=ControllerReady).port
        self._config = msgspec.structs.replace(self._config, port=self.port)  # a restarted one is to be found where the first was
        self._ready = True

    def _hung(self) -> bool:
        if now_s() - self._asked_s < HEALTH_EVERY_S:
            return False
        try:
            return not answers(str(self._config.unix_socket))
        finally:
            self._asked_s = now_s()

    def kill(self) -> None:
        """End the process at once, as if it had crashed: `watch` finds it dead."""
        if self._child:
            self._child.kill()

    def stop(self) -> None:
        """End the process; callable twice."""
        if self._child:
            self._child.end(END_S)


def answers(path: str) -> bool:
    """Whether the service behind a Unix socket answers `/health` in time."""
    connection = http.client.HTTPConnection("controller", timeout=HEALTH_TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(HEALTH_TIMEOUT_S)
        connection.sock.connect(path)
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
