"""The decision service without its sockets: a policy object per session, computing in its policy's own thread.

Sessions share nothing but the code of their policy, so they can't mix. Each policy (whatever its options) has one thread: a slow
one delays only its own sessions, and state that a policy keeps in its module (a model in memory) is never entered twice at once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import structs

from controllers.dialects import DIALECTS, AnyAnswer, AnyOpen, AnyPolicy, AnySession, Dialect
from controllers.health import Health, PolicyCounters
from controllers.loader import parse_reference, raised
from controllers.protocol import VERSION, Refusal
from testbed.clock import now_s

Factory = Callable[[], AnyPolicy]
T = TypeVar("T")


@dataclass
class _Loaded:
    """A preloaded policy. `first` is never used: it keeps alive what all policies of its kind share (a model in memory)."""

    factory: Factory
    first: AnyPolicy
    worker: ThreadPoolExecutor
    counters: PolicyCounters


@dataclass
class _Session:
    """One playback, or one workload."""

    constants: AnySession
    policy: asyncio.Task[AnyPolicy]
    """Done once the session is open."""
    loaded: _Loaded
    last_used_s: float
    key: str = ""
    """Of the newest decision."""
    answer: asyncio.Task[AnyAnswer] | None = None
    """To the newest decision."""


class Sessions:
    """All sessions of the service; its methods are called from one event loop."""

    def __init__(self, max_sessions: int, idle_s: float, dialect: Dialect = DIALECTS["abr"]) -> None:
        self.dialect = dialect
        self._max_sessions, self._idle_s = max_sessions, idle_s
        self._loaded: dict[str, _Loaded] = {}
        self._workers: dict[str, ThreadPoolExecutor] = {}
        self._sessions: dict[str, _Session] = {}
        self._calls: set[Future[Any]] = set()

    @property
    def computing(self) -> int:
        """Calls into policies that have not returned."""
        return len(self._calls)

    async def preload(self, reference: str, load: Callable[[str], Factory]) -> None:
        """Load a policy and make one of it, so that its first session finds models in memory. What `load` raises is passed on."""

        def warm() -> tuple[Factory, AnyPolicy]:
            factory = load(reference)
            return factory, factory()

        started_s = now_s()
        worker = self._worker(reference)
        factory, first = await self._call(worker, warm)
        self._loaded[reference] = _Loaded(factory, first, worker, PolicyCounters(now_s() - started_s))

    async def open(self, message: AnyOpen) -> None:
        """Start a session with a fresh policy, in place of one with the same id. It counts, and can be closed, before it has started."""
        loaded = self._loaded.get(message.policy)
        if loaded is None:
            raise Refusal("unknown_policy", f"policy is {message.policy!r}, wanted one of {', '.join(sorted(self._loaded)) or 'none'}")
        self.expire(now_s())
        session_id = message.session.session_id
        if len(self._sessions) >= self._max_sessions and session_id not in self._sessions:
            raise Refusal("busy", f"there are {len(self._sessions)} sessions, wanted fewer than {self._max_sessions}")

        def start() -> AnyPolicy:
            policy = loaded.factory()
            policy.reset(message.session, message.seed)
            return policy

        policy = asyncio.ensure_future(self._compute(loaded, start))
        session = self._sessions[session_id] = _Session(message.session, policy, loaded, now_s())
        try:
            await asyncio.shield(policy)
        except Refusal:
            if self._sessions.get(session_id) is session:
                del self._sessions[session_id]
            raise
        if self._sessions.get(session_id) is not session:
            raise Refusal("unknown_session", f"session {session_id} was closed or opened anew before it had started")
        session.last_used_s = now_s()

    async def decide(self, session_id: str, message: Any, key: str = "") -> AnyAnswer:
        """The policy's answer, once the session has started. A decision with the `key` of the newest one is that one, asked again."""
        session = self._sessions.get(session_id)
        if session is None:
            raise Refusal("unknown_session", f"session {session_id[:200]!r} is not open")
        session.last_used_s = now_s()
        if session.answer is None or not key or key != session.key:
            session.key, session.answer = key, asyncio.ensure_future(self._decided(session, message))
        return await asyncio.shield(session.answer)

    async def _decided(self, session: _Session, message: Any) -> AnyAnswer:
        seen = self.dialect.observation(session.constants, message)
        counters = session.loaded.counters
        give_up_s = now_s() + message.deadline_s
        policy = await session.policy

        def timed() -> tuple[AnyAnswer | Refusal, float]:
            started_s = now_s()
            if started_s > give_up_s:
                raise Refusal("late", f"the deadline of {message.deadline_s} s passed before the policy was free")
            answer = self._answer(policy.decide(seen), seen)
            return answer, now_s() - started_s

        try:
            answer, policy_s = await self._compute(session.loaded, timed)
        except Refusal as refusal:
            counters.late += refusal.code == "late"
            counters.errors += refusal.code == "error"
            raise
        counters.took(policy_s)
        if isinstance(answer, Refusal):
            counters.invalid += 1
            raise answer
        return structs.replace(answer, policy_s=policy_s)

    def _answer(self, decided: object, seen: Any) -> AnyAnswer | Refusal:
        """What the policy decided as an answer whose time is still to be told, or why it is none. What is lazy is computed here."""
        try:
            return self.dialect.answer(decided, seen, 0.0)
        except Refusal as refusal:
            return refusal

    def close(self, session_id: str) -> None:
        """Forget a session, if there is one."""
        self._sessions.pop(session_id, None)

    def expire(self, now: float) -> None:
        """Forget the sessions that asked nothing for long."""
        for session_id, session in list(self._sessions.items()):
            if now - session.last_used_s > self._idle_s:
                del self._sessions[session_id]

    def health(self, pid: int) -> Health:
        """Counts of this moment."""
        policies = {reference: loaded.counters.health() for reference, loaded in self._loaded.items()}
        return Health(version=VERSION, pid=pid, sessions=len(self._sessions), policies=policies)

    def load_s(self) -> dict[str, float]:
        """Seconds that each policy took to load."""
        return {reference: loaded.counters.load_s for reference, loaded in self._loaded.items()}

    def shutdown(self) -> None:
        """Let the threads end once they have nothing to do."""
        for worker in self._workers.values():
            worker.shutdown(wait=False, cancel_futures=True)

    def _worker(self, reference: str) -> ThreadPoolExecutor:
        name = parse_reference(reference).target
        if name not in self._workers:
            self._workers[name] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        return self._workers[name]

    async def _compute(self, loaded: _Loaded, call: Callable[[], T]) -> T:
        """Run `call` in the policy's thread. Whatever the policy raises is a `Refusal`."""

        def guarded() -> T:
            try:
                return call()
            except Refusal:
                raise
            except BaseException as error:  # this thread runs nothing but the policy, and may not take the service with it
                raise Refusal("error", f"the policy {raised(error)}") from None

        return await self._call(loaded.worker, guarded)

    async def _call(self, worker: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        """`call` in a policy's thread. It counts until it returns, even if nobody awaits it any more."""
        future = worker.submit(call)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return await asyncio.wrap_future(future)
