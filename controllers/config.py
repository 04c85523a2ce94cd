"""What main says to the decision service and what that answers; importable without aiohttp and without torch."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from testbed.errors import UserError

T = TypeVar("T")


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m controllers.server`: one decision service."""

    host: str
    """Address to listen on."""
    port: int = 0
    """TCP port; 0 takes a free one, told in `ControllerReady`."""
    unix_socket: str | None = None
    """Path of a Unix socket that serves the same (AF_UNIX paths cross network namespaces); None: none."""
    task: str = "abr"
    """Whose policies and messages: a key of `controllers.dialects.DIALECTS`."""
    policies: tuple[str, ...]
    """References to load before the first session; no other policy is ever loaded."""
    session_idle_s: float = 600.0
    """A session that asked nothing for this long is forgotten."""
    max_sessions: int = 256
    """More sessions at once are refused."""


class ControllerReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready", tag_field="event"):
    """The service's only line: all policies are loaded and it listens."""

    host: str
    port: int
    pid: int
    load_s: dict[str, float]
    """Seconds that each policy took to load."""


def read_config(kind: type[T], arguments: Sequence[str]) -> T:
    """A process's config: its only argument, else all of stdin, as JSON. Anything else is a `UserError`."""
    if len(arguments) > 1:
        raise UserError(f"{kind.__name__}: {len(arguments)} arguments, wanted one (JSON) or none (JSON on stdin)")
    text = arguments[0].encode() if arguments else sys.stdin.buffer.read()
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{kind.__name__}: {error}") from None
