"""The headless player: one playback over a real socket in real time, with dash.js 5's behaviour. `python -m players.headless`.

It fetches the manifest, opens the session at the controller, then plays: chunk 0 at `first_level`; before each later chunk, once the
buffer lets the request leave (`players.playback`), it asks the controller and waits no longer than the deadline. When no valid level
comes in time, the local rule decides (`players.throughput.local_level`) and the row says why. Rows (`testbed.records`) go to stdout as
they are made; a chunk's row when the pause after it is over. Times count from the first media request.

| end_reason | meaning |
| --- | --- |
| `complete` | the last chunk was downloaded |
| `origin_unreachable` | no connection, or broken ones, and all retries used |
| `origin_error` | the origin refused, or its bytes are not the manifest's |
| `stalled_too_long` | no byte for `no_progress_s` while one was due |
| `interrupted` | SIGTERM or SIGINT |
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from controllers.api import AbrSession, Chunk, Manifest
from controllers.client import DecisionClient, DecisionFailed
from controllers.protocol import Refusal, check_session
from players.config import PlayerConfig
from players.fetch import Download, OriginClient, PlaybackEnded
from players.playback import Playback, Timing
from players.process import CLOSE_DEADLINE_S, open_early, run
from players.throughput import ThroughputEstimate, local_level
from players.waits import Waits
from testbed.clock import now_s
from testbed.errors import UserError
from testbed.metrics import qoe_lin
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, StallRow

PlayerRow = ChunkRow | DecisionRow | StallRow | PlaybackEndRow
Emit = Callable[[PlayerRow], None]


class Player:
    """One playback of `session`: `run` it, then `finish`, whether it came to its end or not."""

    def __init__(self, config: PlayerConfig, session: AbrSession, origin: OriginClient, controller: DecisionClient, emit: Emit) -> None:
        self._config, self._session = config, session
        self._origin, self._controller, self._emit = origin, controller, emit
        self._waits = Waits()
        self._playback = Playback(_timing(config, session.video), session.chunks)
        self._estimate = ThroughputEstimate()
        self._history: list[Chunk] = []
        self._stalls_told = 0
        self._began_at_s: float | None = None

    async def run(self) -> None:
        """Play to the last chunk. Raises `PlaybackEnded` when it can't go on."""
        for index in range(self._session.chunks):
            level = await self._level(index) if index else self._session.first_level
            request_s = now_s()
            if self._began_at_s is None:
                self._began_at_s = request_s
                self._playback.begin(request_s)
            size_bytes = self._session.video.sizes_bytes[index][level]
            download = await self._origin.chunk(index, level, size_bytes, request_s, lambda _: self._waits.woke())
            self._waits.timed()
            await self._take(index, level, download)

    def finish(self, reason: str, detail: str) -> None:
        """Write the stall that still lasts, if one does, and the last row."""
        self._waits.close()
        began_s = self._began_at_s
        if began_s is None:
            self._emit(no_playback(self._config.trial_id, reason, detail))
            return
        end_s = self._playback.last_s if reason == "complete" else now_s()
        self._tell_stalls(end_s)
        account = self._playback.account(end_s)
        self._emit(
            PlaybackEndRow(
                trial_id=self._config.trial_id,
                end_reason=reason,
                startup_s=account.startup_s,
                played_s=account.played_s,
                rebuffer_s=account.rebuffer_s,
                wall_s=account.wall_s,
                detail=detail,
                began_at_s=began_s,
                throughput_bps=self._estimate.average_bps,
                waited_for_core_s=self._waits.counted_s,
            )
        )

    async def _take(self, index: int, level: int, download: Download) -> None:
        """Append a chunk, then pause while the buffer is full; its row is written when the pause is over, however that ends."""
        end_s = download.end_s
        rebuffer_s = self._playback.append(end_s)
        self._estimate.add(download.size_bytes, end_s - download.first_byte_s)
        self._tell_stalls(end_s)
        chunk = Chunk(index, level, download.size_bytes, end_s - download.request_s, rebuffer_s, self._playback.buffer_s(end_s))
        try:
            if index + 1 < self._session.chunks:
                chunk = await self._pause(chunk, end_s)
        finally:
            self._emit(self._chunk_row(chunk, download))
            self._history.append(chunk)

    async def _pause(self, chunk: Chunk, end_s: float) -> Chunk:
        """Wait until the next request is due; the chunk with the pause noted."""
        waited_s = 0.0
        while (pause_s := self._playback.wait_s(now_s())) > 0:
            await asyncio.sleep(pause_s)
            self._waits.woke()
            waited_s = now_s() - end_s
        self._waits.timed()
        return replace(chunk, waited_s=waited_s)

    async def _level(self, index: int) -> int:
        """The controller's level for chunk `index`, or in its place the local rule's."""
        asked_s = now_s()
        policy_s, reason = None, ""
        try:
            answer = await self._controller.decide(self._history, self._playback.buffer_s(asked_s), self._config.deadline_s)
            level, policy_s = answer.level, answer.policy_s
        except DecisionFailed as failed:
            reason = failed.reason
            level = local_level(self._session.video, self._estimate.average_bps, self._playback.buffer_s(now_s()))
            sys.stderr.write(f"{self._config.trial_id}: chunk {index}: {failed.reason}: {failed.message}\n")
        self._waits.timed()
        self._emit(
            DecisionRow(
                trial_id=self._config.trial_id,
                chunk_index=index,
                at_s=self._since_begin(asked_s),
                level=level,
                latency_s=now_s() - asked_s,
                policy_s=policy_s,
                source="fallback" if reason else "policy",
                reason=reason,
            )
        )
        return level

    def _tell_stalls(self, now: float) -> None:
        stalls = self._playback.stalls(now)
        for stall in stalls[self._stalls_told :]:
            start_s, end_s = self._since_begin(stall.start_s), self._since_begin(stall.end_s)
            self._emit(StallRow(trial_id=self._config.trial_id, start_s=start_s, end_s=end_s))
        self._stalls_told = len(stalls)

    def _chunk_row(self, chunk: Chunk, download: Download) -> ChunkRow:
        bitrates_bps = self._session.video.bitrates_bps
        previous = self._history[-1].level if self._history else chunk.level
        return ChunkRow(
            trial_id=self._config.trial_id,
            index=chunk.index,
            level=chunk.level,
            bitrate_bps=bitrates_bps[chunk.level],
            size_bytes=chunk.size_bytes,
            request_s=self._since_begin(download.request_s),
            first_byte_s=self._since_begin(download.first_byte_s),
            end_s=self._since_begin(download.end_s),
            download_s=chunk.download_s,
            rebuffer_s=chunk.rebuffer_s,
            buffer_s=chunk.buffer_s,
            waited_s=chunk.waited_s,
            qoe=qoe_lin(bitrates_bps[chunk.level], chunk.rebuffer_s, bitrates_bps[previous]),
        )

    def _since_begin(self, at_s: float) -> float:
        return at_s - (self._began_at_s or 0.0)


async def play(config: PlayerConfig, emit: Emit) -> None:
    """One playback, from the manifest to the last row. Cancelling it interrupts the playback; the last row is written nevertheless."""
    async with AsyncExitStack() as closing:
        origin = OriginClient(config)
        closing.push_async_callback(origin.close)
        player: Player | None = None
        reason, detail = "complete", ""
        try:
            session = session_of(config, await origin.manifest())
            controller = DecisionClient(config.controller_url, session, config.policy, config.seed)
            closing.push_async_callback(controller.close, CLOSE_DEADLINE_S)
            await open_early(controller, config)
            player = Player(config, session, origin, controller, emit)
            await player.run()
        except PlaybackEnded as ended:
            reason, detail = ended.reason, ended.detail
        except asyncio.CancelledError:
            reason, detail = "interrupted", "told to stop"
        if player:
            player.finish(reason, detail)
        else:
            emit(no_playback(config.trial_id, reason, detail))


def session_of(config: PlayerConfig, video: Manifest) -> AbrSession:
    """The session that a config and its video make; `UserError` when that can't be one."""
    session = AbrSession(config.trial_id, video, config.chunks, config.buffer_cap_s, config.rtt_s, config.first_level)
    try:
        check_session(session)
    except Refusal as refusal:
        raise UserError(f"PlayerConfig: {refusal.message}") from None
    return session


def _timing(config: PlayerConfig, video: Manifest) -> Timing:
    return Timing(video.chunk_s, config.buffer_cap_s, config.poll_s, config.start_lag_s, config.resume_lag_s, config.tail_s)


def no_playback(trial_id: str, reason: str, detail: str) -> PlaybackEndRow:
    """The last row of a playback that ended before its first media request."""
    return PlaybackEndRow(trial_id=trial_id, end_reason=reason, startup_s=0.0, played_s=0.0, rebuffer_s=0.0, wall_s=0.0, detail=detail)


if __name__ == "__main__":
    sys.exit(run(PlayerConfig, play))
