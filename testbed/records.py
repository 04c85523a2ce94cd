"""The rows a run leaves behind. One struct per table; names carry units; `None` means not measured."""

import msgspec


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True, tag="chunk", tag_field="event"):
    """One chunk. Times count from the trial's first media request, seconds."""

    trial_id: str
    index: int
    level: int
    bitrate_bps: int
    size_bytes: int
    request_s: float
    first_byte_s: float
    end_s: float
    download_s: float
    rebuffer_s: float
    buffer_s: float
    waited_s: float
    qoe: float


class DecisionRow(msgspec.Struct, frozen=True, kw_only=True, tag="decision", tag_field="event"):
    """One decision. `latency_s` is what the player waited; `policy_s` what the policy computed (None when no answer came)."""

    trial_id: str
    chunk_index: int
    at_s: float
    level: int
    latency_s: float
    policy_s: float | None
    source: str
    """`policy`, or `fallback` when the player's local rule answered."""
    reason: str
    """Empty, or why it fell back: `late`, `invalid`, `error`, `unreachable`."""


class StallRow(msgspec.Struct, frozen=True, kw_only=True, tag="stall", tag_field="event"):
    """Playback stood still from `start_s` to `end_s` (start-up is not a stall)."""

    trial_id: str
    start_s: float
    end_s: float


class LinkRow(msgspec.Struct, frozen=True, kw_only=True, tag="link", tag_field="event"):
    """100 ms of one direction of a lane's link. `allowed` = delivered capacity + wasted (nothing was waiting); IP bytes."""

    trial_id: str
    direction: str
    start_s: float
    allowed_bytes: float
    delivered_bytes: float
    wasted_bytes: float
    dropped_bytes: float
    queue_bytes: float


class TrialRow(msgspec.Struct, frozen=True, kw_only=True, tag="trial", tag_field="event"):
    """One trial: one policy, one trace at one offset, one seed. An invalid trial is shown and not averaged in."""

    trial_id: str
    policy: str
    trace: str
    trace_sha256: str
    offset_s: float
    seed: int
    mode: str
    lane: int
    end_reason: str
    """`complete`, or what ended it early."""
    valid: bool
    invalid_reason: str
    qoe: float | None
    bitrate_mbps: float | None
    rebuffer_s: float | None
    """Stall per chunk."""
    switch_mbps: float | None
    startup_s: float | None
    chunks: int
    decisions: int
    fallbacks: int
    controller_restarts: int
    wall_s: float | None
    congestion_control: str
    trace_wraps: int
    lateness_ms_p99: float | None
    rate_error_pct_100ms: float | None
    uncounted_losses: int | None
    simulated_qoe: float | None
    """The same policy, trace and offset in the simulator twin (emulation only)."""


Row = ChunkRow | DecisionRow | StallRow | LinkRow | TrialRow
