"""The headset player: one viewing of tiled 360-degree video over a real socket, in real time. `python -m players.headset`.

It fetches the manifest, opens the session at the controller, then per segment: waits until less than `buffer_cap_s` lies ahead and the
segment before is there, picks the tiles' levels by where the viewer is predicted to look, within 90 % of the estimated throughput
(`players.viewport.plan`), and fetches them in one request, those expected in view first. The controller is asked ahead of that: as early as
the slowest of its last answers took, so that the link need not idle; what a decision takes makes the prediction older instead, and a
prediction is moved by how wrong it was at the samples that came meanwhile. The head is a recorded one and moves in the video's time
(`players.viewing`).
When no valid prediction comes in time, the head is thought to stay where it is, and the row says so. Rows (`testbed.records`) go to
stdout as they are made, a segment's when it has been played. Ends are those of `players.headless`.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack

import numpy as np

from controllers.api import VpSession
from controllers.client import DecisionFailed
from controllers.client_vp import ViewportClient
from players.config import HeadsetConfig
from players.fetch import OriginClient, PlaybackEnded
from players.process import CLOSE_DEADLINE_S, open_early, run
from players.throughput import ThroughputEstimate
from players.tiles import TiledVideo
from players.viewing import Seen, Viewing
from players.viewport import SAFETY, Plan, plan, shares_in_view, sphere
from players.waits import Waits
from testbed.clock import now_s
from testbed.errors import UserError
from testbed.metrics import qoe_lin
from testbed.records_vp import HeadRow, PredictionRow, SegmentRow, ViewingEndRow
from testbed.units import bytes_per_s_from_bps
from testbed.vp_metrics import mae_deg, wrapped_deg
from traces.viewports import gaze

LOOK_S = 0.02
"""Longest nap while a segment has to be waited for."""
LOOK_BACK = 5
"""Answers that tell how early to ask."""

HeadsetRow = SegmentRow | HeadRow | PredictionRow | ViewingEndRow
Emit = Callable[[HeadsetRow], None]


class Headset:
    """One viewing: `run` it, then `finish`, whether it came to its end or not."""

    def __init__(self, config: HeadsetConfig, video: TiledVideo, origin: OriginClient, controller: ViewportClient, emit: Emit) -> None:
        self._config, self._video, self._origin, self._controller, self._emit = config, video, origin, controller, emit
        self._angles_deg = np.array(config.angles_deg, dtype=float)
        self._viewing = Viewing(video, self._angles_deg, config.rate_hz, config.chunks)
        self._estimate = ThroughputEstimate()
        self._plans: list[Plan] = []
        self._expected_deg: list[np.ndarray] = []
        """What was predicted for the samples of each segment, (samples, 3)."""
        self._requests_s: list[tuple[float, float]] = []
        self._told: list[Seen] = []
        self._began_at_s: float | None = None
        self._asked: asyncio.Task[tuple[np.ndarray, int]] | None = None
        """The prediction for the next segment, if it has been asked for."""
        self._latencies_s: deque[float] = deque([0.0], maxlen=LOOK_BACK)
        """What the last answers took."""
        self._waits = Waits()

    async def run(self) -> None:
        """View to the end. Raises `PlaybackEnded` when it can't go on."""
        try:
            for segment in range(self._config.chunks):
                await self._until_due(segment)
                self._waits.timed()
                predicted_deg, newest = await self._ask(segment)
                self._waits.timed()
                self._asked = None
                await self._fetch(segment, predicted_deg, newest)
        finally:
            if self._asked:
                self._asked.cancel()
                await asyncio.gather(self._asked, return_exceptions=True)
        while len(self._told) < self._config.chunks:
            self._tell(now_s())
            await asyncio.sleep(LOOK_S)

    async def _until_due(self, segment: int) -> None:
        """Until less than the cap lies ahead of where playback is."""
        while self._due_in_s(segment) >= 0:
            self._tell(now_s())
            self._ask_early(segment)
            await asyncio.sleep(LOOK_S)
            self._waits.woke()

    def _due_in_s(self, segment: int) -> float:
        """How long the full buffer still holds a request back, if playback goes on; less than 0: it doesn't."""
        return segment * self._video.segment_s - self._viewing.media_s(now_s()) - self._config.buffer_cap_s

    def _ask_early(self, segment: int, link_busy_s: float = 0.0) -> None:
        """Ask for a segment's prediction if its request may leave in no more time than an answer takes."""
        if segment < self._config.chunks and max(link_busy_s, self._due_in_s(segment)) <= max(self._latencies_s):
            self._ask(segment)

    def _ask(self, segment: int) -> "asyncio.Task[tuple[np.ndarray, int]]":
        """The prediction for the next segment; it is asked for once."""
        self._asked = self._asked or asyncio.create_task(self._predicted(segment))
        return self._asked

    def _newest(self, now: float) -> int:
        """Number of the head's newest sample."""
        return min(int(self._viewing.media_s(now) * self._config.rate_hz + 1e-9), len(self._angles_deg) - 1)

    async def _predicted(self, segment: int) -> tuple[np.ndarray, int]:
        """The next samples, (horizon, 3), and the number of the newest one known: the controller's answer, or the head stays."""
        asked_s = now_s()
        newest = self._newest(asked_s)
        first = max(newest + 1 - self._config.history, 0)
        times_s = [number / self._config.rate_hz for number in range(first, newest + 1)]
        policy_s, reason = None, ""
        try:
            answer = await self._controller.decide(times_s, self._config.angles_deg[first : newest + 1], self._config.deadline_s)
            predicted_deg, policy_s = np.array(answer.predicted_deg), answer.policy_s
        except DecisionFailed as failed:
            reason = failed.reason
            predicted_deg = np.repeat(self._angles_deg[newest : newest + 1], self._config.horizon, axis=0)
            sys.stderr.write(f"{self._config.trial_id}: segment {segment}: {failed.reason}: {failed.message}\n")
        latency_s = now_s() - asked_s
        self._latencies_s.append(latency_s)
        true_deg = self._angles_deg[newest + 1 : newest + 1 + self._config.horizon]
        error_deg = float(mae_deg(predicted_deg[None, : len(true_deg)], true_deg[None])[0]) if len(true_deg) else None
        self._emit(
            PredictionRow(
                trial_id=self._config.trial_id,
                segment=segment,
                at_s=self._since_begin(asked_s),
                media_s=newest / self._config.rate_hz,
                mae_deg=error_deg,
                latency_s=latency_s,
                policy_s=policy_s,
                source="fallback" if reason else "policy",
                reason=reason,
            )
        )
        return predicted_deg, newest

    async def _fetch(self, segment: int, predicted_deg: np.ndarray, newest: int) -> None:
        """Pick the levels and download; tiles are there as their last byte comes."""
        predicted_deg, newest = brought_up(predicted_deg, newest, self._angles_deg, self._newest(now_s()))
        samples = self._viewing.samples
        ahead = segment * samples + np.arange(samples) - newest - 1  # places of the segment's samples in the prediction
        known_deg = self._angles_deg[np.clip(newest + 1 + ahead, 0, newest)]
        expected_deg = np.where(ahead[:, None] < 0, known_deg, predicted_deg[np.clip(ahead, 0, len(predicted_deg) - 1)])
        shares = shares_in_view(expected_deg, self._video.rows, self._video.columns).mean(axis=0)
        bytes_per_s = bytes_per_s_from_bps(self._estimate.average_bps or 0.0)
        budget_bytes = SAFETY * bytes_per_s * self._video.segment_s
        chosen = plan(self._video, segment, shares, budget_bytes)
        self._viewing.fetch(segment, chosen)
        self._plans.append(chosen)
        self._expected_deg.append(expected_deg)
        sizes = [self._video.sizes_bytes[segment][tile][chosen.levels[tile]] for tile in chosen.order]
        arriving = _Arriving(
            np.cumsum(sizes),
            lambda place: self._viewing.arrived(segment, chosen.order[place], now_s()),
            lambda left_bytes: self._ask_early(segment + 1, left_bytes / bytes_per_s if bytes_per_s else np.inf),
            self._waits.woke,
        )
        if self._began_at_s is None:
            self._began_at_s = now_s()
            self._viewing.begin(self._began_at_s)
        wanted = ",".join(f"{tile}.{chosen.levels[tile]}" for tile in chosen.order)
        download = await self._origin.tiles(segment, wanted, sum(sizes), arriving.took, arriving.again)
        self._waits.timed()
        self._estimate.add(download.size_bytes, download.end_s - download.first_byte_s)
        self._requests_s.append((download.request_s, download.end_s))
        self._tell(now_s())

    def _tell(self, now: float) -> None:
        """The rows of segments that are over, and wholly there (what comes after its segment is over was in vain, but is counted)."""
        while (segment := len(self._told)) < len(self._requests_s) and self._viewing.over(segment, now):
            self._tell_segment(self._viewing.seen(segment))

    def _tell_segment(self, seen: Seen) -> None:
        previous_bps = self._told[-1].quality_bps if self._told else seen.quality_bps
        request_s, end_s = self._requests_s[seen.index]
        self._told.append(seen)
        self._emit(
            SegmentRow(
                trial_id=self._config.trial_id,
                index=seen.index,
                levels="".join(f"{level:x}" for level in self._plans[seen.index].levels),
                size_bytes=seen.size_bytes,
                wasted_bytes=seen.wasted_bytes,
                request_s=self._since_begin(request_s),
                end_s=self._since_begin(end_s),
                start_s=self._since_begin(seen.start_s),
                rebuffer_s=seen.rebuffer_s,
                quality_bps=seen.quality_bps,
                blank_share=seen.blank_share,
                qoe=qoe_lin(seen.quality_bps, seen.rebuffer_s, previous_bps),
            )
        )
        self._tell_head(seen)

    def _tell_head(self, seen: Seen) -> None:
        """Where the viewer looked, and was expected to look, at each sample of a segment."""
        first = seen.index * self._viewing.samples
        true = sphere(gaze(self._angles_deg[first : first + self._viewing.samples]))
        expected = sphere(gaze(self._expected_deg[seen.index]))
        for i in range(self._viewing.samples):
            self._emit(
                HeadRow(
                    trial_id=self._config.trial_id,
                    media_s=(first + i) / self._config.rate_hz,
                    latitude_deg=float(np.degrees(true[0][i])),
                    longitude_deg=float(np.degrees(true[1][i])),
                    expected_latitude_deg=float(np.degrees(expected[0][i])),
                    expected_longitude_deg=float(np.degrees(expected[1][i])),
                    quality_bps=seen.quality_of_sample_bps[i],
                    blank_share=seen.blank_of_sample[i],
                )
            )

    def _since_begin(self, at_s: float) -> float:
        return at_s - (self._began_at_s or at_s)

    def finish(self, reason: str, detail: str) -> None:
        """The last row."""
        self._waits.close()
        end_s = self._viewing.end_s(self._config.chunks - 1) if reason == "complete" else now_s()
        stalls_s = sum(seen.rebuffer_s for seen in self._told[1:])
        startup_s = self._told[0].rebuffer_s if self._told else 0.0
        wall_s = self._since_begin(end_s)
        self._emit(
            ViewingEndRow(
                trial_id=self._config.trial_id,
                end_reason=reason,
                detail=detail,
                startup_s=startup_s,
                rebuffer_s=stalls_s,
                played_s=len(self._told) * self._video.segment_s,
                wall_s=wall_s,
                began_at_s=self._began_at_s,
                throughput_bps=self._estimate.average_bps,
                waited_for_core_s=self._waits.counted_s,
            )
        )


def brought_up(predicted_deg: np.ndarray, newest: int, angles_deg: np.ndarray, now: int) -> tuple[np.ndarray, int]:
    """A prediction (horizon, 3) of what follows sample `newest`, for sample `now`: moved by how wrong it was there. And the sample."""
    come = min(now - newest, len(predicted_deg) - 1)
    if come < 1:
        return predicted_deg, newest
    return predicted_deg[come:] + wrapped_deg(angles_deg[newest + come] - predicted_deg[come - 1]), newest + come


class _Arriving:
    """Counts bytes; tells of each tile whose last byte has come, and after each piece how many bytes are still to come."""

    def __init__(
        self, ends_bytes: np.ndarray, arrived: Callable[[int], None], still: Callable[[int], None], woke: Callable[[], None]
    ) -> None:
        self._ends_bytes, self._arrived, self._still, self._woke = ends_bytes, arrived, still, woke
        self._bytes = self._tiles = 0

    def again(self) -> None:
        """All begins anew; tiles that were there are there."""
        self._bytes = 0

    def took(self, piece: bytes) -> None:
        """More bytes."""
        self._woke()
        self._bytes += len(piece)
        while self._tiles < len(self._ends_bytes) and self._bytes >= self._ends_bytes[self._tiles]:
            self._arrived(self._tiles)
            self._tiles += 1
        self._still(int(self._ends_bytes[-1]) - self._bytes)


async def view(config: HeadsetConfig, emit: Emit) -> None:
    """One viewing, from the manifest to the last row. Cancelling it interrupts the viewing; the last row is written nevertheless."""
    async with AsyncExitStack() as closing:
        origin = OriginClient(config)
        closing.push_async_callback(origin.close)
        headset: Headset | None = None
        reason, detail = "complete", ""
        try:
            video = await origin.tiled()
            check_fits(config, video)
            session = VpSession(config.trial_id, config.horizon, config.rate_hz, config.front_deg)
            controller = ViewportClient(config.controller_url, session, config.policy, config.seed)
            closing.push_async_callback(controller.close, CLOSE_DEADLINE_S)
            await open_early(controller, config)
            headset = Headset(config, video, origin, controller, emit)
            await headset.run()
        except PlaybackEnded as ended:
            reason, detail = ended.reason, ended.detail
        except asyncio.CancelledError:
            reason, detail = "interrupted", "told to stop"
        if headset:
            headset.finish(reason, detail)
        else:
            nothing = {"startup_s": 0.0, "rebuffer_s": 0.0, "played_s": 0.0, "wall_s": 0.0}
            emit(ViewingEndRow(trial_id=config.trial_id, end_reason=reason, detail=detail, **nothing))


def check_fits(config: HeadsetConfig, video: TiledVideo) -> None:
    """Raise `UserError` unless video and head movement are long enough, and samples fill a segment."""
    samples = video.segment_s * config.rate_hz
    if abs(samples - round(samples)) > 1e-6 or samples < 1:
        raise UserError(f"HeadsetConfig: a segment has {samples:g} samples of head movement, wanted a whole number")
    if not 1 <= config.chunks <= video.segments:
        raise UserError(f"HeadsetConfig: chunks is {config.chunks}, wanted 1 to the video's {video.segments} segments")
    if len(config.angles_deg) < config.chunks * round(samples):
        wanted = config.chunks * round(samples)
        raise UserError(f"HeadsetConfig: there are {len(config.angles_deg)} samples of head movement, wanted at least {wanted}")


if __name__ == "__main__":
    sys.exit(run(HeadsetConfig, view))
