"""What the testbed and the relay process say to each other: JSON over a SOCK_SEQPACKET socket, one answer to each request."""

import msgspec


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make a lane's two TAP devices in the network namespaces of two processes, and its start socket."""

    lane: int
    server_pid: int
    server_interface: str
    client_pid: int
    client_interface: str
    start_path: str
    delay_ns: int
    queue_bytes: int


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Arm a lane. The trace comes along as a file descriptor: int64 numbers, `points` times (ns), then `rates` rates (1e-3 bit/s)."""

    lane: int
    points: int
    rates: int
    """0: the times are packet-delivery opportunities."""
    offset_ns: int
    mean_rate_bps: float


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End a lane's trial."""

    lane: int


class FetchWindows(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Hand over windows of the trial that was stopped last, from number `first` on."""

    lane: int
    first: int


Request = Attach | Load | Stop | FetchWindows


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The relay runs. `problems`: what of its real-time set-up was refused, a sentence each."""

    problems: list[str]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request was carried out."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It was not."""

    reason: str


class Direction(msgspec.Struct, frozen=True, kw_only=True):
    """Packets of one direction since `Load`. `fine_us` and `coarse_us` are the arrays of `ledger.Lateness` (uint32)."""

    packets_in: int
    packets_out: int
    inside: int
    drops: dict[str, int]
    fine_us: bytes
    coarse_us: bytes
    max_ns: int


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Stop`."""

    started_ns: int | None
    windows: int
    windows_lost: int
    wraps: int
    down: Direction
    up: Direction


class WindowPage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `FetchWindows`: rows of `ledger.COLUMNS` float64 numbers."""

    rows: bytes


Answer = Ready | Done | Failed | Stopped | WindowPage

MAX_MESSAGE_BYTES = 150_000
PAGE_WINDOWS = 1500
"""Windows in one page: about 80 kB as base64."""
