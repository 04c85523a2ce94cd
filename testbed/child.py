"""`Child`: a process of a run that gets its config on stdin, answers in JSON lines on stdout, and may die, stop or hang at any moment."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed.clock import now_s
from testbed.units import ms_from_s

LIGHT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Environment of players and origins. Importing numpy starts a thread for each core, importing aiohttp reads all certificates of the host:
half the CPU time of their start, and twenty-four of them start at once. They compute nothing and speak plain HTTP."""
MOST_SAID = 500
"""Characters of a process's standard error in a sentence about it."""


class Child:
    """`python -m module`, started by `popen` (of a host); `keywords` are those of `subprocess.Popen`."""

    def __init__(self, popen: Callable[..., subprocess.Popen[bytes]], module: str, **keywords: Any) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the object
        self._first = self._rest = b""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = popen([sys.executable, "-m", module], **pipes, **keywords)

    def hand(self, config: msgspec.Struct) -> None:
        """Give it its config. A dead process doesn't mind: `fault` tells."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(msgspec.json.encode(config))

    def first_line(self, wait_s: float) -> bytes | None:
        """Its first line, or nothing (`b""`) when it closed its output before; None while it has said neither after `wait_s`."""
        assert self._process.stdout
        deadline_s = now_s() + wait_s
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while not self._first and b"\n" not in self._rest:
            if not poll.poll(ms_from_s(max(deadline_s - now_s(), 0))):
                return None
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                return b""
            self._rest += piece
        if not self._first:
            first, newline, self._rest = self._rest.partition(b"\n")
            self._first = first + newline
        return self._first

    def lines(self) -> Iterator[bytes]:
        """Its lines as they come, from the second on if `first_line` was asked for; without the torn one that a killed process leaves."""
        assert self._process.stdout
        *whole, begun = self._rest.split(b"\n")
        self._rest = b""
        yield from (line + b"\n" for line in whole)
        for line in self._process.stdout:
            if line.endswith(b"\n"):
                yield begun + line
            begun = b""

    def ended(self) -> bool:
        """Whether it is dead."""
        return self._process.poll() is not None

    def fault(self) -> str:
        """How it died or that it is stopped, as the end of a sentence; nothing while it runs."""
        if self.ended():
            said = " ".join(self.said()[-MOST_SAID:].split())
            return f"ended with code {self._process.returncode}" + (f" ({said})" if said else "")
        return "was stopped by a signal" if _is_stopped(self._process.pid) else ""

    def said(self) -> str:
        """All of its standard error so far."""
        descriptor = self._errors.fileno()  # the process writes at the same offset: it must not be moved
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """End it at once; callable twice, and from any thread."""
        self._process.kill()
        self._process.wait()

    def end(self, patience_s: float) -> None:
        """Ask it to end, then end it; callable twice."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience_s)
        self.kill()


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP holds a process (state T)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False
