"""Runs the commands of the set-up and tells how they go: plain lines with the elapsed time, the last of the output when one fails."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.user import User, popen_as

QUIET_S = 15.0
"""Longest silence before a line says that the command still runs."""
CALM_S = 2.0
"""Shortest time between two lines of a command's output."""
STOP_S = 20.0
"""How long an interrupted command may take to stop before it is killed."""


class CommandFailed(TestbedError):
    """A command of the set-up ended with another exit code than 0; `lines` are the last of its output."""

    def __init__(self, title: str, command: Sequence[str], code: int, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        shown = "\n".join(f"    {line}" for line in self.lines[-15:])
        super().__init__(f"{title}: `{' '.join(command)}` ended with exit code {code}; the last lines of its output:\n{shown}")


class Progress:
    """Lines on standard error (standard output belongs to the command that follows), each led by the seconds since the start."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = now_s) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start_s = clock()
        self.last_lines: tuple[str, ...] = ()
        """The last lines that the last command printed, also when it failed or was interrupted."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._start_s

    def say(self, text: str) -> None:
        """One line."""
        self._stream.write(f"[{self.elapsed_s:5.0f} s] {text}\n")
        self._stream.flush()

    def run(
        self,
        title: str,
        command: Sequence[str],
        shown: Iterable[str] = (),
        user: User | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> tuple[str, ...]:
        """Run `command` (as `user`) to its end and return the last lines of its output; lines that start with one of `shown` are told.

        `keep_open` are file descriptors that the command holds too: a lock on them lasts until the command itself has ended,
        even when this process is killed. Raises CommandFailed. On Ctrl-C the command is stopped before KeyboardInterrupt goes on.
        """
        self.say(title)
        process = popen_as(
            user,
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            pass_fds=tuple(keep_open),
            process_group=0,
        )
        output = _Output(process)
        with process:
            try:
                self._follow(output, tuple(shown))
            except BaseException:
                _stop(process)
                output.drain()
                raise
            finally:
                self.last_lines = tuple(output.lines)
        if process.returncode != 0:
            raise CommandFailed(title, command, process.returncode, self.last_lines)
        return self.last_lines

    def _follow(self, output: "_Output", shown: tuple[str, ...]) -> None:
        told_s = self._clock()
        while (fresh := output.read(1.0)) is not None:
            told = next((line for line in reversed(fresh) if shown and line.startswith(shown)), "")
            silence_s = self._clock() - told_s
            if silence_s >= QUIET_S:
                told = f"still at it: {output.lines[-1]}" if output.lines else "still at it"
            if told and silence_s >= CALM_S:
                self.say(f"  {told[:110]}")
                told_s = self._clock()


class _Output:
    """The output of a process, as lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            raise ValueError("the command's output is not a pipe")
        self.lines: deque[str] = deque(maxlen=400)
        self._process = process
        self._descriptor = process.stdout.fileno()
        self._rest = b""

    def read(self, timeout_s: float) -> list[str] | None:
        """Lines that came within `timeout_s`; None after the last."""
        ended = self._process.poll() is not None  # asked first: what it wrote before it ended is read still
        ready, _, _ = select.select([self._descriptor], [], [], 0 if ended else timeout_s)
        data = os.read(self._descriptor, 65536) if ready else b""
        if not data and (ready or ended):  # a service that it started may hold the pipe open
            fresh, self._rest = [self._rest], b""
        else:
            *fresh, self._rest = (self._rest + data).split(b"\n")
        lines = [line.decode(errors="replace").strip().rpartition("\r")[2] for line in fresh if line.strip()]
        self.lines.extend(lines)
        return lines if data or not (ready or ended) else None

    def drain(self) -> None:
        """Read what is left of a process that has ended."""
        while self.read(0) is not None:
            pass


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started in its process group: what a terminal's Ctrl-C does, and then for certain."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are handled as Ctrl-C is."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
