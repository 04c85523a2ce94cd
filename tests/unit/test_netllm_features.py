"""What the language model is told: finite whatever happened, only of the past, and relative to the ladder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.api import AbrObservation, AbrSession, Chunk, Manifest
from netllm.tasks.abr import AbrTask, choose, session_features
from players.ladders import with_levels
from players.media import synthetic_manifest
from testbed.metrics import chunk_qoe
from tests.unit.tiny_models import a_session, played

TASK = AbrTask()
LADDER = TASK.ladder_bps


@st.composite
def histories(draw):
    session = a_session(draw(st.integers(2, 48)))
    chunks = []
    for index in range(draw(st.integers(1, session.chunks - 1))):
        level = draw(st.integers(0, 5))
        times = st.floats(1e-3, 1e4)
        chunks.append(
            Chunk(
                index,
                level,
                session.video.sizes_bytes[index][level],
                draw(times),
                draw(st.floats(0, 1e4)),
                draw(st.floats(0, 70)),
                draw(st.floats(0, 5)),
            )
        )
    return AbrObservation(session, tuple(chunks), draw(st.floats(0, 70)))


@given(histories())
@settings(max_examples=60, deadline=None)
def test_features_are_finite_and_of_one_shape(observation):
    shapes = {name: values.shape for name, values in newest(AbrObservation(*_plain())).items()}
    for name, values in newest(observation).items():
        assert values.shape == shapes[name], name
        assert np.isfinite(values).all(), name
        assert np.abs(values).max(initial=0) < 1e4, name


def newest(observation):
    """The step that is due."""
    history = observation.history
    found = session_features(TASK, observation.session, history, observation.buffer_s, len(history))
    return {name: values[0] for name, values in found.items()}


def _plain():
    session, history = played(0)
    return session, history[:3], history[2].buffer_s


@pytest.mark.parametrize("chunk", [1, 5, 30])
def test_a_step_depends_on_the_past_only(chunk):
    session, one = played(1)
    other = (*one[:chunk], *played(2)[1][chunk:])
    first, second = (session_features(TASK, session, history) for history in (one, other))
    for name in first:
        np.testing.assert_array_equal(first[name][:chunk], second[name][:chunk], err_msg=name)


@pytest.mark.parametrize("chunk", [1, 2, 9, 47])
def test_a_step_alone_is_the_one_of_the_whole_session(chunk):
    session, history = played(6)
    whole = session_features(TASK, session, history)
    before = history[chunk - 1]
    for name, values in newest(AbrObservation(session, history[:chunk], before.buffer_s - before.waited_s)).items():
        np.testing.assert_allclose(values, whole[name][chunk - 1], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_return_token_is_the_target_less_what_was_reached():
    session, history = played(3)
    wanted = TASK.target_qoe * (session.chunks - 1) - np.cumsum([0.0, *chunk_qoe(history, session.video)[1:-1]])
    np.testing.assert_allclose(session_features(TASK, session, history)["return"][:, 0] * 100, wanted, rtol=1e-5)


def test_an_action_enters_with_the_step_after_it():
    session, history = played(4)
    none_yet = TASK.choices
    assert session_features(TASK, session, history)["action"].tolist() == [none_yet, *(chunk.level for chunk in history[1:-1])]


def test_a_shorter_ladder_masks_what_it_lacks_and_never_chooses_it():
    video = with_levels(synthetic_manifest(), (0, 2, 5))
    history = tuple(Chunk(index, level, video.sizes_bytes[index][level], 1.0, 0.0, 4.0) for index, level in enumerate((0, 1)))
    observation = AbrObservation(AbrSession("x", video, 48), history, 4.0)
    features = newest(observation)
    assert features["allowed"].tolist() == [True, False, True, False, False, True]
    assert features["action"] == 2, "level 1 of three is slot 2"
    assert not features["sizes"][:, [1, 3, 4]].any()
    assert choose(np.array([-3.0, 0.0, -2.0, 0.0, 0.0, -1.0]), observation, TASK) == 2


def test_of_a_longer_ladder_six_levels_are_used_and_the_others_are_told_as_their_neighbours():
    base = synthetic_manifest()
    bitrates = (300_000, 500_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 3_500_000, 4_300_000)
    video = Manifest("eight", base.chunk_s, bitrates, tuple(tuple(bps // 2 for bps in bitrates) for _ in base.sizes_bytes))
    history = tuple(Chunk(index, level, video.sizes_bytes[index][level], 1.0, 0.0, 4.0) for index, level in enumerate((0, 6)))
    observation = AbrObservation(AbrSession("x", video, 48), history, 4.0)
    features = newest(observation)
    assert features["allowed"].all()
    assert features["action"] in (4, 5), "3.5 Mbit/s is told as one of its neighbours"
    assert choose(np.array([-9.0, -9.0, -9.0, -9.0, -9.0, 0.0]), observation, TASK) == 7
    assert choose(np.array([-9.0, 0.0, -9.0, -9.0, -9.0, -9.0]), observation, TASK) == 2
