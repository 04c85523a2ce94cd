"""The decision service's process, watched from the root namespace: started, asked for its health, restarted when dead or hung."""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from controllers.config import ControllerConfig, ControllerReady
from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.network import Network
from testbed.user import User, home

PORT = 9000
"""TCP port of the service, inside the controller's namespace."""
HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 5.0
MOST_RESTARTS = 10
"""After that many the players are left to their local rule."""


class Controller:
    """One decision service in the controller host. `start`, then `watch` every now and then, then `stop`."""

    def __init__(self, network: Network, references: Sequence[str], user: User | None, folder: Path) -> None:
        self._network, self._user = network, user
        self._config = ControllerConfig(host="0.0.0.0", port=PORT, unix_socket=str(folder / "controller.sock"), policies=tuple(references))
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._asked_s = 0.0
        self.restarts = 0
        self.ready: ControllerReady | None = None

    def launch(self) -> None:
        """Start the process; it loads its policies meanwhile. Call `wait_ready` next."""
        self._errors.seek(0)
        self._errors.truncate()
        Path(str(self._config.unix_socket)).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"HOME": home(self._user)} if self._user else {})}
        self._process = self._network.popen_controller(
            [sys.executable, "-m", "controllers.server"],
            user=self._user,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdin
        try:
            with self._process.stdin as stdin:
                stdin.write(msgspec.json.encode(self._config))
        except BrokenPipeError:
            pass  # it died: wait_ready tells why

    def wait_ready(self) -> ControllerReady:
        """Block until every policy is loaded. Raises `UserError` when one can't be, `TestbedError` when the service dies."""
        assert self._process and self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code, text = self._process.wait(), self._told()
            raise UserError(text) if code == 2 else TestbedError(f"the controller ended with code {code} before it was ready: {text}")
        self.ready = msgspec.json.decode(line, type=ControllerReady)
        return self.ready

    def watch(self) -> str:
        """Restart a dead or hung service. Returns a sentence when something happened, else nothing. Blocks while it starts."""
        assert self._process
        if self._process.poll() is None and not self._hung():
            return ""
        code = self._process.poll()
        self.stop()
        if self.restarts >= MOST_RESTARTS:
            return ""
        self.restarts += 1
        self.launch()
        self.wait_ready()
        how = f"ended with code {code}" if code is not None else f"did not answer for {HEALTH_TIMEOUT_S:g} s"
        return f"the controller {how} and was restarted"

    def _hung(self) -> bool:
        if now_s() - self._asked_s < HEALTH_EVERY_S:
            return False
        try:
            return not answers(str(self._config.unix_socket))
        finally:
            self._asked_s = now_s()

    def _told(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-2000:]

    def stop(self) -> None:
        """End the process; callable twice."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def answers(path: str) -> bool:
    """Whether the service behind a Unix socket answers `/health` in time."""
    connection = http.client.HTTPConnection("controller", timeout=HEALTH_TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(HEALTH_TIMEOUT_S)
        connection.sock.connect(path)
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
