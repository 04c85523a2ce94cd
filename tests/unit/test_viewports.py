"""Head movement: what the reader takes and refuses, which way a head looks, how viewings are split and cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from testbed.errors import UserError
from tests.vp_cases import viewing
from traces import viewport_splits
from traces.catalog import load_catalog
from traces.viewport_splits import SPLITS, find_split, load_split, refuse_leaks, viewing_file
from traces.viewports import HeadMovement, gaze, read_head_movement, tilt_deg
from traces.windows import RULES, cut, find_rule, samples


def read(folder, content):
    path = folder / "head.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_head_movement(path, 3, 7)


def test_a_file_is_read_column_by_column(tmp_path):
    found = read(tmp_path, "0.000000,4.5,-9.25,153.5\n0.208288,6.0,11.0,-141.75\n")
    assert (found.video, found.user) == (3, 7)
    assert found.times_s.tolist() == [0.0, 0.208288]
    assert found.angles_deg.tolist() == [[4.5, -9.25, 153.5], [6.0, 11.0, -141.75]]
    with pytest.raises(ValueError, match="read-only"):
        found.angles_deg[0, 0] = 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "head.csv: is empty, wanted rows of seconds, roll, pitch, yaw"),
        ("\n\n", "head.csv: is empty"),
        ("0,1,2\n", "head.csv:1: is '0,1,2' with 3 columns, wanted 4"),
        ("0,1,2,3\n0.2,1,2,3,4\n", "head.csv:2: is '0.2,1,2,3,4' with 5 columns"),
        ("time,roll,pitch,yaw\n", "head.csv:1: time is 'time', wanted a number"),
        ("0,1,nan,3\n", "head.csv:1: pitch is 'nan', wanted a number"),
        ("0,1,2,0x1f\n", "head.csv:1: yaw is '0x1f', wanted a number"),
        ("0,1,2,3\n0,1,2,3\n", "head.csv:2: time is 0 s, wanted more than the 0 s of the row before"),
        ("-1,1,2,3\n", "head.csv:1: time is -1 s, wanted a finite number of at least 0 s"),
        ("1e999,1,2,3\n", "head.csv:1: time is inf s"),
        ("0,181,2,3\n", "head.csv:1: roll is 181 degrees, wanted -180 to 180"),
        ("0,1,-90.5,3\n", "head.csv:1: pitch is -90.5 degrees, wanted -90 to 90"),
        ("0,1,2,1e999\n", "head.csv:1: yaw is inf degrees, wanted -180 to 180"),
        (bytes(range(256)), "head.csv:2: byte 0x80 is not text"),
        (b"\x1f\x8b\x08\x00", "head.csv: is compressed (gzip)"),
        ("0" * 300, "head.csv:1: has 300 characters, wanted at most 200"),
    ],
)
def test_garbage_is_told_in_one_sentence(tmp_path, content, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(content=st.one_of(st.binary(max_size=60), st.text("0123456789.,-e \n", max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    try:
        found = read(tmp_path_factory.getbasetemp(), content)
    except UserError:
        return
    assert found.angles_deg.shape == (len(found.times_s), 3)
    assert (np.abs(found.angles_deg) <= [180, 90, 180]).all()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.csv: can't be read \(No such file"):
        read_head_movement(tmp_path / "nowhere.csv", 1, 1)


ANGLES = st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))


@given(ANGLES)
def test_gaze_and_tilt_are_those_of_the_rotation_that_the_angles_were_made_of(angles_deg):
    """scipy's own inverse of `as_euler('ZXY')`, by which NetLLM made the files."""
    head = Rotation.from_euler("ZXY", angles_deg, degrees=True)
    np.testing.assert_allclose(gaze(angles_deg), head.apply([0, 0, 1]), atol=1e-9)
    assert tilt_deg(angles_deg) == pytest.approx(np.degrees(np.arcsin(np.clip(head.apply([1, 0, 0])[1], -1, 1))), abs=1e-5)


def test_at_the_front_roll_lifts_the_gaze_and_pitch_tilts_the_head():
    front, up, tilted = [0, 0, 90], [30, 0, 90], [0, 30, 90]
    np.testing.assert_allclose(gaze(front), [1, 0, 0], atol=1e-12)
    assert np.degrees(np.arcsin(gaze(up)[1])) == pytest.approx(30)
    np.testing.assert_allclose(gaze(tilted), [1, 0, 0], atol=1e-12)
    assert (tilt_deg(up), tilt_deg(tilted)) == (pytest.approx(0, abs=1e-9), pytest.approx(30))


def test_the_splits_are_the_published_sizes_and_share_nothing():
    sizes = {name: (len(split.videos), len(split.users)) for name, split in SPLITS.items()}
    others = {"wu2017-valid": (2, 9), "wu2017-test": (2, 9)}
    assert sizes == {"train": (15, 42), "valid": (6, 21), "test": (6, 21)} | others
    own, other = ([split for split in SPLITS.values() if (split.dataset == "viewports") is mine] for mine in (True, False))
    assert not set(other[0].videos) & set(other[1].videos) and not set(other[0].users) & set(other[1].users)
    assert {split.front_deg for split in own} == {90.0} and {split.front_deg for split in other} == {None}
    videos, users = ([number for split in own for number in getattr(split, kind)] for kind in ("videos", "users"))
    assert sorted(videos) == list(range(1, 28))
    assert sorted(users) == list(range(1, 85))


def test_an_unknown_split_or_rule_is_told():
    with pytest.raises(UserError, match="viewports has no split 'tset': did you mean test"):
        find_split("tset")
    with pytest.raises(UserError, match="windows 'figure' are unknown: did you mean figures"):
        find_rule("figure")


@pytest.fixture
def small_test_split(monkeypatch):
    """The test split's viewings of two viewers, made by arithmetic."""
    known = tuple(viewing(video, user) for video in SPLITS["test"].videos for user in SPLITS["test"].users[:2])
    monkeypatch.setattr(viewport_splits, "load_split", lambda name: known if name == "test" else ())
    return known


def test_clean_viewings_may_train(small_test_split):
    refuse_leaks([viewing(1, 50), viewing(5, 54)])


@pytest.mark.parametrize(
    ("video", "user", "said"),
    [
        (4, 50, "video 4 by viewer 50 is not for training: it shares video 4 with viewports/test"),
        (1, 83, "it shares viewer 83 with viewports/test"),
        (8, 15, "it shares video 8 and viewer 15 and 8 samples of viewer 15 on video 8 with viewports/test"),
    ],
)
def test_a_test_video_or_a_test_viewer_is_refused(small_test_split, video, user, said):
    with pytest.raises(UserError) as caught:
        refuse_leaks([viewing(1, 50), viewing(video, user)])
    assert said in str(caught.value)


@given(at=st.integers(0, 100), start=st.integers(0, 100))
def test_samples_of_a_test_viewing_are_found_under_any_name(at, start):
    known, mine = viewing(4, 83), viewing(1, 50)
    angles_deg = mine.angles_deg.copy()
    angles_deg[at : at + 8] = known.angles_deg[start : start + 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewport_splits, "load_split", lambda name: (known,))
        with pytest.raises(UserError, match="shares 8 samples of viewer 83 on video 4"):
            refuse_leaks([HeadMovement(1, 50, mine.times_s, angles_deg)])
        angles_deg[min(at + 3, 119)] += 0.5
        refuse_leaks([HeadMovement(1, 50, mine.times_s, angles_deg)])


@pytest.mark.parametrize("at_deg", [0.0, 179.9])
def test_a_head_at_rest_is_no_evidence(monkeypatch, at_deg):
    """Not where its mean is rounded either."""
    still = HeadMovement(4, 83, np.arange(50) / 5, np.full((50, 3), at_deg))
    monkeypatch.setattr(viewport_splits, "load_split", lambda name: (still,))
    refuse_leaks([HeadMovement(1, 50, still.times_s, still.angles_deg)])


def test_a_split_is_read_from_the_store_in_published_order(tmp_path, monkeypatch):
    for video in SPLITS["valid"].videos:
        for user in SPLITS["valid"].users:
            path = viewing_file(tmp_path, video, user)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"0,1,2,{video}\n0.2,1,2,{user}\n")
    monkeypatch.setattr(viewport_splits, "obtain", lambda name, root, fetch: (tmp_path, ""))
    found = load_split("valid")
    assert [(each.video, each.user) for each in found[:22]] == [(3, user) for user in SPLITS["valid"].users] + [(7, 9)]
    assert all(each.angles_deg[:, 2].tolist() == [each.video, each.user] for each in found)


def test_data_that_can_not_be_had_are_told(monkeypatch):
    monkeypatch.setattr(viewport_splits, "obtain", lambda name, root, fetch: (None, "no network"))
    with pytest.raises(UserError, match=r"not on this machine \(no network\), wanted it there: run scripts/fetch_data viewports"):
        load_split("test")
    assert load_catalog()["viewports"].splits[0].files == 27 * 84


@pytest.mark.parametrize(("rule", "expected"), [("code", [30, 45]), ("figures", [30, 45, 60, 75]), ("every", list(range(30, 90)))])
def test_windows_lie_where_the_rule_says(rule, expected):
    long = viewing(samples=120)
    found = cut([long], RULES[rule])
    assert found.at.tolist() == expected
    for i, at in enumerate(expected):
        np.testing.assert_array_equal(found.history_deg[i], long.angles_deg[at - 10 : at])
        np.testing.assert_array_equal(found.times_s[i], long.times_s[at - 10 : at])
        np.testing.assert_array_equal(found.future_deg[i], long.angles_deg[at : at + 20])


def test_other_lengths_and_the_rows_of_each_viewing():
    found = cut([viewing(1, 1), viewing(1, 2, samples=60), viewing(2, 2, samples=100), viewing(2, 3)], RULES["figures"], 4.0, 6.0)
    assert (found.history, found.horizon, len(found)) == (20, 30, 4 + 0 + 3 + 4)
    assert [(found.video[rows][0], found.user[rows][0], rows.start, rows.stop) for rows in found.viewings()] == [
        (1, 1, 0, 4), (2, 2, 4, 7), (2, 3, 7, 11),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("history_s", "horizon_s", "said"),
    [
        (7.0, 4.0, "the history is 7 s, wanted at most the 6 s that windows 'figures' leave"),
        (2.0, 6.2, "the horizon is 6.2 s, wanted at most the 6 s"),
        (0.0, 4.0, "the history is 0 s, wanted a multiple of 0.2 s above 0"),
        (2.0, 0.3, "the horizon is 0.3 s, wanted a multiple of 0.2 s above 0"),
    ],
)
def test_lengths_that_do_not_fit_are_told(history_s, horizon_s, said):
    with pytest.raises(UserError) as caught:
        cut([viewing()], RULES["figures"], history_s, horizon_s)
    assert said in str(caught.value)


def test_viewings_too_short_for_any_window_are_told():
    with pytest.raises(UserError, match="of 1 viewings are none, wanted a viewing of at least 61 samples"):
        cut([viewing(samples=60)], RULES["figures"])


def test_seconds_become_samples():
    assert [samples(seconds, "history") for seconds in (0.2, 2.0, 4.6)] == [1, 10, 23]
