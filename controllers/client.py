"""A player's or a driver's side of the decision service: ask, with a deadline; whatever happens is an answer or one of four reasons."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import aiohttp
import msgspec

from controllers.api import AbrSession, Chunk
from controllers.protocol import IDEMPOTENCY_KEY, Answer, Decide, Open, Refusal, decode_answer, decode_failure

CONNECT_SHARE = 0.5
"""A controller that accepts no connection within this share of the deadline is `unreachable`, not `late`."""
KEEP_ALIVE_S = 3600.0


@dataclass(eq=False)
class DecisionFailed(Exception):
    """There is no decision. `reason` is `late`, `invalid`, `error` or `unreachable`; `message` one sentence."""

    reason: str
    message: str


class Client:
    """One session at the decision service, over one keep-alive connection.

    A service that lost the session (it was restarted) is asked to open it again, within the same deadline.
    """

    def __init__(self, url: str, session_id: str, opening: msgspec.Struct) -> None:
        self._url = url.rstrip("/")
        self._session_id = session_id
        self._open = msgspec.json.encode(opening)
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=KEEP_ALIVE_S))

    async def open(self, deadline_s: float) -> None:
        """Open the session; `DecisionFailed` when that can't be done in time (asking for decisions tries again)."""
        async with _deadline(deadline_s):
            await self._opened(deadline_s)

    async def ask(self, message: msgspec.Struct, deadline_s: float) -> bytes:
        """The body of the answer to a decide message, or `DecisionFailed`."""
        body = msgspec.json.encode(message)
        path, key = f"/sessions/{self._session_id}/decide", uuid4().hex
        async with _deadline(deadline_s):
            status, answer = await self._post(path, body, deadline_s, key)
            if status == 404 and decode_failure(answer).code == "unknown_session":
                await self._opened(deadline_s)
                status, answer = await self._post(path, body, deadline_s, key)
        if status != 200:
            raise _failed(answer)
        return answer

    async def close(self, deadline_s: float) -> None:
        """Close the session, if the service can still be reached, and the connection."""
        try:
            async with asyncio.timeout(deadline_s), self._http.delete(f"{self._url}/sessions/{self._session_id}") as response:
                await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass  # the service forgets idle sessions by itself
        finally:
            await self._http.close()

    async def _opened(self, deadline_s: float) -> None:
        status, answer = await self._post("/sessions", self._open, deadline_s)
        if status != 201:
            raise _failed(answer)

    async def _post(self, path: str, body: bytes, deadline_s: float, key: str = "", again: bool = True) -> tuple[int, bytes]:
        """Status and body. A connection that broke is made anew once: it may be one that a restart of the service left behind.

        It may also have broken on the way back. By the `key` the service then knows a decision that it has made.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=deadline_s * CONNECT_SHARE)
        headers = {IDEMPOTENCY_KEY: key} if key else {}
        try:
            async with self._http.post(self._url + path, data=body, headers=headers, timeout=timeout) as response:
                return response.status, await response.read()
        except aiohttp.ClientConnectorError as error:
            raise DecisionFailed("unreachable", f"{self._url}: {error.strerror or error}") from None
        except aiohttp.ConnectionTimeoutError:
            raise DecisionFailed("unreachable", f"{self._url}: no connection within {deadline_s * CONNECT_SHARE} s") from None
        except aiohttp.ClientResponseError as error:
            raise DecisionFailed("invalid", f"{self._url}: the answer is no HTTP ({error.message[:200]!r})") from None
        except (aiohttp.ClientError, OSError) as error:
            if not again:
                raise DecisionFailed("unreachable", f"{self._url}: {type(error).__name__} {error}") from None
        return await self._post(path, body, deadline_s, key, again=False)


class DecisionClient(Client):
    """Of a player."""

    def __init__(self, url: str, session: AbrSession, policy: str, seed: int) -> None:
        super().__init__(url, session.session_id, Open(session=session, policy=policy, seed=seed))
        self._session = session

    async def decide(self, history: Sequence[Chunk], buffer_s: float, deadline_s: float) -> Answer:
        """The level of the next chunk, or `DecisionFailed`."""
        body = await self.ask(Decide(history=tuple(history), buffer_s=buffer_s, deadline_s=deadline_s), deadline_s)
        try:
            return decode_answer(body, self._session)
        except Refusal as refusal:
            raise DecisionFailed("invalid", refusal.message) from None


@asynccontextmanager
async def _deadline(deadline_s: float) -> AsyncIterator[None]:
    """`asyncio.timeout` whose end is `DecisionFailed("late")`."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise DecisionFailed("late", f"no decision within {deadline_s} s") from None


def _failed(answer: bytes) -> DecisionFailed:
    """A `Failure` as a reason that a `DecisionRow` knows."""
    failure = decode_failure(answer)
    reason = failure.code if failure.code in ("late", "invalid") else "error"
    return DecisionFailed(reason, failure.message)
