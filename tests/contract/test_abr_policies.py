"""What every ABR policy promises. The list is read from `controllers/abr/`: a new file is tested as soon as it lies there.

A policy that refuses a kind of session with a `UserError` (a model trained for six levels) is skipped there, with its own reason.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk, Manifest
from controllers.loader import discover, load
from testbed.errors import UserError
from testbed.sim.abr import AbrSimulator, run_session
from tests.abr_cases import observation, session, steady, varied, video
from traces.trace import RateTrace

Make = Callable[..., AbrPolicy]
LADDER = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
STANDARD = replace(video(), bitrates_bps=LADDER, sizes_bytes=tuple(tuple(bps // 2 + 999 * i for bps in LADDER) for i in range(49)))


@cache
def policy_named(name: str) -> AbrPolicy | str:
    """One object for all tests: a policy must be able to start anew. Or the reason why it can't be made here."""
    try:
        return load(name)()
    except UserError as error:
        return str(error)


@pytest.fixture(params=list(discover()))
def policy(request: pytest.FixtureRequest) -> AbrPolicy:
    made = policy_named(request.param)
    return pytest.skip(made) if isinstance(made, str) else made


def playback(chunks: int = 16) -> AbrSession:
    return AbrSession("contract", STANDARD, chunks)


def play(policy: AbrPolicy, trace: RateTrace, session: AbrSession, seed: int = 1) -> list[int]:
    try:
        return [chunk.level for chunk in run_session(trace, session, policy, seed)]
    except UserError as error:
        pytest.skip(f"refuses this session: {error}")


def test_it_says_who_it_is(policy: AbrPolicy) -> None:
    kind = type(policy)
    assert kind.label
    assert re.fullmatch(r"#[0-9a-f]{6}", kind.colour), kind.colour
    assert len(kind.citation) > 10
    assert kind.__doc__


def test_labels_and_colours_differ() -> None:
    factories = [load(name) for name in discover()]
    assert len({factory.label for factory in factories}) == len(factories)
    assert len({factory.colour for factory in factories}) == len(factories)


def test_no_state_outlives_its_session(policy: AbrPolicy) -> None:
    """Sessions in both orders, and again: equal decisions."""
    fast, slow = varied(2.0), varied(0.4)
    first = play(policy, fast, playback()), play(policy, slow, playback())
    second = play(policy, slow, playback()), play(policy, fast, playback())
    assert first == second[::-1]
    assert len(first[0]) == 16


def test_an_aborted_session_leaves_nothing(policy: AbrPolicy) -> None:
    whole = play(policy, varied(), playback(8))
    simulator = AbrSimulator(varied(2.0), playback(8))
    policy.reset(playback(8), 1)
    simulator.step(0)
    for _ in range(3):
        simulator.step(policy.decide(simulator.observation))
    assert play(policy, varied(), playback(8)) == whole


def test_the_seed_decides(policy: AbrPolicy) -> None:
    assert play(policy, varied(), playback(), seed=7) == play(policy, varied(), playback(), seed=7)


@pytest.mark.parametrize("chunks", [2, 3, 7, 48])
def test_sessions_of_any_length(policy: AbrPolicy, chunks: int) -> None:
    levels = play(policy, varied(), playback(chunks))
    assert len(levels) == chunks
    assert all(type(level) is int and 0 <= level < 6 for level in levels)


@pytest.mark.parametrize("chunks", [48, 49])
def test_the_manifest_may_end_with_the_session(policy: AbrPolicy, chunks: int) -> None:
    """Looking ahead stops at the last chunk there is."""
    short = replace(STANDARD, sizes_bytes=STANDARD.sizes_bytes[:chunks])
    assert len(play(policy, varied(), AbrSession("contract", short, chunks))) == chunks


@pytest.mark.parametrize("levels", [1, 2, 3, 10])
@pytest.mark.parametrize("chunk_s", [2.0, 4.0])
def test_other_ladders_and_chunk_lengths(policy: AbrPolicy, levels: int, chunk_s: float) -> None:
    played = play(policy, varied(), session(12, levels, chunk_s))
    assert all(0 <= level < levels for level in played)


@pytest.mark.parametrize("trace", [steady(0.01), steady(500.0), RateTrace("dying", (0.0, 30.0, 2000.0), (5e6, 2e3))], ids=lambda t: t.name)
def test_very_slow_and_very_fast_links(policy: AbrPolicy, trace: RateTrace) -> None:
    assert len(play(policy, trace, playback(8))) == 8


def test_a_small_buffer(policy: AbrPolicy) -> None:
    assert len(play(policy, steady(20.0), replace(playback(12), buffer_cap_s=8.0))) == 12


def test_what_it_is_shown_is_left_alone(policy: AbrPolicy) -> None:
    seen = observation(playback(), [1e6, 2e6, 0.7e6], [0, 2, 1], 7.5)
    before = repr(seen)
    policy.reset(seen.session, 1)
    policy.decide(seen)
    assert repr(seen) == before


def test_two_sessions_at_once_do_not_mix(request: pytest.FixtureRequest) -> None:
    """The decision service makes one object for each session; class attributes and module globals must not join them."""
    for name in discover():
        if isinstance(policy_named(name), str) or name == "netllm":  # netllm: two models in memory are not wanted; tested with the service
            continue
        alone = play(load(name)(), varied(2.0), playback())
        one, other = load(name)(), load(name)()
        simulators = AbrSimulator(varied(2.0), playback()), AbrSimulator(varied(0.4), playback())
        for policy, simulator in zip((one, other), simulators, strict=True):
            policy.reset(playback(), 1)
            simulator.step(0)
        while not simulators[0].done:
            for policy, simulator in zip((one, other), simulators, strict=True):
                simulator.step(policy.decide(simulator.observation))
        assert [chunk.level for chunk in simulators[0].history] == alone, name


@pytest.mark.parametrize("name", [name for name in discover() if name != "netllm"])
@given(data=st.data())
def test_any_observation_gets_a_level(name: str, data: st.DataObject) -> None:
    """Histories that no simulator would make: a player's clock and network can do anything."""
    levels = data.draw(st.integers(2, 7), "levels")
    bitrates_bps = tuple(sorted(data.draw(st.sets(st.integers(1_000, 10**8), min_size=levels, max_size=levels), "bitrates")))
    seen_chunks = data.draw(st.integers(1, 9), "seen")
    left = data.draw(st.integers(1, 8), "left")
    row = st.tuples(*[st.integers(1, 10**9)] * levels)
    sizes_bytes = tuple(data.draw(row) for _ in range(seen_chunks + left))
    any_video = Manifest("any", data.draw(st.floats(0.5, 10.0), "chunk_s"), bitrates_bps, sizes_bytes)
    history = []
    for i in range(seen_chunks):
        level = data.draw(st.integers(0, levels - 1))
        times = [data.draw(st.floats(low, 1e4)) for low in (1e-4, 0.0, 0.0, 0.0)]
        history.append(Chunk(i, level, sizes_bytes[i][level], *times))
    policy = load(name)()
    policy.reset(AbrSession("any", any_video, seen_chunks + left), 1)
    level = policy.decide(AbrObservation(policy.session, tuple(history), data.draw(st.floats(0.0, 200.0), "buffer_s")))
    assert type(level) is int
    assert 0 <= level < levels


@pytest.mark.parametrize("name", list(discover()))
def test_importing_it_brings_neither_torch_nor_mininet(name: str) -> None:
    code = f"import sys, controllers.abr.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "mininet", "players"}
