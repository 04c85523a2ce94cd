"""`Network`: K lanes on Mininet. Server host - emulated link - client host, and one controller host on an unshaped link to each client."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from testbed.link import Link, PathSpec


@dataclass(frozen=True)
class Lane:
    """One emulated path with its hosts."""

    index: int
    server_ip: str
    client_ip: str
    controller_ip: str
    """Of the controller host as seen from this lane's client."""
    link: Link

    def popen_server(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        """Start a process in the server host, as root, in its own process group; it dies with this process."""
        raise NotImplementedError

    def popen_client(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        """The same in the client host."""
        raise NotImplementedError


class Network:
    """Context manager: makes the lanes, undoes all of them. `with Network(4, PathSpec(), "cubic", run_id) as network: ...`."""

    lanes: tuple[Lane, ...]
    facts: Mapping[str, object]
    """What was set and read back, for the run's header."""

    def __init__(self, lanes: int, path: PathSpec, congestion_control: str = "cubic", run_id: str = "run") -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        raise NotImplementedError

    def popen_controller(
        self, argv: Sequence[str], *, user: tuple[int, int] | None = None, env: Mapping[str, str] | None = None, **streams: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process in the controller host as `user` (uid, gid), else as root."""
        raise NotImplementedError
