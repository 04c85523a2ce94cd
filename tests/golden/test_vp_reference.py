"""Our reader, windows, metric and closed-form predictors reproduce what NetLLM's code scores on Jin2022, and show where we differ.

Reference values were computed with NetLLM's own `compute_mae`, `LinearRegression` and `VelocityMethod` (each window by itself), outside
this project, to two digits. The bars of NetLLM's figure 1 read 18.84 to 18.89 (LR) and 16.99 to 17.04 (Velocity); those of figure 2 for
4 s to 6 s read 22.06 and 18.8.
"""

import re
from functools import cache

import numpy as np
import pytest

from controllers.loader import load
from controllers.weights import VP_SHIPPED, read_story
from testbed.errors import UserError
from testbed.sim.vp import WindowErrors, measure
from traces.catalog import load_catalog
from traces.viewport_splits import SPLITS, load_split, refuse_leaks
from traces.viewports import HeadMovement, gaze, tilt_deg
from traces.windows import RULES, Windows, cut

TOLERANCE_DEG = 0.01


@cache
def viewings(split: str) -> tuple[HeadMovement, ...]:
    try:
        return load_split(split, fetch=False)
    except UserError as error:
        pytest.skip(str(error))


@cache
def windows(rule: str, history_s: float = 2.0, horizon_s: float = 4.0, split: str = "test") -> Windows:
    return cut(viewings(split), RULES[rule], history_s, horizon_s)


@cache
def errors(policy: str, rule: str, history_s: float = 2.0, horizon_s: float = 4.0) -> WindowErrors:
    return measure(load(policy, "vp")(), windows(rule, history_s, horizon_s))


@pytest.mark.parametrize(("split", "code", "figures"), [("train", 8820, 10080), ("valid", 1754, 2006), ("test", 1698, 1950)])
def test_there_are_as_many_windows_as_in_the_published_code(split, code, figures):
    assert (len(windows("code", split=split)), len(windows("figures", split=split))) == (code, figures)
    assert len(windows("code", split=split).viewings()) == len(viewings(split)) == {"train": 630}.get(split, 126)


@pytest.mark.parametrize(
    ("policy", "code", "figures", "longer"),
    [
        ("static", 9.76, 9.40, 11.01),
        ("linear_regression", 19.47, 18.86, 22.15),
        ("velocity", 17.50, 17.00, 18.82),
        ("damped_velocity", 9.61, 9.27, None),
    ],
)
def test_closed_forms_score_what_they_score_by_the_published_rule(policy, code, figures, longer):
    assert errors(policy, "code").published_mae_deg.mean() == pytest.approx(code, abs=TOLERANCE_DEG)
    assert errors(policy, "figures").published_mae_deg.mean() == pytest.approx(figures, abs=TOLERANCE_DEG)
    if longer is not None:
        assert errors(policy, "figures", 4.0, 6.0).published_mae_deg.mean() == pytest.approx(longer, abs=TOLERANCE_DEG)


@pytest.mark.parametrize(
    ("policy", "around", "published"),
    [
        ("static", 9.763, 9.763),
        ("damped_velocity", 9.613, 9.613),
        ("linear_regression", 17.864, 19.474),
        ("linear_regression+unwrap=true", 17.503, 17.676),
        ("velocity", 16.389, 17.500),
        ("velocity+unwrap=true", 16.068, 16.208),
    ],
)
def test_by_how_much_the_published_rule_and_the_published_extrapolation_differ_from_ours(policy, around, published):
    found = errors(policy, "code")
    assert (found.mae_deg.mean(), found.published_mae_deg.mean()) == (pytest.approx(around, abs=1e-3), pytest.approx(published, abs=1e-3))


def test_the_quartiles_are_those_of_figure_2():
    """First quartile, median and third of the windows' errors; the figure reads 7.03, 16.18, 33.76 and 5.95, 13.75, 28.1."""
    for policy, quartiles in (
        ("linear_regression", (7.06, 16.15, 33.70)),
        ("velocity", (5.96, 13.72, 28.15)),
        ("static", (3.18, 7.54, 15.58)),
    ):
        found = np.quantile(errors(policy, "figures", 4.0, 6.0).published_mae_deg, (0.25, 0.5, 0.75))
        assert found == pytest.approx(quartiles, abs=TOLERANCE_DEG), policy


@pytest.mark.parametrize(
    ("policy", "code", "figures", "longer"),
    [
        ("linear_l1", 9.173, 8.903, 10.361),  # a fit outside this project, stopped earlier: 9.19, 8.93
        ("mlp", 8.714, 8.469, 9.860),  # trained outside this project: 8.81, 8.57; two seeds there were 0.05 apart
        ("mlp+weights=mlp-2", 8.714, 8.469, 9.858),
        ("mlp+weights=mlp-3", 8.710, 8.460, 9.850),
        ("track", 9.073, 8.773, 10.111),
    ],
)
def test_what_ships_scores_what_it_scored(policy, code, figures, longer):
    """Within 0.01 degrees: the last digits are the machine's."""
    found = [errors(policy, *setting).mae_deg.mean() for setting in (("code",), ("figures",), ("figures", 4.0, 6.0))]
    assert found == pytest.approx([code, figures, longer], abs=TOLERANCE_DEG)


@pytest.mark.parametrize("name", ["linear_l1", "mlp", "mlp-2", "mlp-3"])
def test_what_ships_tells_what_it_learnt_from_and_scores_what_it_says(name):
    story = read_story(VP_SHIPPED / f"{name}.safetensors")
    policy = load(name if name == "linear_l1" else f"mlp+weights={name}", "vp")()
    assert measure(policy, windows("code", split="valid")).mae_deg.mean() == pytest.approx(story["validation_mae_deg"], abs=2e-3)
    assert story["sha256"] == load_catalog()["viewports"].splits[0].sha256
    assert story["train"]["windows"] == len(windows("every", 2.0, 6.0, "train"))
    for part in ("train", "valid"):
        assert (story[part]["videos"], story[part]["users"]) == (list(SPLITS[part].videos), list(SPLITS[part].users))
    assert re.fullmatch(r"[0-9a-f]{12}", story["commit"]), "from a commit, nothing changed"


def test_the_order_of_the_predictors():
    """On every setting: extrapolation is worst, then holding still, then what is fitted to the metric, then the network."""
    for setting in (("code",), ("figures",), ("figures", 4.0, 6.0)):
        names = ("mlp", "linear_l1", "damped_velocity", "static", "velocity", "linear_regression")
        scores = [errors(name, *setting).mae_deg.mean() for name in names]
        assert scores == sorted(scores), setting


def test_the_default_damping_is_the_best_on_the_training_split():
    training = windows("figures", split="train")
    scores = {
        decay: measure(load(f"damped_velocity+decay={decay}", "vp")(), training).mae_deg.mean() for decay in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    assert min(scores, key=scores.get) == 0.5


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_test_viewer_no_test_video_and_no_test_sample_is_trained_on(split):
    refuse_leaks(viewings(split))


def test_the_columns_are_the_angles_that_the_reader_says():
    """Of Rz(roll) Rx(pitch) Ry(yaw) the middle angle alone stays within 90 degrees. Taken for that, gazes are as high at every yaw, and
    heads lean little at any; taken as they stand, roll and pitch would change places as a viewer turns."""
    angles_deg = np.concatenate([each.angles_deg for split in ("train", "valid") for each in viewings(split)])  # (samples, 3)
    reach_deg = np.abs(angles_deg).max(axis=0)
    assert reach_deg[1] < 90 < min(reach_deg[0], reach_deg[2])
    height_deg, lean_deg = np.degrees(np.arcsin(gaze(angles_deg)[:, 1])), tilt_deg(angles_deg)
    to_front = np.abs((angles_deg[:, 2] + 180) % 180 - 90) < 30  # yaw near 90 or -90: ahead or behind
    to_side = np.abs((angles_deg[:, 2] + 180) % 180 - 90) > 60

    def spread(values: np.ndarray) -> tuple[float, float]:
        return float(values[to_front].std()), float(values[to_side].std())

    roll, pitch, height, lean = (spread(each) for each in (angles_deg[:, 0], angles_deg[:, 1], height_deg, lean_deg))
    assert roll[0] > 1.5 * roll[1]
    assert pitch[1] > 1.5 * pitch[0]
    assert max(height) < 1.25 * min(height)
    assert max(lean) < 1.4 * min(lean)
    assert min(height) > 1.8 * max(lean), "heads go up and down more than they lean"


def test_most_viewers_face_the_front():
    yaw_deg = np.concatenate([each.angles_deg[:, 2] for each in viewings("train")])
    assert np.mean(np.abs(yaw_deg - 90) < 45) > 0.5
