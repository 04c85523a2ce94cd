"""Manifests: catalogued videos as measured, ours equal on every machine, unknown and damaged ones refused."""

import hashlib
import json
import shutil
from statistics import fmean, pstdev

import pytest

from controllers.api import Manifest
from players.media import BITRATES_BPS, CHUNK_S, CHUNKS, check_length, default_manifest, load_manifest, synthetic_manifest, video_names
from testbed.errors import TestbedError, UserError
from traces import store
from traces.store import find_video


@pytest.fixture(params=["video1", "video2"])
def video(request):
    folder = find_video(request.param)
    if folder is None:
        pytest.skip(f"{request.param} is not on this machine: scripts/fetch_data {request.param}")
    return request.param, folder


def test_a_catalogued_video_holds_the_sizes_of_its_files(video):
    name, folder = video
    manifest = load_manifest(name)
    assert (manifest.name, manifest.chunk_s, manifest.bitrates_bps) == (name, 4.0, BITRATES_BPS)
    assert len(manifest.sizes_bytes) == CHUNKS and {len(sizes) for sizes in manifest.sizes_bytes} == {6}
    for level in range(6):
        assert [str(sizes[level]) for sizes in manifest.sizes_bytes] == (folder / f"video_size_{level}").read_text().split()


def test_the_reference_sizes_of_video1():
    if find_video("video1") is None:
        pytest.skip("video1 is not on this machine: scripts/fetch_data video1")
    assert load_manifest("video1").sizes_bytes[0] == (181801, 450283, 668286, 1034108, 1728879, 2354772)


def test_our_video_is_the_same_on_every_machine():
    content = repr(synthetic_manifest().sizes_bytes).encode()
    assert hashlib.sha256(content).hexdigest() == SYNTHETIC_SHA256


SYNTHETIC_SHA256 = "a33bf50ba72548f05890435ca6b543db9ecb061f56b8d24d4574b5c003b182f0"


def test_our_video_has_the_ladder_nominal_means_and_plausible_variation():
    manifest = load_manifest("synthetic")
    assert manifest.bitrates_bps == BITRATES_BPS and len(manifest.sizes_bytes) == CHUNKS
    for level, bitrate_bps in enumerate(BITRATES_BPS):
        sizes = [chunk[level] for chunk in manifest.sizes_bytes]
        assert fmean(sizes) == pytest.approx(bitrate_bps * CHUNK_S / 8, abs=1)
        assert pstdev(sizes) / fmean(sizes) == pytest.approx(0.08, abs=1e-4)
    assert all(list(sizes) == sorted(set(sizes)) for sizes in manifest.sizes_bytes)


MOVIE = {"segment_duration_ms": 1500, "bitrates_kbps": [400, 1000.5, 3000], "segment_sizes_bits": [[600_001, 1_500_000, 4_500_000]] * 5}


def movie(folder, **changes):
    path = folder / "mine.json"
    path.write_text(json.dumps(MOVIE | changes))
    return path


def test_a_users_video_is_described_as_sabre_describes_movies(tmp_path):
    path = movie(tmp_path, title="more is no harm")
    found = load_manifest(str(path))
    assert found == Manifest("mine", 1.5, (400_000, 1_000_500, 3_000_000), ((75_001, 187_500, 562_500),) * 5)
    check_length(found, 4)
    with pytest.raises(UserError, match="a session has 5 chunks, video mine 5, wanted at least one more than a session"):
        check_length(found, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segment_duration_ms": 0}, "Expected `float` >= 100.0 - at `\\$.segment_duration_ms`"),
        ({"bitrates_kbps": [400, 400, 3000]}, "bitrates_kbps are 400, 400, 3000, wanted them from low to high"),
        ({"segment_sizes_bits": [[1, 2, 3], [1, 2], [1, 2, 3]]}, r"segment_sizes_bits\[1\] has 2 sizes, wanted 3, one a bitrate"),
        ({"segment_sizes_bits": [[1, 2, -3]] * 3}, r"Expected `float` > 0.0 - at `\$.segment_sizes_bits"),
        ({"segment_sizes_bits": None}, "Expected `array`, got `null`"),
    ],
)
def test_a_users_video_that_is_none_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as raised:
        load_manifest(str(movie(tmp_path, **changes)))
    assert str(raised.value).startswith(f"{tmp_path}/mine.json: ") and "\n" not in str(raised.value)


def test_a_users_video_must_be_there_and_have_a_name_for_a_path(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: can't be read"):
        load_manifest(str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="names the video 'my video', wanted letters"):
        load_manifest(str(movie(tmp_path).rename(tmp_path / "my video.json")))


def offline(entry, data):
    raise TestbedError(f"fetching {entry.name}: no network here")


def test_the_default_is_video1_or_says_that_it_is_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "fetch_set", offline)
    manifest, note = default_manifest(tmp_path)
    assert manifest == synthetic_manifest() and "our synthetic video" in note and "no network here" in note
    if find_video("video1"):
        assert default_manifest() == (load_manifest("video1"), "")


def test_a_video_is_fetched_when_it_is_missing(video, tmp_path, monkeypatch):
    name, folder = video
    monkeypatch.setattr(store, "fetch_set", lambda entry, data: shutil.copytree(folder, data / entry.folder))
    assert load_manifest(name, tmp_path, fetch=True) == load_manifest(name)


def test_an_unknown_and_an_absent_video(tmp_path):
    assert set(video_names()) == {"video1", "video2", "synthetic"}
    with pytest.raises(UserError, match="'vidio1' is unknown: did you mean video1"):
        load_manifest("vidio1")
    with pytest.raises(UserError, match="'fcc' is unknown"):
        load_manifest("fcc")
    with pytest.raises(UserError, match="video2 is not on this machine"):
        load_manifest("video2", tmp_path, fetch=False)


def test_a_damaged_video_is_refused(video, tmp_path):
    name, folder = video
    shutil.copytree(folder, tmp_path / f"videos/{name}_sizes")
    with open(tmp_path / f"videos/{name}_sizes/video_size_3", "a") as file:
        file.write("1\n")
    with pytest.raises(UserError, match="sha256"):
        load_manifest(name, tmp_path)


@pytest.mark.parametrize(
    ("line", "said"), [("0", "video_size_2:49: size is '0'"), ("-5", "'-5'"), ("1.5", "'1.5'"), ("1\n2", "holds 50 sizes")]
)
def test_sizes_that_are_none_are_told_by_line(tmp_path, monkeypatch, line, said):
    for level in range(6):
        lines = ["1000"] * 48 + [line if level == 2 else "1000"]
        (tmp_path / f"video_size_{level}").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("players.media.obtain", lambda name, root, fetch: (tmp_path, ""))
    with pytest.raises(UserError, match=said):
        load_manifest("video1")
