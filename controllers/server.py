"""The decision service: policies behind HTTP, on one address and one Unix socket. `python -m controllers.server`.

Messages and paths: `controllers.protocol`. It loads only the policies of its config, never one that a message names.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import BinaryIO, NoReturn

import msgspec
from aiohttp import web

from controllers.config import ControllerConfig, ControllerReady, read_config
from controllers.dialects import DIALECTS
from controllers.loader import load
from controllers.protocol import IDEMPOTENCY_KEY, MAX_MESSAGE_BYTES, STATUS, Closed, Failure, Opened, Refusal
from controllers.sessions import Sessions
from controllers.stdio import claim_stdout, empty_stdin
from testbed.clock import now_s
from testbed.errors import UserError, suggestion

KEEP_ALIVE_S = 3600.0
EXPIRE_EVERY_S = 10.0
SHUTDOWN_S = 0.5
"""Requests under way get this long at the end."""

log = logging.getLogger(__name__)


def application(sessions: Sessions) -> web.Application:
    """The service as an aiohttp application."""
    app = web.Application(client_max_size=MAX_MESSAGE_BYTES, middlewares=[_failures])

    async def open_session(request: web.Request) -> web.Response:
        message = sessions.dialect.decode_open(await request.read())
        await sessions.open(message)
        return _json(Opened(session_id=message.session.session_id), 201)

    async def decide(request: web.Request) -> web.Response:
        message = sessions.dialect.decode_decide(await request.read())
        return _json(await sessions.decide(request.match_info["id"], message, request.headers.get(IDEMPOTENCY_KEY, "")))

    async def close(request: web.Request) -> web.Response:
        sessions.close(request.match_info["id"])
        return _json(Closed(session_id=request.match_info["id"]))

    async def health(request: web.Request) -> web.Response:
        return _json(sessions.health(os.getpid()))

    app.router.add_post("/sessions", open_session)
    app.router.add_post("/sessions/{id}/decide", decide)
    app.router.add_delete("/sessions/{id}", close)
    app.router.add_get("/health", health, allow_head=False)
    return app


@web.middleware
async def _failures(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Every refusal, ours or aiohttp's, is a `Failure`; an exception that nobody foresaw is too, and is logged."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _json(Failure(code=refusal.code, message=refusal.message), STATUS[refusal.code])
    except web.HTTPException as error:
        code = "no_such_path" if error.status in (404, 405) else "malformed"
        return _json(Failure(code=code, message=f"{request.method} {request.rel_url.raw_path[:200]}: {error.reason}"), error.status)
    except Exception as error:
        log.exception("%s %s", request.method, request.rel_url.raw_path[:200])
        return _json(Failure(code="error", message=f"the service raised {type(error).__name__}"), 500)


def _json(message: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), status=status, content_type="application/json")


async def serve(config: ControllerConfig, out: BinaryIO) -> int:
    """Load, listen, say so on `out`, serve; SIGTERM or SIGINT ends any of these. Raises `UserError`.

    Returns how many calls into policies have not returned.
    """
    if config.task not in DIALECTS:
        raise UserError(f"decision service: task is {config.task!r}, {suggestion(config.task, DIALECTS)}")
    sessions = Sessions(config.max_sessions, config.session_idle_s, DIALECTS[config.task])
    runner = web.AppRunner(application(sessions), access_log=None, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=SHUTDOWN_S)
    serving = asyncio.create_task(_serve(sessions, runner, config, out))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        await runner.cleanup()
        sessions.shutdown()
    return sessions.computing


async def _serve(sessions: Sessions, runner: web.AppRunner, config: ControllerConfig, out: BinaryIO) -> NoReturn:
    await runner.setup()
    for reference in config.policies:
        await sessions.preload(reference, lambda given: load(given, config.task))
    await _listen(runner, config)
    ready = ControllerReady(host=config.host, port=runner.addresses[0][1], pid=os.getpid(), load_s=sessions.load_s())
    out.write(msgspec.json.encode(ready) + b"\n")
    out.flush()
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        sessions.expire(now_s())


async def _listen(runner: web.AppRunner, config: ControllerConfig) -> None:
    where = f"{config.host} port {config.port}"
    try:
        await web.TCPSite(runner, config.host, config.port).start()
        if config.unix_socket is not None:
            where = config.unix_socket
            await web.UnixSite(runner, config.unix_socket).start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise UserError(f"decision service: can't listen on {where}: {reason}") from None


def main() -> int:
    """Read the config, serve; a config, policy or address that can't be used is one sentence and exit code 2."""
    out = claim_stdout()
    try:
        config = read_config(ControllerConfig, sys.argv[1:])
        empty_stdin()
        busy = asyncio.run(serve(config, out))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if busy:
        os._exit(0)  # a policy that never returns holds its thread, and Python would wait for it
    return 0


if __name__ == "__main__":
    sys.exit(main())
