"""What the page tells, as the rows that every player writes: pure, each row once, as soon as nothing in it can change."""

from collections.abc import Iterator

from controllers.api import AbrSession, Chunk
from players.dash.messages import PageChunk, PageStall, PageState
from players.headless import PlayerRow
from players.throughput import ThroughputEstimate
from testbed.metrics import qoe_lin
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, StallRow
from testbed.units import bps_from_kbps, s_from_ms


class Ledger:
    """The account of one playback. Row times count from the first media request, as the page saw it."""

    def __init__(self, session: AbrSession) -> None:
        self._session = session
        self._answers: dict[int, tuple[float | None, str]] = {}
        self._chunks_told = self._stalls_told = self._decisions_told = 0
        self._offset_s = float("inf")
        self.state: PageState | None = None

    def heard(self, state: PageState, now: float) -> None:
        """A message came at `now`, seconds on the driver's clock; the quickest one says how the page's clock differs from it."""
        self.state = state
        self._offset_s = min(self._offset_s, now - s_from_ms(state.now_ms))

    def answered(self, index: int, policy_s: float | None, reason: str) -> None:
        """What the page can't know of a decision: how long the policy computed, or why the local rule decided."""
        self._answers[index] = (policy_s, reason)

    def history(self) -> list[Chunk]:
        """The chunks so far as a policy is told of them. A stall that the newest one just ended is counted up to now."""
        return [self._chunk(chunk) for chunk in self.state.chunks] if self.state else []

    def _chunk(self, page: PageChunk) -> Chunk:
        download_s = s_from_ms(page.end_ms - page.request_ms)
        return Chunk(page.index, page.level, page.size_bytes, download_s, self._rebuffer_s(page), page.buffer_s, s_from_ms(page.waited_ms))

    def _rebuffer_s(self, page: PageChunk) -> float:
        """Start-up for chunk 0, else the stalls that began after the chunk before was appended, and before this one was."""
        state = self.state
        assert state
        if page.index == 0:
            return s_from_ms((state.first_frame_ms or state.now_ms) - page.request_ms)
        before_ms = state.chunks[page.index - 1].appended_ms
        return sum(self._stall_s(stall) for stall in state.stalls if before_ms < stall.start_ms <= page.appended_ms)

    def _stall_s(self, stall: PageStall) -> float:
        assert self.state
        end_ms = self.state.now_ms if stall.end_ms is None else stall.end_ms
        return max(s_from_ms(end_ms - stall.start_ms), 0.0)

    def estimate(self) -> ThroughputEstimate:
        """dash.js's throughput estimate, computed here from what the page saw."""
        estimate = ThroughputEstimate()
        for chunk in self.state.chunks if self.state else ():
            estimate.add(chunk.size_bytes, s_from_ms(chunk.end_ms - chunk.first_byte_ms))
        return estimate

    def rows(self, ended: bool = False) -> Iterator[PlayerRow]:
        """The rows that are new and final; when the playback has `ended`, all that are left."""
        state = self.state
        if not state:
            return
        open_stall = bool(state.stalls) and state.stalls[-1].end_ms is None
        unsure = 0 if ended else int(open_stall or state.first_frame_ms is None)
        while self._decisions_told < len(state.decisions) or self._chunks_told < len(state.chunks) - unsure:
            chunk_is_next = self._chunks_told <= self._decisions_told and self._chunks_told < len(state.chunks) - unsure
            if not chunk_is_next and self._decisions_told >= len(state.decisions):
                break
            yield self._chunk_row(self._chunks_told) if chunk_is_next else self._decision_row(self._decisions_told)
        for stall in state.stalls[self._stalls_told : len(state.stalls) - (open_stall and not ended)]:
            self._stalls_told += 1
            end_ms = state.now_ms if stall.end_ms is None else stall.end_ms
            yield StallRow(trial_id=self._session.session_id, start_s=self._since_begin(stall.start_ms), end_s=self._since_begin(end_ms))

    def _chunk_row(self, index: int) -> ChunkRow:
        assert self.state
        self._chunks_told += 1
        page, bitrates_bps = self.state.chunks[index], self._session.video.bitrates_bps
        chunk, previous = self._chunk(page), self.state.chunks[max(index - 1, 0)].level
        return ChunkRow(
            trial_id=self._session.session_id,
            index=chunk.index,
            level=chunk.level,
            bitrate_bps=bitrates_bps[chunk.level],
            size_bytes=chunk.size_bytes,
            request_s=self._since_begin(page.request_ms),
            first_byte_s=self._since_begin(page.first_byte_ms),
            end_s=self._since_begin(page.end_ms),
            download_s=chunk.download_s,
            rebuffer_s=chunk.rebuffer_s,
            buffer_s=chunk.buffer_s,
            waited_s=chunk.waited_s,
            qoe=qoe_lin(bitrates_bps[chunk.level], chunk.rebuffer_s, bitrates_bps[previous]),
        )

    def _decision_row(self, number: int) -> DecisionRow:
        assert self.state
        self._decisions_told += 1
        page = self.state.decisions[number]
        waited_s = s_from_ms(page.waited_ms)
        policy_s, reason = self._answers.get(page.index, (waited_s, ""))  # dash.js's own rule: nobody was asked
        return DecisionRow(
            trial_id=self._session.session_id,
            chunk_index=page.index,
            at_s=self._since_begin(page.asked_ms),
            level=page.level,
            latency_s=waited_s,
            policy_s=policy_s,
            source="fallback" if reason else "policy",
            reason=reason,
        )

    def end(self, reason: str, detail: str) -> PlaybackEndRow:
        """The last row. Played is what the playhead says; time in which it neither moved nor lacked media is hiccups of the browser."""
        state = self.state
        if not state or not state.chunks:
            return PlaybackEndRow(
                trial_id=self._session.session_id, end_reason=reason, startup_s=0.0, played_s=0.0, rebuffer_s=0.0, wall_s=0.0, detail=detail
            )
        startup_s = self._since_begin(state.now_ms if state.first_frame_ms is None else state.first_frame_ms)
        rebuffer_s, wall_s = sum(map(self._stall_s, state.stalls)), self._since_begin(state.now_ms)
        return PlaybackEndRow(
            trial_id=self._session.session_id,
            end_reason=reason,
            startup_s=startup_s,
            played_s=state.position_s,
            rebuffer_s=rebuffer_s,
            wall_s=wall_s,
            detail=detail,
            began_at_s=self._offset_s + s_from_ms(state.chunks[0].request_ms),
            throughput_bps=None if state.average_kbps is None else bps_from_kbps(state.average_kbps),
            hiccup_s=wall_s - startup_s - state.position_s - rebuffer_s,
        )

    def _since_begin(self, at_ms: float) -> float:
        assert self.state
        return s_from_ms(at_ms - self.state.chunks[0].request_ms)
