"""Real processes and real sockets on loopback, for tests of origin, player and decision service."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from controllers.api import Manifest

VIDEO = Manifest(
    name="tiny",
    chunk_s=0.2,
    bitrates_bps=(300_000, 750_000, 1_200_000),
    sizes_bytes=tuple((7_500 + i, 18_750 + i, 30_000 + i) for i in range(12)),
)


class Process:
    """A service in a process of its own, fed its config on stdin; its stdout is read line by line."""

    def __init__(self, module: str, config: Any, **environment: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        assert self.child.stdin
        self.child.stdin.write(config if isinstance(config, bytes) else msgspec.json.encode(config))
        self.child.stdin.close()
        self.child.stdin = None

    def line(self) -> dict[str, Any]:
        """The next line of stdout, decoded."""
        assert self.child.stdout
        line = self.child.stdout.readline()
        return msgspec.json.decode(line) if line else {}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]], str]:
        """Signal it, wait: exit code, the rest of its lines, stderr."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, list[dict[str, Any]], str]:
        """Wait for its end: exit code, the rest of its lines, stderr."""
        out, errors = self.child.communicate(timeout=30)
        return self.child.returncode, [msgspec.json.decode(line) for line in out.splitlines()], errors.decode()


@contextlib.contextmanager
def running(module: str, config: Any, **environment: str) -> Iterator[Process]:
    """A process that is killed at the end if it still runs."""
    process = Process(module, config, **environment)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()


@contextlib.asynccontextmanager
async def listening(app: web.Application, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Any:
    """An application on a real loopback socket in this process; yields its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
