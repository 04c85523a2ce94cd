"""What an executor does for a driver ends with the driver: its thread is free when another says hello, and when its line breaks."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from distributed import Status
from distributed.comm.core import CommClosedError

from testbed.clock import now_s
from testbed.execution.executor import OVER, Bundle, ExecutorPlugin, Read, Report

LONG_S = 30.0


class Line:
    """Stands in for the connection of a driver."""

    def __init__(self) -> None:
        self.broken = asyncio.Event()

    async def read(self) -> Any:
        await self.broken.wait()
        raise CommClosedError

    def abort(self) -> None:
        self.broken.set()


class Executor:
    """The plugin in a worker that can't reach anybody, and the one thread that works."""

    def __init__(self) -> None:
        self.worker = SimpleNamespace(handlers={"other": None}, rpc=lambda address: self)
        self.plugin = ExecutorPlugin()
        self.plugin.setup(self.worker)  # type: ignore[arg-type]
        self.fetching = asyncio.Event()

    async def cjs_fetch(self, **_: Any) -> Any:
        self.fetching.set()
        await asyncio.Event().wait()

    def work(self, stint: str) -> "asyncio.Future[int]":
        return asyncio.ensure_future(asyncio.to_thread(self.plugin.work, stint))

    def run(self, stint: str, duration_s: float, reads: tuple[Read, ...] = ()) -> "asyncio.Future[bytes]":
        bundle = Bundle(1, 0, 1, now_s(), (duration_s,), 0.0, reads)
        return asyncio.ensure_future(self.plugin.cjs_run(stint, msgspec.json.encode(bundle)))


@pytest.fixture
async def executor() -> Executor:
    return Executor()


def failed(answer: bytes) -> str:
    return msgspec.json.decode(answer, type=Report).failed


@pytest.mark.parametrize("reading", [False, True])
async def test_hello_is_answered_when_the_thread_of_an_earlier_driver_has_returned(executor: Executor, reading: bool) -> None:
    await executor.plugin.cjs_hello("a")
    thread = executor.work("a-1")
    reads = (Read(2, "tcp://nobody", 0, 0, 1, 10),) if reading else ()
    asked = executor.run("a-1", 0.0 if reading else LONG_S, reads)
    also_asked = executor.run("a-1", LONG_S)
    await (executor.fetching.wait() if reading else asyncio.sleep(0.05))
    async with asyncio.timeout(5.0):
        await executor.plugin.cjs_hello("b")
        assert not executor.plugin._at_work
        assert await thread == 1
        assert [failed(await each) for each in (asked, also_asked)] == [OVER, OVER]


async def test_a_line_that_breaks_lets_the_thread_go_and_late_stints_of_it_do_nothing(executor: Executor) -> None:
    line = Line()
    await executor.plugin.cjs_hello("a")
    staying = asyncio.create_task(executor.plugin.cjs_stay(line))  # type: ignore[arg-type]
    thread = executor.work("a-1")
    await asyncio.sleep(0.05)
    line.broken.set()
    async with asyncio.timeout(5.0):
        assert await thread == 0
        assert await staying is Status.dont_reply
        assert await executor.work("a-2") == 0
        await executor.plugin.cjs_hello("b")
        assert await executor.work("a-3") == 0, "what Dask begins late holds nobody's thread"


async def test_another_hello_breaks_the_line_of_the_driver_before(executor: Executor) -> None:
    line = Line()
    await executor.plugin.cjs_hello("a")
    staying = asyncio.create_task(executor.plugin.cjs_stay(line))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await executor.plugin.cjs_hello("b")
    async with asyncio.timeout(5.0):
        await staying
    thread = executor.work("b-1")
    assert failed(await executor.run("b-1", 0.01)) == "", "the end of the old line is nothing to the new one"
    await executor.plugin.cjs_end("b-1")
    assert await thread == 1


async def test_a_worker_is_left_as_it_was(executor: Executor) -> None:
    assert len(executor.worker.handlers) > 1
    executor.plugin.teardown(executor.worker)  # type: ignore[arg-type]
    assert list(executor.worker.handlers) == ["other"]
