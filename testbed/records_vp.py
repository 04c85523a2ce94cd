"""The rows that viewings leave behind; those of all tasks are in `testbed.records`."""

import msgspec

from testbed.records_trial import TrialBase


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True, tag="segment", tag_field="event"):
    """One segment of a viewing that has been played. Times count from the trial's first media request, seconds."""

    trial_id: str
    index: int
    levels: str
    """Of each tile, one hexadecimal digit, by number of the tile."""
    size_bytes: int
    wasted_bytes: int
    """Of tiles that were never in view."""
    request_s: float
    end_s: float
    """When the last byte came."""
    start_s: float
    """When it began to play."""
    rebuffer_s: float
    """Stall before it; of segment 0 the start-up delay."""
    quality_bps: float
    """Mean bitrate of what was in view, of the whole picture in that quality; blank counts as 0."""
    blank_share: float
    """Of the viewport, over the segment."""
    qoe: float


class HeadRow(msgspec.Struct, frozen=True, kw_only=True, tag="head", tag_field="event"):
    """One sample of a viewer's head, as it was and as it was expected when its segment was asked for."""

    trial_id: str
    media_s: float
    latitude_deg: float
    longitude_deg: float
    expected_latitude_deg: float
    expected_longitude_deg: float
    quality_bps: float
    blank_share: float


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True, tag="prediction", tag_field="event"):
    """One prediction. `latency_s` and `policy_s` as in `DecisionRow`."""

    trial_id: str
    segment: int
    """The segment it was asked for; in simulation the window's number."""
    at_s: float
    media_s: float
    """Of the newest sample that was told."""
    mae_deg: float | None
    """Mean absolute error over the horizon, as far as the recording goes."""
    latency_s: float
    policy_s: float | None
    source: str
    """`policy`, or `fallback` when the head was thought to stay where it was."""
    reason: str
    """Empty, or why it fell back: `late`, `invalid`, `error`, `unreachable`."""


class ViewingEndRow(msgspec.Struct, frozen=True, kw_only=True, tag="viewing_end", tag_field="event"):
    """How a viewing ended: the player's last line. `startup_s + played_s + rebuffer_s` is `wall_s`."""

    trial_id: str
    end_reason: str
    """`complete`, or what ended it early."""
    startup_s: float
    played_s: float
    rebuffer_s: float
    wall_s: float
    detail: str = ""
    began_at_s: float | None = None
    throughput_bps: float | None = None
    waited_for_core_s: float = 0.0
    """By so much the player's times are late because it waited for a core of the host (`players.waits`); 0 where nobody counts."""


class ViewingRow(TrialBase, frozen=True, kw_only=True, tag="viewing", tag_field="event"):
    """One viewing: one policy, one recorded head; live over one trace. In simulation there is no video, only the predictions' error: then
    a trial is one viewer on all test videos."""

    viewer: int
    video: int | None
    qoe: float | None
    """Per second; None in simulation, as all up to `startup_s`."""
    quality_mbps: float | None
    rebuffer_s: float | None
    """Stall per second of video."""
    switch_mbps: float | None
    blank_share: float | None
    wasted_share: float | None
    """Of the bytes: tiles that were never in view."""
    startup_s: float | None
    mae_deg: float | None
    """Mean over the predictions."""
    segments: int

    @property
    def value(self) -> float | None:
        """The metric."""
        return self.mae_deg if self.mode == "simulation" else self.qoe

    @property
    def simulated(self) -> float | None:
        """No twin knows the tiles."""
        return None


ViewingTrialRow = SegmentRow | HeadRow | PredictionRow | ViewingEndRow | ViewingRow
