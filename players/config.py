"""What main says to its origin and player processes, and what the origin says back; importable without aiohttp.

Both processes read their config as one JSON object from stdin (or as their only argument) and write JSON lines to stdout: the player
rows of `testbed.records` (the last is a `PlaybackEndRow`), the origin the two structs below.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from controllers.api import Manifest
from players.tiles import TiledVideo


class OriginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m players.origin`: one origin server in one lane."""

    host: str
    """Address to listen on."""
    port: int = 0
    """TCP port; 0 takes a free one, told in `OriginReady`."""
    videos: tuple[Manifest, ...]
    """What is served; nothing else is."""
    tiled: tuple[TiledVideo, ...] = ()
    """The same, of tiled videos."""
    film: str | None = None
    """Folder of the film (`testbed.setup.encode`) that chunks begin with, for browsers; None: chunks hold a pattern, without an MPD."""
    chunks: int | None = None
    """With a film: so many of a video's chunks are served, those that sessions play; None: all."""
    start_socket: str | None = None
    """Path of the link's AF_UNIX datagram socket, told `start` upon the first media request of each session; None: nobody is told."""


class OriginReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready", tag_field="event"):
    """The origin's first line: it listens."""

    host: str
    port: int
    pid: int


class OriginRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request", tag_field="event"):
    """One request that the origin answered. Times are seconds on CLOCK_MONOTONIC."""

    at_s: float
    end_s: float
    """When the last byte was handed to the kernel (not when it arrived)."""
    path: str
    status: int
    bytes_sent: int
    """Body bytes handed to the kernel."""
    complete: bool
    """False when the client went away before the last byte."""
    session: str
    """Header `X-Session` or query `session`; empty when neither was given."""
    started: bool
    """This request started the session's trace."""


OriginLine = OriginReady | OriginRequest


class PlayerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m players.headless`: one playback, that is one trial. `players.dash` takes it too, as part of its own."""

    trial_id: str
    """Also the session id, at the origin and at the controller: letters, digits, `.`, `_`, `:` and `-`."""
    origin_url: str
    """Such as `http://10.0.0.1:8000`."""
    controller_url: str
    """Such as `http://10.1.0.1:9000`, over the unshaped control link."""
    policy: str
    """Reference of the policy, one of those the controller preloaded."""
    seed: int
    """Of the policy."""
    video: str
    """Name of the manifest at the origin."""
    chunks: int
    """How many chunks to play."""
    first_level: int = 0
    """Level of chunk 0, which nobody decides."""
    buffer_cap_s: float = 60.0
    """A request leaves only when the buffer holds less."""
    rtt_s: float = 0.08
    """Round-trip time of the path, as policies are told."""
    deadline_s: Annotated[float, Meta(gt=0)] = 1.0
    """A decision later than this is taken by the local rule."""
    open_deadline_s: Annotated[float, Meta(gt=0)] = 10.0
    """Longest wait for the controller to open the session, before the first media request."""
    no_progress_s: Annotated[float, Meta(gt=0)] = 120.0
    """The playback ends as `stalled_too_long` when no byte arrives for this long."""
    retries: Annotated[int, Meta(ge=0)] = 3
    """How often a failed segment is fetched again (dash.js 5 `retryAttempts.MediaSegment`)."""
    retry_s: Annotated[float, Meta(ge=0)] = 1.0
    """Pause before that (dash.js 5 `retryIntervals.MediaSegment`)."""
    poll_s: Annotated[float, Meta(gt=0)] = 0.5
    """Pause before a full buffer is looked at again (dash.js 5 `scheduling.defaultTimeout`)."""
    start_lag_s: Annotated[float, Meta(ge=0)] = 0.012
    """From the first append to the first frame (measured on dash.js 5.2.1 in Chromium)."""
    resume_lag_s: Annotated[float, Meta(ge=0)] = 0.003
    """From the append that ends a stall to the next frame (same measurement)."""
    tail_s: Annotated[float, Meta(ge=0)] = 0.0
    """Playback stops this long before the end of the buffer (0.11 for media with B-frames in Chromium)."""


class HeadsetConfig(PlayerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m players.headset`: one viewing of tiled video, that is one trial. `video` is a tiled one, `chunks` counts its segments."""

    angles_deg: tuple[tuple[float, float, float], ...]
    """The head's recorded movement from the video's beginning on: roll, pitch, yaw."""
    rate_hz: float
    """Samples of it a second."""
    front_deg: float | None = None
    """The yaw at which viewers look ahead; None: not known."""
    horizon: int = 20
    """Samples that the controller is asked to predict."""
    history: int = 25
    """Samples that it is told, at most."""
    buffer_cap_s: float = 2.0
    """A segment is asked for only when less lies ahead: what is fetched must have been predictable."""
