"""What the page tells, as rows: times from the first request, stalls with the chunk that ended them, each row once and only when final."""

import pytest

from controllers.api import AbrSession
from players.dash.ledger import Ledger
from players.dash.messages import PageChunk, PageDecision, PageStall, PageState
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, StallRow
from tests.unit.loopback import VIDEO

SESSION = AbrSession("t0", VIDEO, 3)


def chunk(index: int, request_ms: float, end_ms: float, level: int = 0, waited_ms: float = 0.0) -> PageChunk:
    size_bytes = VIDEO.sizes_bytes[index][level]
    return PageChunk(
        index=index,
        level=level,
        size_bytes=size_bytes,
        request_ms=request_ms,
        first_byte_ms=request_ms + 80,
        end_ms=end_ms,
        appended_ms=end_ms + 5,
        buffer_s=0.2,
        waited_ms=waited_ms,
    )


def state(now_ms: float, *chunks: PageChunk, stalls: tuple[PageStall, ...] = (), first_frame_ms: float | None = 1_310.0) -> PageState:
    decisions = tuple(PageDecision(index=i, level=0, asked_ms=1_300.0 + i, waited_ms=7.0) for i in range(1, len(chunks)))
    return PageState(
        now_ms=now_ms,
        buffer_s=0.1,
        position_s=0.5,
        first_frame_ms=first_frame_ms,
        average_kbps=1_234.0,
        chunks=chunks,
        stalls=stalls,
        decisions=decisions,
    )


FIRST = chunk(0, 1_000, 1_300)
SECOND = chunk(1, 1_310, 1_900)
STALL = PageStall(start_ms=1_510, end_ms=1_910)


def test_times_count_from_the_first_request_and_startup_is_chunk_0s():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_320, FIRST), now=51.32)
    (row,) = ledger.rows()
    assert isinstance(row, ChunkRow)
    assert (row.request_s, row.first_byte_s, row.end_s) == pytest.approx((0.0, 0.08, 0.3))
    assert row.rebuffer_s == pytest.approx(0.31) and row.qoe == pytest.approx(0.3 - 4.3 * 0.31)
    assert list(ledger.rows()) == []


def test_a_stall_belongs_to_the_chunk_that_ended_it_and_is_told_once():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_320, FIRST), now=51.32)
    assert len(list(ledger.rows())) == 1
    ledger.answered(1, 0.004, "")
    ledger.heard(state(1_950, FIRST, SECOND, stalls=(STALL,)), now=51.95)
    decision, second, stall = ledger.rows()
    assert isinstance(decision, DecisionRow) and (decision.latency_s, decision.policy_s, decision.source) == (0.007, 0.004, "policy")
    assert isinstance(second, ChunkRow) and second.rebuffer_s == pytest.approx(0.4)
    assert isinstance(stall, StallRow) and (stall.start_s, stall.end_s) == pytest.approx((0.51, 0.91))
    assert [each.rebuffer_s for each in ledger.history()] == pytest.approx([0.31, 0.4])


def test_a_chunk_whose_stall_still_lasts_is_told_to_the_policy_and_written_when_it_is_over():
    ledger = Ledger(SESSION)
    open_stall = PageStall(start_ms=1_510, end_ms=None)
    ledger.heard(state(1_906, FIRST, SECOND, stalls=(open_stall,)), now=51.906)
    assert [type(row) for row in ledger.rows()] == [ChunkRow, DecisionRow]
    assert ledger.history()[1].rebuffer_s == pytest.approx(0.396)
    ledger.heard(state(1_950, FIRST, SECOND, stalls=(STALL,)), now=51.95)
    second, stall = ledger.rows()
    assert isinstance(second, ChunkRow) and second.rebuffer_s == pytest.approx(0.4) and isinstance(stall, StallRow)


def test_a_stall_that_is_told_after_its_chunk_was_written_is_in_no_chunk_but_in_the_end():
    """`testbed.abr` finds such a trial invalid by it."""
    ledger = Ledger(SESSION)
    ledger.heard(state(1_906, FIRST, SECOND), now=51.906)
    rows = list(ledger.rows())
    ledger.heard(state(1_950, FIRST, SECOND, stalls=(STALL,)), now=51.95)
    rows += ledger.rows(ended=True)
    assert sum(row.rebuffer_s for row in rows if isinstance(row, ChunkRow) and row.index) == 0
    assert ledger.end("complete", "").rebuffer_s == pytest.approx(0.4)


def test_a_fallback_says_why():
    ledger = Ledger(SESSION)
    ledger.answered(1, None, "late")
    ledger.heard(state(1_950, FIRST, SECOND), now=51.95)
    (decision,) = [row for row in ledger.rows() if isinstance(row, DecisionRow)]
    assert (decision.source, decision.reason, decision.policy_s) == ("fallback", "late", None)


def test_dashjs_own_decision_took_what_the_page_measured():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_950, FIRST, SECOND), now=51.95)
    (decision,) = [row for row in ledger.rows() if isinstance(row, DecisionRow)]
    assert (decision.source, decision.policy_s, decision.latency_s) == ("policy", 0.007, 0.007)


def test_the_end_balances_and_knows_when_it_began_on_the_drivers_clock():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_320, FIRST), now=51.330)
    ledger.heard(state(2_210, FIRST, SECOND, stalls=(STALL,)), now=52.212)  # the quicker message
    end = ledger.end("complete", "")
    assert isinstance(end, PlaybackEndRow)
    assert (end.startup_s, end.rebuffer_s, end.wall_s) == pytest.approx((0.31, 0.4, 1.21))
    assert end.startup_s + end.played_s + end.rebuffer_s + end.hiccup_s == pytest.approx(end.wall_s)
    assert end.hiccup_s == pytest.approx(0.0)
    assert end.began_at_s == pytest.approx(51.002)
    assert end.throughput_bps == 1_234_000


def test_a_playback_that_never_began_has_a_last_row():
    end = Ledger(SESSION).end("browser_crashed", "the browser has ended")
    assert (end.end_reason, end.wall_s, end.began_at_s) == ("browser_crashed", 0.0, None)


def test_what_an_interrupted_playback_left_is_written_at_its_end():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_906, FIRST, SECOND, stalls=(PageStall(start_ms=1_510, end_ms=None),)), now=51.906)
    assert len(list(ledger.rows())) == 2
    second, stall = ledger.rows(ended=True)
    assert isinstance(second, ChunkRow) and isinstance(stall, StallRow) and stall.end_s == pytest.approx(0.906)


def test_the_pause_of_a_full_buffer_is_the_chunks_own():
    ledger = Ledger(SESSION)
    ledger.heard(state(1_950, FIRST, chunk(1, 1_310, 1_900, waited_ms=40.0)), now=51.95)
    assert ledger.history()[1].waited_s == pytest.approx(0.04)
