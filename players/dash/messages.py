"""What main says to the driver, and what page and driver say to each other on loopback; importable without aiohttp.

Times in `_ms` are the page's (`performance.now()`). The page sends all it knows each time: a message needs no other one.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from players.config import PlayerConfig

Decides = Literal["controller", "bola", "throughput", "dynamic"]
"""Who decides: the decision service, or one of dash.js's own rules."""


class DashConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m players.dash.player`: one playback in a browser."""

    player: PlayerConfig
    decides: Decides = "controller"
    waits: Literal["gate", "sync"] = "gate"
    """How a decision is waited for: `gate` holds dash.js's timer, `sync` blocks the page in a synchronous request, as Pensieve did."""
    library: str
    """Path of dash.js."""
    keep: str
    """Folder for the screenshot, the page's console and its messages, each named after the trial."""
    picture: str | None = None
    """Path that always holds the newest picture of the page (JPEG); None: no pictures are taken."""
    start_s: Annotated[float, Meta(gt=0)] = 60.0
    """Longest wait for the browser to start and to load the page."""
    answer_s: Annotated[float, Meta(gt=0)] = 30.0
    """A browser that is silent for longer is stuck."""


class PageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /config.json`: what the page has to know."""

    mpd_url: str
    decides: Decides
    waits: str
    chunks: int
    chunk_s: float
    buffer_cap_s: float
    poll_s: float
    first_level: int
    first_bitrate_kbps: float
    retries: int
    retry_s: float


class PageChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk that was appended."""

    index: int
    level: int
    size_bytes: int
    request_ms: float
    first_byte_ms: float
    end_ms: float
    appended_ms: float
    buffer_s: float
    """Media held right after it was appended."""
    waited_ms: float
    """From its last byte to the next request's being due, where the full buffer was the reason; else 0."""


class PageStall(msgspec.Struct, frozen=True, kw_only=True):
    """Playback stood still; `end_ms` is None while it does."""

    start_ms: float
    end_ms: float | None


class PageDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that the page has: when it asked, and how long it waited for the answer."""

    index: int
    level: int
    asked_ms: float
    waited_ms: float


class PageState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page knows, with each of its messages."""

    now_ms: float
    buffer_s: float
    position_s: float
    """Of the playhead."""
    first_frame_ms: float | None
    average_kbps: float | None
    """dash.js's `getAverageThroughput`; None before it has one."""
    chunks: tuple[PageChunk, ...]
    stalls: tuple[PageStall, ...]
    decisions: tuple[PageDecision, ...]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /decide`: what is the level of chunk `index`?"""

    index: int
    state: PageState


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    level: int


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tell`, after a decision of dash.js's own; `POST /end`, when the last chunk is appended and playback runs."""

    state: PageState


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /failed`: the page can't go on. `reason` is an `end_reason`."""

    reason: Literal["browser_error", "origin_error", "origin_unreachable"]
    what: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver reads from the page every now and then."""

    loading: bool
    loaded_bytes: float
    """Of the request under way; another number than before is progress."""
    requests: int
