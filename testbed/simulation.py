"""Trials on the virtual clock, in worker processes that run as the user and may load torch."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import msgspec

from testbed.errors import TestbedError, UserError
from testbed.records import Row
from testbed.twin import SimulationJob
from testbed.user import invoking_user, popen_as

JOBS_PER_WORKER = 8
"""Below this many jobs a further process costs more (its start, its own copy of a model) than it saves."""


def simulate(jobs: Sequence[SimulationJob], on_row: Callable[[Row], None]) -> None:
    """Run `jobs`; each row goes to `on_row` (called from several threads) as it is made.

    Raises `UserError` when a policy can't be loaded, `TestbedError` when a worker dies.
    """
    count = max(1, min(os.cpu_count() or 1, len(jobs) // JOBS_PER_WORKER))
    workers = [_Worker(jobs[i::count], on_row) for i in range(count)]
    try:
        for worker in workers:
            worker.finish()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One worker process with the threads that feed and read it."""

    def __init__(self, jobs: Sequence[SimulationJob], on_row: Callable[[Row], None]) -> None:
        self._process = popen_as(
            invoking_user(),
            [sys.executable, "-m", "testbed.twin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._jobs, self._on_row = jobs, on_row
        self._errors = b""
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._feed, self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _feed(self) -> None:
        assert self._process.stdin
        try:
            with self._process.stdin as stdin:
                stdin.write(msgspec.json.encode(self._jobs))
        except BrokenPipeError:
            pass  # it died: finish() tells why

    def _read(self) -> None:
        assert self._process.stdout
        decoder = msgspec.json.Decoder(Row)
        for line in self._process.stdout:
            self._on_row(decoder.decode(line))

    def _read_errors(self) -> None:
        assert self._process.stderr
        self._errors = self._process.stderr.read()

    def finish(self) -> None:
        """Wait for the end; raise what went wrong."""
        code = self._process.wait()
        for thread in self._threads:
            thread.join()
        text = self._errors.decode(errors="replace").strip()
        if code == 2:
            raise UserError(text)
        if code != 0:
            raise TestbedError(f"the simulation worker ended with code {code}: {text[-2000:]}")

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
