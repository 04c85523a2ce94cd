"""What every VP policy promises. The list is read from `controllers/vp/`: a new file is tested as soon as it lies there."""

import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controllers.api import VpPolicy, VpSession
from controllers.loader import KINDS, discover, load
from testbed.errors import AnswerError, UserError
from testbed.sim.vp import checked, measure, observations, predict, sessions
from testbed.vp_metrics import error_deg
from tests.vp_cases import observation, windows

NAMES = list(discover(KINDS["vp"].folder))


@cache
def policy_named(name: str) -> VpPolicy | str:
    """One object for all tests: a policy must be able to start anew. Or the reason why it can't be made here."""
    try:
        return load(name, "vp")()
    except UserError as error:
        return str(error)


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest) -> VpPolicy:
    made = policy_named(request.param)
    return pytest.skip(made) if isinstance(made, str) else made


def test_the_folder_holds_what_the_testbed_ships() -> None:
    assert {"static", "linear_regression", "velocity", "damped_velocity", "linear_l1", "mlp", "track", "netllm"} <= set(NAMES)


def test_it_says_who_it_is(policy: VpPolicy) -> None:
    kind = type(policy)
    assert kind.label
    assert re.fullmatch(r"#[0-9a-f]{6}", kind.colour), kind.colour
    assert len(kind.citation) > 10
    assert kind.__doc__


def test_labels_and_colours_differ() -> None:
    factories = [load(name, "vp") for name in NAMES]
    assert len({factory.label for factory in factories}) == len(factories)
    assert len({factory.colour for factory in factories}) == len(factories)


def test_no_state_outlives_its_session(policy: VpPolicy) -> None:
    """Viewings in both orders, and again: equal answers."""
    known = windows()
    viewings = list(sessions(known))

    def answers(order: list) -> dict[str, np.ndarray]:
        found = {}
        for rows, session in order:
            policy.reset(session, 1)
            found[session.session_id] = np.stack([policy.decide(each) for each in observations(known, rows, session)])
        return found

    there, back, again = answers(viewings), answers(viewings[::-1]), answers(viewings)
    for name in there:
        np.testing.assert_array_equal(there[name], back[name])
        np.testing.assert_array_equal(there[name], again[name])


def test_an_aborted_session_leaves_nothing(policy: VpPolicy) -> None:
    known = windows()
    whole = predict(policy, known)
    (rows, session), *_ = list(sessions(known))[::-1]
    policy.reset(session, 9)
    policy.decide(observations(known, rows, session)[0])
    np.testing.assert_array_equal(predict(policy, known), whole)


def test_many_at_once_are_as_one_by_one(policy: VpPolicy) -> None:
    known = windows()
    for rows, session in sessions(known):
        seen = observations(known, rows, session)
        policy.reset(session, 1)
        together = policy.decide_all(seen)
        policy.reset(session, 1)
        rounding_deg = 0.3 if type(policy).__module__.endswith("netllm") else 1e-3  # bfloat16 rounds otherwise in other batches
        np.testing.assert_allclose(together, [policy.decide(each) for each in seen], atol=rounding_deg)


@pytest.mark.parametrize("history", [1, 2, 3, 9, 10, 11, 40])
@pytest.mark.parametrize("horizon", [1, 20, 30])
def test_any_length_of_history_and_horizon(policy: VpPolicy, history: int, horizon: int) -> None:
    rng = np.random.default_rng(history)
    seen = observation(rng.uniform(-80, 80, (history, 3)), horizon)
    policy.reset(seen.session, 1)
    answer = policy.decide(seen)
    assert answer.shape == (horizon, 3)
    assert np.isfinite(answer).all()


@pytest.mark.parametrize("name", NAMES)
@given(
    history=arrays(float, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-1, 1)),
    horizon=st.integers(1, 30),
)
def test_any_observation_gets_finite_degrees(name: str, history: np.ndarray, horizon: int) -> None:
    """Within ten turns a sample: as far as an angle can be extrapolated that jumps by one turn."""
    policy, seen = policy_named(name), observation(history * [180, 90, 180], horizon)
    if isinstance(policy, str):
        pytest.skip(policy)
    policy.reset(seen.session, 1)
    answer = policy.decide(seen)
    assert answer.shape == (horizon, 3)
    assert (np.abs(answer) <= 360 * horizon + 180).all()


@pytest.mark.parametrize("yaw_deg", [-179.0, -60.0, 0.0, 90.0, 179.0])
def test_a_head_at_rest_is_thought_to_stay_about_there(policy: VpPolicy, yaw_deg: float) -> None:
    """Learned policies may expect it to turn to the front, by some degrees."""
    seen = observation([[3.0, -2.0, yaw_deg]] * 10)
    policy.reset(seen.session, 1)
    off_deg = error_deg(policy.decide(seen), [3.0, -2.0, yaw_deg])
    assert off_deg[0].max() < 5
    assert off_deg.max() < 40


def test_what_it_is_shown_is_left_alone(policy: VpPolicy) -> None:
    seen = observation(np.linspace(-20, 20, 30).reshape(10, 3))
    before = seen.history_deg.copy()
    seen.history_deg.setflags(write=False)
    policy.reset(seen.session, 1)
    answer = policy.decide(seen)
    answer += 1.0  # what it answered is the caller's
    np.testing.assert_array_equal(seen.history_deg, before)


@pytest.mark.parametrize("name", NAMES)
def test_importing_it_brings_neither_torch_nor_mininet(name: str) -> None:
    code = f"import sys, controllers.vp.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "mininet", "players"}


MINE = '''
import numpy as np
from controllers.api import AbrPolicy, VpObservation, VpPolicy


class Ahead(VpPolicy):
    """A fixed step to the right."""

    def __init__(self, step_deg: float = 1.0) -> None:
        self.step_deg = step_deg

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        steps = np.arange(1, observation.session.horizon + 1)[:, None]
        return observation.history_deg[-1] + steps * [0.0, 0.0, self.step_deg]
'''


def test_a_users_own_file_works_like_any_other(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    factory = load(f"{tmp_path / 'mine.py'}+step_deg=0", "vp")
    assert factory.name == "mine+step_deg=0"
    np.testing.assert_array_equal(predict(factory(), windows()), predict(load("static", "vp")(), windows()))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("bba", "policy 'bba' is unknown, wanted one of damped_velocity"),
        ("statik", "did you mean static?"),
        ("damped_velocity+decay=2", "policy damped_velocity: decay is 2, wanted 0"),
        ("velocity+unwrap=maybe", "option 'unwrap' is 'maybe', wanted true or false"),
        ("nowhere.py", "nowhere.py does not exist, wanted a Python file with a VpPolicy"),
        ("controllers.abr.bba:BBA", "has no VpPolicy 'BBA', wanted a class that extends controllers.api.VpPolicy and defines decide"),
    ],
)
def test_a_reference_that_names_none_is_told(reference: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(reference, "vp")()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("np.zeros((3, 3))", "answered numbers of shape (3, 3), wanted (20, 3)"),
        ("np.full((20, 3), np.nan)", "answered a number that is not finite"),
        ("'ahead'", "wanted numbers of shape (20, 3)"),
    ],
)
def test_an_answer_that_is_none_is_told(tmp_path, answer: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(MINE.partition("        steps")[0] + f"        return {answer}\n")
    with pytest.raises(ValueError) as caught:
        measure(load(str(tmp_path / "mine.py"), "vp")(), windows())
    assert said in str(caught.value)


def test_an_answer_whose_conversion_raises_is_told() -> None:
    class Lazy:
        """A tensor that requires grad raises so, too."""

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise RuntimeError("call\ndetach first")

    with pytest.raises(AnswerError, match=r"answered .*Lazy.* \(RuntimeError: call detach first\), wanted numbers of shape \(20, 3\)$"):
        checked([Lazy()], 1, 20)


def test_chance_comes_from_the_session_s_own_generator() -> None:
    class Guess(VpPolicy):
        """Anywhere."""

        def decide(self, observation):  # type: ignore[no-untyped-def]
            return self.rng.uniform(-180, 180, (observation.session.horizon, 3))

    first, again, other = predict(Guess(), windows(), 1), predict(Guess(), windows(), 1), predict(Guess(), windows(), 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    one, two = (rows.start for rows, _ in list(sessions(windows()))[:2])
    assert (first[one] != first[two]).all()
    assert VpSession("x", 1).rate_hz == 5.0
