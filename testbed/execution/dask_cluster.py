"""`DaskCluster`: the workers of any Dask cluster as numbered executors, over Dask's own connections."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from distributed import Client, Future, rpc
from distributed.comm.addressing import get_address_host_port

from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.execution.config import ExecutorPlace
from testbed.execution.executor import NAME, Bundle, ExecutorPlugin, Report, work

LOOK_EVERY_S = 0.25
HELLO_S = 10.0
CONNECT_S = "20s"
LAST_WORDS_S = 2.0
PINGS = 5
"""For an offset between two clocks: the quickest of them counts."""


class ExecutorGone(Exception):
    """The worker can't be reached any more."""


class _Reached:
    """A worker that answers."""

    def __init__(self, address: str, data_address: str, line: str, incarnation: str, clock_offset_s: float) -> None:
        self.address, self.data_address, self.line = address, data_address, line
        self.incarnation, self.clock_offset_s = incarnation, clock_offset_s
        self.rpc = rpc(address)
        self.place: tuple[int, int] | None = None
        self.stint = ""
        self.future: Future | None = None
        self.refused = False
        """Whether this process is not to come back: another takes its place."""

    def abort(self) -> None:
        """Break its connections: whatever is asked over them fails at once."""
        for comm in [*self.rpc.comms]:
            comm.abort()

    async def close(self) -> None:
        """End its connections."""
        if self.future is not None:
            self.future.release()
        await self.rpc.close_rpc()


class DaskCluster:
    """`async with DaskCluster(address, places, count, trial_id) as cluster:`, then `gather`, then `run` and so on, by executor's number.

    `on_lost(executor, reason)` and `on_joined(executor)` are called as workers leave and come back.
    """

    def __init__(self, address: str, places: Sequence[ExecutorPlace], count: int, trial_id: str) -> None:
        self._address, self._places, self._count, self._trial_id = address, list(places), count, trial_id
        self._reached: dict[int, _Reached] = {}
        self._minders: list[asyncio.Task[None]] = []
        self._at_work: set[asyncio.Task[None]] = set()
        self._stints = 0
        self._leaves_it = not places
        """Nobody's workers were named: they are somebody's, and no executors any more afterwards."""

    async def __aenter__(self) -> "DaskCluster":
        try:
            self._client = await Client(self._address, asynchronous=True, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise TestbedError(f"the Dask scheduler at {self._address} can't be reached: {error}") from None
        await self._client.register_plugin(ExecutorPlugin())
        return self

    async def __aexit__(self, *_: object) -> None:
        for minder in self._minders:
            minder.cancel()
        await asyncio.gather(*self._minders, return_exceptions=True)
        for reached in self._reached.values():
            self._end_stint(reached)
        if self._at_work:
            await asyncio.wait(self._at_work, timeout=LAST_WORDS_S)
        for reached in self._reached.values():
            await reached.close()
        with contextlib.suppress(Exception):
            if self._leaves_it:
                await asyncio.wait_for(self._client.unregister_worker_plugin(NAME), LAST_WORDS_S)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.close(), 5.0)

    async def gather(self, wait_s: float, on_lost: Callable[[int, str], None], on_joined: Callable[[int], None]) -> None:
        """Wait until all executors are there. Raises `TestbedError` when some are not after `wait_s`."""
        deadline_s = now_s() + wait_s
        if not self._places:
            while len(names := await self._names()) < self._count and now_s() < deadline_s:
                await asyncio.sleep(LOOK_EVERY_S)
            self._places = [ExecutorPlace(name=name) for name in sorted(names)[: self._count]]
        if len(self._places) < self._count:
            raise TestbedError(f"the Dask cluster at {self._address} has {len(self._places)} workers, wanted {self._count}")
        try:
            async with asyncio.timeout(max(deadline_s - now_s(), 1.0)):
                await asyncio.gather(*(self._reach(executor) for executor in range(self._count)))
        except TimeoutError:
            missing = [self._places[executor].name for executor in range(self._count) if executor not in self._reached]
            raise TestbedError(f"executors {', '.join(missing)} were not there after {wait_s:g} s") from None
        self._minders = [asyncio.create_task(self._mind(executor, on_lost, on_joined)) for executor in range(self._count)]

    async def _names(self) -> dict[str, str]:
        """Name to address of the cluster's workers."""
        workers = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        return {str(worker["name"]): address for address, worker in workers.items()}

    async def _reach(self, executor: int, other_than: str = "") -> None:
        """Wait for the executor's worker, not the incarnation `other_than`, and say hello."""
        place = self._places[executor]
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                if address := (await self._names()).get(place.name):
                    reached = await asyncio.wait_for(self._hello(address, place), HELLO_S)
                    if reached.incarnation != other_than:
                        self._reached[executor] = reached
                        return
                    await reached.close()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _hello(self, address: str, place: ExecutorPlace) -> _Reached:
        data_address = address
        if place.data_host:
            data_address = f"tcp://{place.data_host}:{get_address_host_port(address)[1]}"
        async with rpc(address) as peer:
            line = os.urandom(8).hex()
            incarnation = await peer.cjs_hello(line=line)
            if incarnation is None:
                raise ConnectionError("the worker has no plugin yet")
            return _Reached(address, data_address, line, incarnation, await clock_offset_s(peer))

    async def _mind(self, executor: int, on_lost: Callable[[int, str], None], on_joined: Callable[[int], None]) -> None:
        """Hold the line to an executor, and find it again when the line broke."""
        while True:
            reached = self._reached[executor]
            reason = "it is no executor any more"
            try:
                await reached.rpc.cjs_stay()
            except OSError as error:
                reason = f"its connection broke ({type(error).__name__})"
            self._drop(executor, reached)
            on_lost(executor, reason)
            await self._reach(executor, reached.incarnation if reached.refused else "")
            on_joined(executor)

    def _drop(self, executor: int, reached: _Reached) -> None:
        if self._reached.get(executor) is reached:
            del self._reached[executor]
            reached.abort()
            if reached.future is not None:
                reached.future.release()
                reached.future = None

    def give_up(self, executor: int, hangs: bool = False) -> None:
        """Break the line, so that it is lost. One of ours that hangs is replaced; others may be back as they are."""
        if reached := self._reached.get(executor):
            reached.refused = hangs and not self._leaves_it
            reached.abort()

    def data_address(self, executor: int) -> str:
        """Where others fetch from it. Raises `ExecutorGone`."""
        return self._at(executor).data_address

    def clock_offset_s(self, executor: int) -> float:
        """Its clock less ours. Raises `ExecutorGone`."""
        return self._at(executor).clock_offset_s

    def _at(self, executor: int) -> _Reached:
        try:
            return self._reached[executor]
        except KeyError:
            raise ExecutorGone(f"executor {executor} is not there") from None

    async def run(self, executor: int, bundle: Bundle) -> Report:
        """Run a bundle on an executor; times in it and in the report are the worker's clock. Raises `ExecutorGone`."""
        reached = self._at(executor)
        if reached.place != (bundle.job, bundle.stage):
            self._end_stint(reached)
            self._begin_stint(reached, bundle)
        answer = await self._call(reached, "cjs_run", stint=reached.stint, bundle=msgspec.json.encode(bundle))
        return msgspec.json.decode(answer, type=Report)

    def _begin_stint(self, reached: _Reached, bundle: Bundle) -> None:
        self._stints += 1
        reached.place, reached.stint = (bundle.job, bundle.stage), f"{reached.line}-{self._stints}"
        key = f"{self._trial_id}-job{bundle.job}-stage{bundle.stage}-{reached.stint}"
        reached.future = self._client.submit(
            work, reached.stint, key=key, pure=False, workers=[reached.address], allow_other_workers=False, retries=0
        )

    def _end_stint(self, reached: _Reached) -> None:
        """Let the worker's thread go; nobody waits for it."""
        if reached.place is None:
            return
        reached.place = None
        self._background(self._told_end(reached, reached.stint, reached.future))

    async def _told_end(self, reached: _Reached, stint: str, future: Future | None) -> None:
        await self._told(reached, "cjs_end", stint=stint)
        if future is not None:
            future.release()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    def drop(self, executor: int, bundle: int) -> None:
        """The last task of a bundle goes to somebody else."""
        self._tell(executor, "cjs_drop", bundle=bundle)

    def stop_reading(self, executor: int) -> None:
        """What the bundle at work there reads won't come."""
        self._tell(executor, "cjs_stop_reading")

    def _tell(self, executor: int, handler: str, **arguments: Any) -> None:
        if reached := self._reached.get(executor):
            self._background(self._told(reached, handler, **arguments))

    async def _told(self, reached: _Reached, handler: str, **arguments: Any) -> None:
        with contextlib.suppress(ExecutorGone):
            await self._call(reached, handler, **arguments)

    async def answers(self, executor: int, wait_s: float) -> bool:
        """Whether the worker lives."""
        try:
            await asyncio.wait_for(self._call(self._at(executor), "cjs_ping"), wait_s)
        except (ExecutorGone, TimeoutError):
            return False
        return True

    async def _call(self, reached: _Reached, handler: str, **arguments: Any) -> Any:
        try:
            return await getattr(reached.rpc, handler)(**arguments)
        except OSError as error:
            raise ExecutorGone(f"{type(error).__name__}: {error}") from None


async def clock_offset_s(peer: Any) -> float:
    """A worker's clock less ours, over a connection that is there already."""
    samples: list[tuple[float, float]] = []
    for _ in range(PINGS):
        asked_s, clock_s, answered_s = now_s(), await peer.cjs_ping(), now_s()
        samples.append((answered_s - asked_s, clock_s - (asked_s + answered_s) / 2))
    return min(samples)[1]
