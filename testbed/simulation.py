"""Trials on the virtual clock, in worker processes that run as the user and may load torch."""

import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import BinaryIO

import msgspec

from controllers.stdio import Fault
from testbed.controller import LOAD_S
from testbed.errors import TestbedError, UserError
from testbed.records import Row
from testbed.twin import AnyJob, Finished
from testbed.user import invoking_user, popen_tied

JOBS_PER_WORKER = 8
"""Below this many jobs a further process costs more (its start, its own copy of a model) than it saves."""

SILENCE_S = 60.0
"""A policy that takes longer to decide has hung; while it starts, it may load a model, which has `LOAD_S`."""

EXIT_S = 2.0
"""From the last row to the end of the process; a thread that a policy started may hold it."""


def simulate(jobs: Sequence[AnyJob], on_row: Callable[[Row], None], silence_s: float | None = None) -> None:
    """Run `jobs`; each row goes to `on_row` (called from several threads) as it is made.

    A policy that says nothing for `silence_s` (else `SILENCE_S`; `LOAD_S` until it has started) ends its trial, and is not asked in the
    trials left. Raises `UserError` when a policy can't be loaded, `TestbedError` when a worker ends before its last trial, and whatever
    `on_row` raises.
    """
    count = max(1, min(len(os.sched_getaffinity(0)), len(jobs) // JOBS_PER_WORKER))
    workers = [_Worker(hand, on_row, SILENCE_S if silence_s is None else silence_s) for hand in dealt(jobs, count)]
    with ThreadPoolExecutor(count, thread_name_prefix="simulation") as pool:
        try:
            for ended in as_completed([pool.submit(worker.run) for worker in workers]):
                ended.result()
        finally:
            for worker in workers:
                worker.stop()


def dealt(jobs: Sequence[AnyJob], count: int) -> list[list[AnyJob]]:
    """`jobs` in `count` hands that keep their order, each policy's evenly spread: policies differ in cost by orders of magnitude."""
    hands: list[list[AnyJob]] = [[] for _ in range(count)]
    turns: dict[str, Iterator[int]] = {}
    for job in jobs:
        turn = turns.setdefault(job.policy, itertools.count(len(turns)))
        hands[next(turn) % count].append(job)
    return hands


class _Killed(Exception):
    """A signal ended the worker, as a segmentation fault in a policy's library does. The text is its name."""


class _Worker:
    """Some of the jobs, in a process; in another one after a policy hung or crashed."""

    def __init__(self, jobs: Sequence[AnyJob], on_row: Callable[[Row], None], silence_s: float) -> None:
        self._left, self._on_row, self._silence_s = deque(jobs), on_row, silence_s
        self._decoder: msgspec.json.Decoder[Row | Finished | Fault] = msgspec.json.Decoder(Row | Finished | Fault)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = self._started = False

    def _patience_s(self) -> float:
        """How long the process may say nothing; its first word in a trial tells that the policy has started."""
        return self._silence_s if self._started else max(LOAD_S, self._silence_s)

    def run(self) -> None:
        """Work until no job is left. It stays in one thread: the process dies with the thread that starts it."""
        while self._left:
            with tempfile.TemporaryFile() as jobs, tempfile.TemporaryFile() as errors:
                jobs.write(msgspec.json.encode(list(self._left)))
                jobs.seek(0)
                process = self._start(jobs, errors)
                try:
                    self._listen(process, errors)
                except TimeoutError as error:
                    process.kill()
                    self._give_up(f"did not answer for {error}")
                except _Killed as error:
                    self._give_up(f"ended its process ({error})")
                finally:
                    if self._left:
                        process.kill()
                    _end(process)

    def _start(self, jobs: BinaryIO, errors: BinaryIO) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise TestbedError("the simulation was stopped")
            self._process = popen_tied(
                invoking_user(),
                [sys.executable, "-m", "testbed.twin"],
                stdin=jobs,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            return self._process

    def _listen(self, process: subprocess.Popen[bytes], errors: BinaryIO) -> None:
        assert process.stdout
        self._started = False
        for line in _lines(process.stdout.fileno(), self._patience_s):
            self._started = True
            if line:
                self._take(line)
            if not self._left:
                return
        code = process.wait()
        if code < 0 and not self._stopped:
            raise _Killed(signal.Signals(-code).name)
        errors.seek(0)
        told = errors.read().decode(errors="replace").strip()[-2000:]
        raise TestbedError(f"the simulation worker ended with code {code} in trial {self._left[0].trial_id}: {told}")

    def _take(self, line: bytes) -> None:
        try:
            message = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            trial_id = self._left[0].trial_id
            raise TestbedError(f"the simulation worker wrote {line!r:.200} in trial {trial_id}, wanted a row: {error}") from None
        if isinstance(message, Fault):
            raise UserError(message.sentence)
        if isinstance(message, Finished):
            self._left.popleft()
            self._started = False
        else:
            self._on_row(message)

    def _give_up(self, why: str) -> None:
        """End the trial that hangs or kills its process, and the further ones of its policy: each would take as long."""
        hung = self._left.popleft()
        reason = f"{hung.who} {why}"
        self._on_row(hung.ended_early(reason))
        others = [job for job in self._left if job.policy == hung.policy and job.asks]
        self._left = deque(job for job in self._left if job not in others)
        for job in others:
            self._on_row(job.ended_early(f"{reason} in trial {hung.trial_id}, and was not asked again"))

    def stop(self) -> None:
        """End the process if it still runs, and start no other."""
        with self._lock:
            self._stopped = True
            if self._process and self._process.poll() is None:
                self._process.kill()


def _lines(descriptor: int, patience_s: Callable[[], float]) -> Iterator[bytes]:
    """Lines as they come. Raises `TimeoutError` that says for how long nothing came when that is `patience_s()`, asked before each wait."""
    rest = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], limit_s := patience_s())
        if not ready:
            raise TimeoutError(f"{limit_s:g} s")
        data = os.read(descriptor, 1 << 16)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if not data:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        try:
            process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
