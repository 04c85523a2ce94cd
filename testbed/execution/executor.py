"""What runs inside a Dask worker: a task runner that occupies the worker's one thread, and the store of what its tasks wrote.

The driver (`testbed.execution.driver`) registers `ExecutorPlugin` with the workers of any Dask cluster, and calls its handlers over Dask's
own connections.

| handler | |
| --- | --- |
| `cjs_hello` | forget all, a line begins; answered when nothing of an earlier one runs any more: which process this is |
| `cjs_run` | run a `Bundle` in the thread of a stint; answered when its last task has ended, or when it failed |
| `cjs_stop_reading` | what the bundle at work still reads won't come: it fails |
| `cjs_drop` | the last task of a bundle is another executor's, if it has not begun |
| `cjs_end` | end a stint |
| `cjs_fetch` | a block that a stage's tasks left here; another executor asks |
| `cjs_ping` | what its clock says; answered at once, unless the worker hangs |
| `cjs_stay` | never answered. Its connection is the *line*: when the worker dies, the driver knows; when the driver dies, all ends here |

A *stint* is the Dask task (`work`) during which an executor is at one stage: it holds the worker's thread, and bundles come to it one after
another. A *bundle* is some tasks of that stage, mostly one, several where they are short. They end when their time has passed, counted from
the instant at which the engine let the first one start, and the last one not before all they read has arrived: recorded durations hold
Spark's own reading, which overlaps its computing. Blocks have no content worth keeping, so the store counts tasks and sends slices of one
buffer.

**Lag.** A message takes some ms to come, which time compression would multiply. So a task is taken to have ended on time when its worker
was late by up to the bundle's slack; what is later counts.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
from distributed import Status, Worker, WorkerPlugin, get_worker
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol.serialize import Serialize

from testbed.clock import now_s

NAME = "cjs-executor"
BLOCK_BYTES = 1 << 20
"""Of one message between executors; more goes in several."""
GIVEN_UP = "the executor that it reads from was given up"
OVER = "the driver is gone, or has said hello again"
LOOK_EVERY_S = 0.005


@dataclass(frozen=True)
class Read:
    """What a bundle reads from one other executor: part of the output of `tasks` tasks there."""

    holder: int
    address: str
    job: int
    stage: int
    tasks: int
    size_bytes: int


@dataclass(frozen=True)
class Bundle:
    """Tasks of one stage for one executor."""

    number: int
    job: int
    stage: int
    due_s: float
    """When the first was let start, on the worker's clock."""
    durations_s: tuple[float, ...]
    slack_s: float
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Report:
    """How a bundle went."""

    ends_s: tuple[float, ...] = ()
    """When its tasks ended, on the worker's clock; fewer than were sent where some were dropped."""
    lag_s: float = 0.0
    """By how much the worker was late at the end of a task, at most, the reading apart."""
    failed: str = ""
    """Why it failed, if it did: what it reads can't be had."""
    holder: int = -1
    """From whom."""


class FetchFailed(Exception):
    """A block can't be had from where it should lie."""

    def __init__(self, holder: int, reason: str) -> None:
        super().__init__(reason)
        self.holder, self.reason = holder, reason


_Asked = tuple[Bundle, "asyncio.Future[Report]"]


@dataclass(eq=False)
class _Line:
    """What an executor has and does for a driver, from its hello until the line ends."""

    name: str
    stints: dict[str, "queue.SimpleQueue[_Asked | None]"] = field(default_factory=dict)
    blocks: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many tasks of (job, stage) ended here."""
    dropped: Counter[int] = field(default_factory=Counter)
    asked: set["asyncio.Future[Report]"] = field(default_factory=set)
    readings: set["concurrent.futures.Future[float]"] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    comm: Comm | None = None

    def inbox(self, stint: str) -> "queue.SimpleQueue[_Asked | None]":
        """Of a stint's thread."""
        return self.stints.setdefault(stint, queue.SimpleQueue())

    def stop_reading(self) -> None:
        """Wait for no block any more."""
        for reading in [*self.readings]:
            reading.cancel()

    def end(self) -> None:
        """Let everybody go who waits, sleeps or reads for it."""
        self.over.set()
        self.stop_reading()
        for inbox in [*self.stints.values()]:
            inbox.put(None)
        for ended in [*self.asked]:
            _answer(ended, Report(failed=OVER))
        if self.comm:
            self.comm.abort()


class ExecutorPlugin(WorkerPlugin):
    """Makes a Dask worker an executor."""

    name = NAME
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Add the handlers."""
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._buffer = memoryview(os.urandom(BLOCK_BYTES))
        self._incarnation = os.urandom(8).hex()
        self._line = _Line("")
        self._line.end()
        self._at_work: set[str] = set()
        """Stints whose threads run."""
        worker.handlers.update(self._handlers())

    def _handlers(self) -> dict[str, Any]:
        handlers = (
            self.cjs_hello,
            self.cjs_run,
            self.cjs_drop,
            self.cjs_end,
            self.cjs_fetch,
            self.cjs_ping,
            self.cjs_stay,
            self.cjs_stop_reading,
        )
        return {handler.__name__: handler for handler in handlers}

    def teardown(self, worker: Worker) -> None:
        """Leave the worker as it was."""
        self._line.end()
        for name in self._handlers():
            worker.handlers.pop(name, None)

    async def cjs_hello(self, line: str) -> str:
        """Another line begins."""
        self._line.end()
        self._line = _Line(line)
        while self._at_work:
            await asyncio.sleep(LOOK_EVERY_S)
        return self._incarnation

    async def cjs_run(self, stint: str, bundle: bytes) -> bytes:
        """Hand a bundle to a stint's thread; bundle and `Report` are JSON."""
        ended: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        line = self._line
        line.asked.add(ended)
        ended.add_done_callback(line.asked.discard)
        line.inbox(stint).put((msgspec.json.decode(bundle, type=Bundle), ended))
        return msgspec.json.encode(await ended)

    async def cjs_stop_reading(self) -> None:
        """Nothing will come of it."""
        self._line.stop_reading()

    async def cjs_drop(self, bundle: int) -> None:
        """One task fewer."""
        self._line.dropped[bundle] += 1

    async def cjs_end(self, stint: str) -> None:
        """Let the thread go."""
        self._line.inbox(stint).put(None)

    async def cjs_fetch(self, job: int, stage: int, tasks: int, size_bytes: int) -> Any:
        """A block, or a sentence on what isn't here."""
        there = self._line.blocks[job, stage]
        if there < tasks:
            return f"stage {stage} of job {job} left the outputs of {there} tasks here, wanted {tasks}"
        return Serialize(self._buffer[:size_bytes])

    async def cjs_ping(self) -> float:
        """Show that somebody is here."""
        return now_s()

    async def cjs_stay(self, comm: Comm) -> Status:
        """Hold the line until it breaks: nobody may wait for a driver that is gone, least of all on somebody's cluster."""
        line, self._line.comm = self._line, comm
        with contextlib.suppress(CommClosedError):
            await comm.read()
        line.end()
        return Status.dont_reply

    def work(self, stint: str) -> int:
        """Run bundles, in the worker's thread, until the stint is ended; returns how many."""
        self._at_work.add(stint)
        try:
            line = self._line
            return self._work(line, stint) if stint.startswith(line.name) else 0
        finally:
            self._at_work.discard(stint)

    def _work(self, line: _Line, stint: str) -> int:
        inbox, bundles = line.inbox(stint), 0
        while not line.over.is_set() and (asked := inbox.get()) is not None:
            bundle, ended = asked
            report = self._run(line, bundle)
            self._loop.call_soon_threadsafe(_answer, ended, report)
            bundles += 1
        return bundles

    def _run(self, line: _Line, bundle: Bundle) -> Report:
        reading = asyncio.run_coroutine_threadsafe(self._read_all(bundle.reads), self._loop) if bundle.reads else None
        if reading:
            line.readings.add(reading)
        ends_s: list[float] = []
        end_s, lag_s = bundle.due_s, 0.0
        for place, duration_s in enumerate(bundle.durations_s):
            if place and place >= len(bundle.durations_s) - line.dropped[bundle.number]:
                break
            end_s += duration_s
            if line.over.wait(max(end_s - now_s(), 0.0)):
                return Report(failed=OVER)
            lag_s = max(lag_s, now_s() - end_s)
            end_s = max(end_s, now_s() - bundle.slack_s)
            ends_s.append(end_s)
        if reading:
            try:
                ends_s[-1] = max(end_s, reading.result())
            except FetchFailed as failure:
                return Report(failed=failure.reason, holder=failure.holder)
            except concurrent.futures.CancelledError:
                return Report(failed=OVER if line.over.is_set() else GIVEN_UP)
            finally:
                line.readings.discard(reading)
        line.dropped.pop(bundle.number, None)
        line.blocks[bundle.job, bundle.stage] += len(ends_s)
        return Report(tuple(ends_s), lag_s)

    async def _read_all(self, reads: tuple[Read, ...]) -> float:
        """Fetch everything, from all holders at once; returns when it was there."""
        await asyncio.gather(*map(self._read, reads))
        return now_s()

    async def _read(self, read: Read) -> None:
        left_bytes = read.size_bytes
        while left_bytes > 0:
            size_bytes = min(left_bytes, BLOCK_BYTES)
            try:
                block = await self._worker.rpc(read.address).cjs_fetch(
                    job=read.job, stage=read.stage, tasks=read.tasks, size_bytes=size_bytes
                )
            except OSError as error:
                raise FetchFailed(read.holder, f"{type(error).__name__}: {error}") from None
            if isinstance(block, str):
                raise FetchFailed(read.holder, block)
            left_bytes -= size_bytes


def _answer(ended: "asyncio.Future[Report]", report: Report) -> None:
    if not ended.done():
        ended.set_result(report)


def work(stint: str) -> int:
    """The Dask task of a stint."""
    plugin = get_worker().plugins.get(NAME)
    return plugin.work(stint) if isinstance(plugin, ExecutorPlugin) else 0
