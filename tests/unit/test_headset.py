"""Tiled video: what is in view, which tiles are fetched, when it plays; and the headset player against a real origin and controller."""

import asyncio
import contextlib
import re
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from controllers import protocol_vp
from controllers.api import VpPolicy, VpSession
from controllers.dialects import DIALECTS
from controllers.protocol import Refusal
from controllers.server import application as controller_application
from controllers.sessions import Sessions
from players import origin
from players.config import HeadsetConfig, OriginConfig
from players.headset import brought_up, check_fits, view
from players.tiles import BITRATES_BPS, check_tiled, synthetic_tiles
from players.viewing import Viewing
from players.viewport import plan, shares_in_view
from testbed.errors import UserError
from testbed.metrics import qoe_lin
from testbed.records_vp import HeadRow, PredictionRow, SegmentRow, ViewingEndRow
from tests.unit.loopback import listening
from tests.unit.schedstat import Kernel

VIDEO = synthetic_tiles(12)
SHORT = replace(
    VIDEO, name="short", segment_s=0.2, sizes_bytes=tuple(tuple(tuple(s // 5 for s in t) for t in each) for each in VIDEO.sizes_bytes)
)


# What is in view


@given(st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180)))
def test_a_viewport_is_shared_out_among_the_tiles(angles_deg):
    (shares,) = shares_in_view(np.array([angles_deg]), 4, 8)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()


def test_a_viewer_sees_what_is_before_the_eyes():
    """Looking to the front of Jin2022 (yaw 90), level: columns 3 and 4 of 8 around longitude 0, rows 1 and 2 of 4."""
    (ahead,) = shares_in_view(np.array([[0.0, 0.0, 90.0]]), 4, 8)
    grid = ahead.reshape(4, 8)
    assert grid[1:3, 3:5].sum() > 0.6 and grid[:, [0, 7]].sum() == 0
    np.testing.assert_allclose(grid[:, 3], grid[:, 4], atol=0.05)
    (up,) = shares_in_view(np.array([[40.0, 0.0, 90.0]]), 4, 8)
    assert up.reshape(4, 8)[:2].sum() > 0.9, "roll is how high one looks there"
    turned = shares_in_view(np.array([[0.0, 0.0, 45.0]]), 4, 8)[0].reshape(4, 8)
    np.testing.assert_allclose(turned, np.roll(grid, 1 if turned[1, 5] > turned[1, 2] else -1, axis=1), atol=0.05)


# Which tiles to fetch


def shares_of(*tiles):
    shares = np.zeros(VIDEO.tiles)
    shares[list(tiles)] = 1 / len(tiles)
    return shares


@given(budget=st.floats(0, 3e6), seed=st.integers(0, 99))
def test_a_plan_keeps_to_the_budget_and_names_each_tile_once(budget, seed):
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0, 1, VIDEO.tiles) * (rng.random(VIDEO.tiles) < 0.3)
    chosen = plan(VIDEO, 3, shares, budget)
    assert sorted(chosen.order) == list(range(VIDEO.tiles))
    sizes = VIDEO.sizes_bytes[3]
    least = sum(each[0] for each in sizes)
    assert sum(sizes[tile][level] for tile, level in enumerate(chosen.levels)) <= max(budget, least)
    assert all(level == 0 for tile, level in enumerate(chosen.levels) if shares[tile] == 0)


def test_what_is_expected_in_view_is_raised_and_sent_first():
    shares = shares_of(11, 12)
    shares[19] = 0.01
    assert plan(VIDEO, 0, shares, 0).levels == (0,) * VIDEO.tiles
    some = plan(VIDEO, 0, shares, 1.3 * sum(each[0] for each in VIDEO.sizes_bytes[0]))
    assert set(some.order[:3]) == {11, 12, 19} and some.order[2] == 19
    assert some.levels[11] >= some.levels[12] >= some.levels[19] and some.levels[11] > 0
    rich = plan(VIDEO, 0, shares, 1e9)
    assert [rich.levels[tile] for tile in (11, 12, 19)] == [3, 3, 3] and sum(rich.levels) == 9


def test_the_manifest_is_whole_and_equal_everywhere():
    check_tiled(VIDEO)
    video = synthetic_tiles()
    mean = [np.mean([sum(tile[level] for tile in segment) for segment in video.sizes_bytes]) * 8 for level in range(4)]
    np.testing.assert_allclose(mean, BITRATES_BPS, rtol=0.03)
    assert video.sizes_bytes[0][0][0] == synthetic_tiles(60).sizes_bytes[0][0][0]
    with pytest.raises(UserError, match="segment 0 is broken, wanted 32 tiles"):
        check_tiled(replace(video, sizes_bytes=(video.sizes_bytes[0][:-1],)))
    with pytest.raises(UserError, match="bitrates_bps is"):
        check_tiled(replace(video, bitrates_bps=(2, 1)))


# When it plays, and what is seen

AHEAD = np.tile([0.0, 0.0, 90.0], (60, 1))


def fetched(view_, segment, at_s, level=1, late=(), late_s=0.0):
    chosen = plan(VIDEO, segment, shares_in_view(AHEAD[:1], 4, 8)[0], 0)
    view_.fetch(segment, replace(chosen, levels=(level,) * VIDEO.tiles))
    for tile in range(VIDEO.tiles):
        view_.arrived(segment, tile, late_s if tile in late else at_s)


def test_segments_follow_each_other_and_a_missing_one_stalls():
    viewing = Viewing(VIDEO, AHEAD, 5.0, 3)
    viewing.begin(100.0)
    assert viewing.media_s(100.5) == 0
    fetched(viewing, 0, 100.5)
    fetched(viewing, 1, 101.0)
    assert viewing.media_s(101.0) == pytest.approx(0.5) and viewing.media_s(102.0) == pytest.approx(1.5)
    assert viewing.media_s(104.0) == pytest.approx(2.0), "it stands at the end of what is there"
    fetched(viewing, 2, 104.5)
    assert viewing.media_s(105.0) == pytest.approx(2.5) and viewing.over(2, 105.5) and not viewing.over(2, 105.4)
    seen = [viewing.seen(i) for i in range(3)]
    assert [each.rebuffer_s for each in seen] == pytest.approx([0.5, 0.0, 2.0])
    assert viewing.end_s(2) == pytest.approx(105.5)
    assert all(each.quality_bps == pytest.approx(BITRATES_BPS[1]) and each.blank_share == 0 for each in seen)


def test_tiles_that_come_late_are_blank_until_then_and_unseen_ones_are_wasted():
    """The head turns away from the front after the segment has begun: tiles behind come only at 0.5 s."""
    angles = AHEAD.copy()
    angles[1:5, 2] = -90.0
    viewing = Viewing(VIDEO, angles, 5.0, 1)
    viewing.begin(0.0)
    behind = set(np.flatnonzero(shares_in_view(angles[1:2], 4, 8)[0] > 0)) - set(np.flatnonzero(shares_in_view(angles[:1], 4, 8)[0] > 0))
    fetched(viewing, 0, 0.1, level=2, late=behind, late_s=0.6)
    assert viewing.over(0, 1.1)
    seen = viewing.seen(0)
    assert seen.start_s == pytest.approx(0.1)
    away = seen.blank_of_sample[1]
    assert away > 0.9 and seen.blank_of_sample == pytest.approx((0, away, away, 0, 0), abs=1e-9)
    assert seen.quality_bps == pytest.approx(BITRATES_BPS[2] * (1 - seen.blank_share))
    assert seen.size_bytes == sum(tile[2] for tile in VIDEO.sizes_bytes[0])
    in_view = (shares_in_view(angles[:5], 4, 8) > 0).any(axis=0)
    assert seen.wasted_bytes == sum(tile[2] for tile, looked in zip(VIDEO.sizes_bytes[0], in_view, strict=True) if not looked) > 0


# Messages

SESSION = VpSession("v1", 20, front_deg=90.0)


def test_a_question_becomes_the_observation_and_an_answer_the_prediction():
    question = protocol_vp.DecideVp(deadline_s=1.0, times_s=[0.0, 0.2], history_deg=[(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)])
    seen = protocol_vp.observation(SESSION, protocol_vp.decode_decide(msgspec.json.encode(question)))
    assert seen.history_deg.tolist() == [[1, 2, 3], [4, 5, 6]] and seen.times_s.tolist() == [0.0, 0.2]
    answer = protocol_vp.answer(np.ones((20, 3)), seen, 0.01)
    assert protocol_vp.decode_answer(msgspec.json.encode(answer), SESSION) == answer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history_deg": []}, "history_deg is 0, wanted 1 to"),
        ({"times_s": [0.0]}, "times_s is 1, wanted 2 times"),
        ({"times_s": [0.2, 0.2]}, "rising times"),
        ({"history_deg": [(0.0, 0.0, 181.0), (0.0, 0.0, 0.0)]}, r"history_deg\[0\]"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"version": 2}, "version is 2"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(change, said):
    good = {"version": 1, "deadline_s": 1.0, "times_s": [0.0, 0.2], "history_deg": [(0.0, 0.0, 0.0)] * 2}
    with pytest.raises(Refusal) as caught:
        protocol_vp.decode_decide(msgspec.json.encode(good | change))
    assert re.search(said, caught.value.message)


@pytest.mark.parametrize("answer", [np.zeros((19, 3)), np.full((20, 3), np.nan), "ahead", None])
def test_an_answer_that_is_none_is_refused(answer):
    seen = protocol_vp.observation(SESSION, protocol_vp.DecideVp(deadline_s=1, times_s=[0.0], history_deg=[(0.0, 0.0, 0.0)]))
    with pytest.raises(Refusal) as caught:
        protocol_vp.answer(answer, seen, 0.0)
    assert caught.value.code == "invalid"


class Lazy:
    """Numbers whose conversion raises, as that of a tensor that requires grad does."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("call\ndetach first")


def test_an_answer_whose_conversion_raises_is_refused_in_one_sentence():
    seen = protocol_vp.observation(SESSION, protocol_vp.DecideVp(deadline_s=1, times_s=[0.0], history_deg=[(0.0, 0.0, 0.0)]))
    with pytest.raises(Refusal) as caught:
        protocol_vp.answer(Lazy(), seen, 0.0)
    assert caught.value.code == "invalid"
    assert re.search(r"answered .*Lazy.* \(RuntimeError: call detach first\), wanted 20 samples of 3 finite degrees$", caught.value.message)


# The player


class Ahead(VpPolicy):
    """The head stays; remembers what it was told."""

    seen: list

    def reset(self, session, seed):
        super().reset(session, seed)
        Ahead.seen = []

    def decide(self, observation):
        Ahead.seen.append(observation)
        return np.repeat(observation.history_deg[-1:], observation.session.horizon, axis=0)


class Broken(VpPolicy):
    """Answers nothing of use."""

    def decide(self, observation):
        return np.zeros((2, 3))


CONFIG = HeadsetConfig(
    trial_id="v0",
    origin_url="",
    controller_url="http://127.0.0.1:9",
    policy="ahead",
    seed=1,
    video="short",
    chunks=8,
    retry_s=0.01,
    angles_deg=tuple((0.0, 0.0, 90.0 + 3 * i) for i in range(8)),
    rate_hz=5.0,
    front_deg=90.0,
    buffer_cap_s=0.4,
)


@contextlib.asynccontextmanager
async def controller(policy):
    sessions = Sessions(10, 100.0, DIALECTS["vp"])
    await sessions.preload("ahead", lambda _: policy)
    async with listening(controller_application(sessions)) as url:
        yield url
    sessions.shutdown()


async def viewed(policy=Ahead, **changes):
    rows = []
    async with listening(origin.application(OriginConfig(host="", videos=(), tiled=(SHORT,)))) as origin_url, controller(policy) as url:
        settings = {"origin_url": origin_url, "controller_url": url, **changes}
        await view(msgspec.structs.replace(CONFIG, **settings), rows.append)
    return rows


def of(rows, kind):
    return [row for row in rows if isinstance(row, kind)]


def test_a_viewing_plays_all_segments_and_asks_for_each(capfd):
    rows = asyncio.run(viewed())
    segments, asked, (end,) = of(rows, SegmentRow), of(rows, PredictionRow), of(rows, ViewingEndRow)
    assert [row.index for row in segments] == list(range(8)) == [row.segment for row in asked]
    assert end.end_reason == "complete"
    assert end.startup_s + end.played_s + end.rebuffer_s == pytest.approx(end.wall_s, abs=0.01)
    assert set(segments[0].levels) == {"0"}, "nothing is known of the network yet"
    assert max(map(max, (row.levels for row in segments[2:]))) == "3", "loopback carries the highest level"
    assert all(row.blank_share == 0 for row in segments)
    assert segments[3].qoe == pytest.approx(qoe_lin(segments[3].quality_bps, segments[3].rebuffer_s, segments[2].quality_bps))
    assert all(row.source == "policy" and row.latency_s >= row.policy_s for row in asked)
    assert asked[0].media_s == 0 and asked[0].mae_deg == pytest.approx(np.mean([3 * i for i in range(1, 8)]) / 3)
    assert len(of(rows, HeadRow)) == 8
    assert [len(seen.history_deg) for seen in Ahead.seen][-1] > 1 and Ahead.seen[0].session.front_deg == 90.0
    assert "GET" not in capfd.readouterr().err


def test_what_a_headset_waits_for_a_core_is_told(tmp_path, monkeypatch):
    """A long wait: it counts whether the answer comes while a segment is awaited or before."""
    kernel = Kernel(tmp_path, monkeypatch)

    class Starving(Ahead):
        """While it decides, the headset waits for a core."""

        def decide(self, observation):
            kernel.wait(150)
            return super().decide(observation)

    (end,) = of(asyncio.run(viewed(Starving)), ViewingEndRow)
    assert end.waited_for_core_s == pytest.approx(8 * 0.15)


def test_the_prediction_decides_which_tiles_are_high():
    class Behind(Ahead):
        """Thinks of a fast turn that never comes: later samples stay wrong when the error at an earlier one is taken off."""

        def decide(self, observation):
            turn_deg = 80.0 * np.arange(1, observation.session.horizon + 1)
            return super().decide(observation) + turn_deg[:, None] * np.array([0.0, 0.0, 1.0])

    good, bad = (asyncio.run(viewed(policy, angles_deg=((0.0, 0.0, 90.0),) * 8)) for policy in (Ahead, Behind))
    quality = [np.mean([row.quality_bps for row in of(rows, SegmentRow)[2:]]) for rows in (good, bad)]
    assert quality[0] > 5 * quality[1]
    wasted = [sum(row.wasted_bytes for row in of(rows, SegmentRow)) for rows in (good, bad)]
    assert wasted[1] > 2 * wasted[0]


class Slow(Ahead):
    """Takes its time."""

    def decide(self, observation):
        time.sleep(0.06)
        return super().decide(observation)


def narrow(monkeypatch):
    """An origin that sends a kilobyte each 17 ms: a segment at the lowest level takes a little longer than it lasts."""
    write = web.StreamResponse.write

    async def paced(response, piece):
        await asyncio.sleep(0.017)
        await write(response, piece)

    monkeypatch.setattr(origin, "PATTERN", b"x" * 1024)
    monkeypatch.setattr(web.StreamResponse, "write", paced)


@pytest.mark.parametrize("link", ["fast", "narrow"])
def test_a_prediction_is_asked_for_ahead_of_the_request(link, monkeypatch):
    """By what the last ones took, whether a full buffer or the segment before holds the request back."""
    if link == "narrow":
        narrow(monkeypatch)
    rows = asyncio.run(viewed(Slow))
    segments, asked = of(rows, SegmentRow), of(rows, PredictionRow)
    assert [row.segment for row in asked] == list(range(8)) and of(rows, ViewingEndRow)[0].end_reason == "complete"
    ahead_s = [segment.request_s - question.at_s for segment, question in zip(segments, asked, strict=True)]
    idle_s = [segment.request_s - before.end_s for segment, before in zip(segments[1:], segments, strict=False)]
    assert all(each >= 0.06 for each in ahead_s[1:]), "the answer was there (time counts from the first request)"
    if link == "narrow":
        assert np.median(idle_s[2:]) < 0.03, "the link waits for no answer, once it is known how long one takes"
    else:
        assert np.median(np.diff([row.request_s for row in segments[3:]])) == pytest.approx(0.2, abs=0.03)


def test_a_prediction_is_brought_up_to_what_was_seen_since():
    seen_deg = np.array([[0.0, 0.0, yaw] for yaw in (170.0, 175.0, -178.0, -170.0)])
    predicted_deg = np.array([[1.0, 0.0, yaw] for yaw in (174.0, 178.0, 182.0)])
    same_deg, newest = brought_up(predicted_deg, 1, seen_deg, 1)
    assert newest == 1 and same_deg is predicted_deg, "nothing came meanwhile"
    moved_deg, newest = brought_up(predicted_deg, 1, seen_deg, 2)
    assert newest == 2
    assert moved_deg == pytest.approx(np.array([[0.0, 0.0, 186.0], [0.0, 0.0, 190.0]])), "174 was predicted, 182 it was: 8 more"
    moved_deg, newest = brought_up(predicted_deg, 0, seen_deg, 3)
    assert newest == 2 and len(moved_deg) == 1, "of a prediction that is over its last sample is kept"


@pytest.mark.parametrize(("policy", "url", "reason"), [(Broken, None, "invalid"), (Ahead, "http://127.0.0.1:9", "unreachable")])
def test_without_a_valid_prediction_the_head_is_thought_to_stay(policy, url, reason):
    rows = asyncio.run(viewed(policy, **({"controller_url": url} if url else {})))
    asked = of(rows, PredictionRow)
    assert {(row.source, row.reason, row.policy_s) for row in asked} == {("fallback", reason, None)}
    assert of(rows, ViewingEndRow)[0].end_reason == "complete"


def test_an_origin_without_the_video_ends_it():
    (end,) = asyncio.run(viewed(video="other"))
    assert end.end_reason == "origin_error" and "no tiled video 'other'" in end.detail


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("short/tiles/99/0.0", "no segment 99, wanted 0 to 11"),
        ("short/tiles/0/32.0", "no tile '32.0', wanted tiles 0 to 31, each once, at levels 0 to 3"),
        ("short/tiles/0/1.4", "no tile '1.4'"),
        ("short/tiles/0/1.0,1.1", "no tile '1.1'"),
        ("short/tiles/0/1", "no tile '1'"),
    ],
)
def test_the_origin_refuses_what_the_manifest_lacks(path, said):
    async def asked():
        config = OriginConfig(host="", videos=(), tiled=(SHORT,))
        async with listening(origin.application(config)) as url, ClientSession() as http, http.get(f"{url}/{path}") as response:
            return response.status, await response.text()

    status, text = asyncio.run(asked())
    assert status == 404 and said in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chunks": 13}, "chunks is 13, wanted 1 to the video's 12 segments"),
        ({"angles_deg": ((0.0, 0.0, 0.0),)}, "there are 1 samples of head movement, wanted at least 8"),
        ({"rate_hz": 7.0}, "a segment has 1.4 samples"),
    ],
)
def test_a_config_that_does_not_fit_is_told(change, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        check_fits(msgspec.structs.replace(CONFIG, **change), SHORT)
