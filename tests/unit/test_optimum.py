"""The offline optimum: an upper line for every policy, at the edges too, and found once."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.api import AbrSession
from controllers.loader import load
from testbed.errors import UserError
from testbed.metrics import REBUF_PENALTY, summarise
from testbed.sim import kept
from testbed.sim.abr import AbrSimulator, run_session
from testbed.sim.batch import AbrBatch, Traces
from testbed.sim.compiled import compiled
from testbed.sim.kept import kept_optimum
from testbed.sim.optimum import best_playback, offline_optimum
from tests.abr_cases import session, steady, varied, video
from traces.trace import OpportunityTrace, RateTrace, Trace

POLICIES = {name: load(name) for name in ("bba", "bola", "rate", "fixed+level=0", "fixed+level=5")}
GUESSES = 200
SLOWEST_BPS = 1e3


@st.composite
def wild_traces(draw: st.DrawFn) -> RateTrace:
    """Up to half an hour with outages and jumps by orders of magnitude."""
    count = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    edges_s = np.cumsum(rng.exponential(draw(st.floats(0.2, 40)), count) + 0.01)
    rates_bps = 10 ** rng.uniform(4.5, 7.5, count) * (rng.random(count) < 0.9)
    rates_bps[0] = max(rates_bps[0], 1e6)
    return RateTrace("wild", (0.0, *edges_s.tolist()), tuple(rates_bps.tolist()))


def score(trace: Trace, playback: AbrSession, levels: tuple[int, ...], offset_s: float = 0.0) -> float:
    simulator = AbrSimulator(trace, playback, offset_s)
    for level in levels:
        simulator.step(level)
    return summarise(simulator.history, playback.video).qoe


def best_guess(trace: Trace, playback: AbrSession, offset_s: float, seed: int) -> float:
    """The best of many random walks on the ladder."""
    rng = np.random.default_rng(seed)
    mbps = np.array(playback.video.bitrates_bps) / 1e6
    batch = AbrBatch(Traces([trace]), playback, np.zeros(GUESSES, np.int64), offset_s)
    level, total = np.zeros(GUESSES, np.int64), np.zeros(GUESSES)
    batch.step(level)
    while not batch.done:
        before, level = level, np.clip(level + rng.integers(-1, 2, GUESSES), 0, len(mbps) - 1)
        total += mbps[level] - REBUF_PENALTY * batch.step(level).rebuffer_s - np.abs(mbps[level] - mbps[before])
    return float(total.max()) / (playback.chunks - 1)


@settings(max_examples=20)
@given(trace=wild_traces(), offset_s=st.floats(0, 2000), chunks=st.integers(2, 48), rtt_s=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_no_simulated_trial_exceeds_the_optimum(trace, offset_s, chunks, rtt_s, seed):
    playback = AbrSession("any", video(), chunks, rtt_s=rtt_s)
    found = best_playback(trace, playback, offset_s)
    assert score(trace, playback, found.levels, offset_s) == pytest.approx(found.qoe, abs=1e-9)
    for name, policy in POLICIES.items():
        played = run_session(trace, playback, policy(), seed, offset_s)
        assert summarise(played, playback.video).qoe <= found.qoe + 1e-9, name
    assert best_guess(trace, playback, offset_s, seed) <= found.qoe + 1e-9


def test_two_chunks_are_one_choice():
    playback = session(2)
    for trace in (steady(0.4), steady(8.0), varied()):
        best = max(score(trace, playback, (0, level)) for level in range(6))
        assert offline_optimum(trace, playback) == pytest.approx(best, abs=1e-9)


def test_a_ladder_of_one_level_leaves_no_choice():
    playback = session(20, levels=1)
    found = best_playback(varied(), playback)
    assert found.levels == (0,) * 20
    assert found.qoe == pytest.approx(score(varied(), playback, (0,) * 20), abs=1e-12)


def test_ten_levels():
    playback = session(5, levels=10)
    trace = varied(4.0)
    best = max(score(trace, playback, (0, *levels)) for levels in product(range(10), repeat=4) if max(levels) - min(levels) < 5)
    assert best - 1e-9 <= offline_optimum(trace, playback) <= best + 0.01
    assert max(best_playback(steady(200.0), session(12, levels=10)).levels) == 9


def test_a_fast_link_leaves_only_the_climb():
    found = best_playback(steady(900.0), session())
    assert found.levels[0] == 0 and all(b >= a for a, b in pairwise(found.levels)) and found.levels[-1] == 5


def test_the_slowest_trace_there_is_ends_at_once_at_the_lowest_level():
    """A chunk takes twenty minutes: without giving up what can't win any more, millions of states would be kept."""
    assert best_playback(steady(SLOWEST_BPS / 1e6), session()).levels == (0,) * 48
    burst = RateTrace("burst", (0.0, 300.0, 301.0), (0.0, 1e8))
    assert offline_optimum(burst, session()) == pytest.approx(score(burst, session(), best_playback(burst, session()).levels))


def test_a_trace_that_never_delivers_is_no_trace():
    with pytest.raises(UserError, match="every rate is 0 bit/s"):
        RateTrace("outage", (0.0, 10.0), (0.0,))


def test_a_session_of_one_chunk_has_no_optimum():
    with pytest.raises(ValueError, match="a session of 1 chunks has nothing to rate"):
        offline_optimum(steady(1.0), session(1))


def test_delivery_opportunities_have_an_optimum():
    trace = OpportunityTrace("t", tuple(0.004 * i for i in range(1, 2001)))
    found = best_playback(trace, session(10), 3.0)
    assert score(trace, session(10), found.levels, 3.0) == pytest.approx(found.qoe, abs=1e-9)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "optimum"


@pytest.fixture
def searches(monkeypatch):
    """How often the optimum was searched for."""
    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return best_playback(*arguments)

    monkeypatch.setattr(kept, "best_playback", counted)
    return asked


def test_an_optimum_is_searched_for_once(cache, searches):
    first = kept_optimum(varied(), session(8), 5.0)
    assert first == best_playback(varied(), session(8), 5.0) == kept_optimum(varied(), session(8), 5.0)
    assert kept_optimum(varied(), AbrSession("another name", session(8).video, 8), 5.0 + varied().duration_s) == first
    assert len(searches) == 1 and len(list(cache.iterdir())) == 1


def test_whatever_changes_an_optimum_is_another_one(cache, searches):
    video_ = session().video
    asked = [
        (varied(), session(8), 0.0),
        (varied(1.1), session(8), 0.0),
        (varied(), session(9), 0.0),
        (varied(), session(8), 1.0),
        (varied(), session(8, levels=5), 0.0),
        (varied(), AbrSession("rtt", video_, 8, rtt_s=0.1), 0.0),
        (varied(), AbrSession("cap", video_, 8, buffer_cap_s=20.0), 0.0),
        (varied(), AbrSession("first", video_, 8, first_level=1), 0.0),
        (varied(), session(8), 0.0, 0.1),
    ]
    for _ in range(2):
        for arguments in asked:
            kept_optimum(*arguments)
    assert len(searches) == len(asked)


def test_other_code_forgets_what_is_kept(cache, searches, monkeypatch):
    kept_optimum(varied(), session(4))
    monkeypatch.setattr(kept, "_code", lambda: "other code")
    kept_optimum(varied(), session(4))
    assert len(searches) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b'{"qoe":1.0', b'{"qoe":"x","levels":[0]}', b'{"qoe":1.0,"levels":[0,0,0,9]}', b'{"qoe":1.0,"levels":[0]}', b"SWAP"],
)
def test_a_damaged_entry_is_made_anew(cache, searches, content):
    whole = kept_optimum(steady(2.0), session(4))
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(good.replace(b'"qoe":', b'"qoe":1') if content == b"SWAP" else content)
    assert kept_optimum(steady(2.0), session(4)) == whole
    assert entry.read_bytes() == good and len(searches) == 2


def test_an_interruption_leaves_nothing_half_written(cache, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept_optimum(steady(2.0), session(4))
    assert list(cache.iterdir()) == []


def test_a_cache_that_can_not_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "file"))
    assert kept_optimum(steady(2.0), session(4)) == best_playback(steady(2.0), session(4))


def test_who_owns_no_folder_compiles_anew(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    assert compiled(plus_one)(1) == 2


def plus_one(x):
    return x + 1
