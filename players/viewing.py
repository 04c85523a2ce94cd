"""A viewing of tiled video: when its segments play, when it stalls, and what the viewer really saw. Handed `now`; it reads no clock.

A segment begins when the one before is over and all tiles that are in view at that moment are there; else playback stands still, and with
it the head (a recorded head moves in the video's time). Tiles that come later are blank until then.
"""

from dataclasses import dataclass

import numpy as np

from players.tiles import TiledVideo
from players.viewport import Plan, shares_in_view
from traces.viewports import Floats


@dataclass(frozen=True)
class Seen:
    """What a viewer saw of one segment."""

    index: int
    start_s: float
    rebuffer_s: float
    """Stall before it; of segment 0 the start-up delay."""
    quality_bps: float
    """Mean over the viewport and the segment of the bitrate of what was shown; blank counts as 0."""
    blank_share: float
    size_bytes: int
    wasted_bytes: int
    """Of tiles that were not in view for any of its samples."""
    quality_of_sample_bps: tuple[float, ...]
    blank_of_sample: tuple[float, ...]


class Viewing:
    """One viewing of `segments` segments by a head that is known: `begin`, then `fetch` and `arrived` per segment, `advance` at will."""

    def __init__(self, video: TiledVideo, angles_deg: Floats, rate_hz: float, segments: int) -> None:
        self._video, self.segments = video, segments
        self.samples = round(video.segment_s * rate_hz)
        """Head samples in a segment."""
        shares = shares_in_view(angles_deg[: segments * self.samples], video.rows, video.columns)
        self._shares = shares.reshape(segments, self.samples, video.tiles)
        self._arrivals = np.full((segments, video.tiles), np.inf)
        self._levels = np.zeros((segments, video.tiles), dtype=int)
        self._starts: list[float] = []
        self._begin_s = 0.0

    def begin(self, now: float) -> None:
        """The first media request leaves."""
        self._begin_s = now

    def fetch(self, segment: int, plan: Plan) -> None:
        """A segment is asked for."""
        self._levels[segment] = plan.levels

    def arrived(self, segment: int, tile: int, now: float) -> None:
        """The last byte of a tile is there."""
        self._arrivals[segment, tile] = now

    def advance(self, now: float) -> None:
        """Begin the segments that have begun by `now`."""
        while (segment := len(self._starts)) < self.segments and (start_s := self._start_s(segment)) <= now:
            self._starts.append(start_s)

    def _start_s(self, segment: int) -> float:
        ready_s = float(self._arrivals[segment, self._shares[segment, 0] > 0].max())
        return max(ready_s, self._starts[-1] + self._video.segment_s) if segment else ready_s

    def media_s(self, now: float) -> float:
        """Where in the video playback is."""
        self.advance(now)
        if not self._starts:
            return 0.0
        segment = len(self._starts) - 1
        return (segment + min((now - self._starts[-1]) / self._video.segment_s, 1.0)) * self._video.segment_s

    def over(self, segment: int, now: float) -> bool:
        """Whether a segment has been played to its end."""
        self.advance(now)
        return len(self._starts) > segment and now >= self.end_s(segment)

    def end_s(self, segment: int) -> float:
        """When a segment that has begun is over."""
        return self._starts[segment] + self._video.segment_s

    def seen(self, segment: int) -> Seen:
        """What was seen of a segment that is over."""
        start_s, shares = self._starts[segment], self._shares[segment]  # (samples, tiles)
        moments_s = start_s + np.arange(self.samples) / self.samples * self._video.segment_s
        there = self._arrivals[segment] <= moments_s[:, None]  # (samples, tiles)
        bitrates = np.array(self._video.bitrates_bps)[self._levels[segment]]
        quality_bps, blank = (shares * there * bitrates).sum(axis=1), (shares * ~there).sum(axis=1)
        sizes = [self._video.sizes_bytes[segment][tile][level] for tile, level in enumerate(self._levels[segment])]
        unseen = ~(shares > 0).any(axis=0)
        before_s = self._begin_s if segment == 0 else self.end_s(segment - 1)
        return Seen(
            index=segment,
            start_s=start_s,
            rebuffer_s=start_s - before_s,
            quality_bps=float(quality_bps.mean()),
            blank_share=float(blank.mean()),
            size_bytes=sum(sizes),
            wasted_bytes=int(np.array(sizes)[unseen].sum()),
            quality_of_sample_bps=tuple(quality_bps.tolist()),
            blank_of_sample=tuple(blank.tolist()),
        )
