"""The film cut to a manifest's sizes: exact bytes, boxes that end where they say, a valid MPD; and the set-up that makes it."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import aiohttp
import pytest

from controllers.api import Manifest
from players import origin
from players.config import OriginConfig, OriginRequest
from players.encoded import load_film, mpd
from testbed.errors import TestbedError, UserError
from testbed.setup import encode
from tests.unit.loopback import listening

VIDEO = Manifest("tiny", 4.0, (300_000, 750_000), ((2_000, 70_000), (1_108, 1_109)))
DASH = "{urn:mpeg:dash:schema:mpd:2011}"


def box(kind: bytes, size_bytes: int) -> bytes:
    return size_bytes.to_bytes(4, "big") + kind + b"x" * (size_bytes - 8)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two chunks at two levels, each a single box of 1,100 bytes."""
    for level in range(2):
        (tmp_path / str(level)).mkdir()
        for chunk in range(2):
            (tmp_path / str(level) / f"{chunk}.m4s").write_bytes(box(b"moof", 1_100))
    (tmp_path / encode.INIT).write_bytes(box(b"ftyp", 40))
    facts = {"codecs": "avc1.4D400C", "width": 320, "height": 180, "frames_per_s": 25, "chunk_s": 4, "made_by": "a test"}
    (tmp_path / encode.FACTS).write_text(json.dumps(facts))
    return tmp_path


def boxes(data: bytes) -> list[tuple[bytes, int]]:
    found = []
    while data:
        size_bytes = int.from_bytes(data[:4], "big")
        found.append((data[4:8], size_bytes))
        assert 8 <= size_bytes <= len(data)
        data = data[size_bytes:]
    return found


def fetched(
    film: Path, *paths: str, video: Manifest = VIDEO, chunks: int | None = None
) -> tuple[list[tuple[int, bytes, dict[str, str]]], list[OriginRequest]]:
    """Status, body and headers of each path from an origin with the film; and its log."""
    log: list[OriginRequest] = []

    async def run() -> Any:
        app = origin.application(OriginConfig(host="127.0.0.1", videos=(video,), film=str(film), chunks=chunks))
        with patch.object(origin, "emit", log.append):
            async with listening(app) as url, aiohttp.ClientSession() as client:
                found = []
                for path in paths:
                    async with client.get(url + path) as response:
                        found.append((response.status, await response.read(), dict(response.headers)))
                return found

    return asyncio.run(run()), log


def test_each_chunk_is_its_segment_and_a_free_box_of_exactly_the_manifests_size(film):
    paths = [f"/tiny/{level}/{chunk}?session=s" for chunk in range(2) for level in range(2)]
    found, log = fetched(film, *paths)
    sizes = [2_000, 70_000, 1_108, 1_109]
    for (status, body, headers), size_bytes in zip(found, sizes, strict=True):
        assert status == 200 and len(body) == size_bytes and headers["Cache-Control"] == "no-store"
        assert body[:1_100] == box(b"moof", 1_100)
        assert boxes(body) == [(b"moof", 1_100), (b"free", size_bytes - 1_100)]
    assert [row.bytes_sent for row in log] == sizes and all(row.session == "s" for row in log)


def test_only_the_initialisation_segment_may_be_cached(film):
    (init,), _ = fetched(film, "/tiny/init.mp4")
    assert init[1] == box(b"ftyp", 40) and init[2]["Cache-Control"] == "max-age=86400" and init[2]["Timing-Allow-Origin"] == "*"


def test_the_mpd_says_what_the_manifest_says_and_carries_the_session(film):
    (answer,), log = fetched(film, "/tiny/manifest.mpd?chunks=1&session=t0001")
    assert answer[0] == 200 and answer[2]["Content-Type"] == "application/dash+xml" and not log[0].started
    root = ElementTree.fromstring(answer[1])
    assert root.get("mediaPresentationDuration") == "PT4S" and root.get("type") == "static"
    template = root.find(f".//{DASH}SegmentTemplate")
    assert (template.get("media"), template.get("startNumber")) == ("$RepresentationID$/$Number$?session=t0001", "0")
    assert int(template.get("duration")) / int(template.get("timescale")) == 4.0
    rates = [int(each.get("bandwidth")) for each in root.iter(f"{DASH}Representation")]
    assert rates == list(VIDEO.bitrates_bps)


def test_a_session_cannot_break_out_of_the_mpd(film):
    text = mpd(VIDEO, load_film(film), 2, '"><evil a="$Number$&b')
    template = ElementTree.fromstring(text).find(f".//{DASH}SegmentTemplate")
    assert template.get("media").startswith("$RepresentationID$/$Number$?session=%22%3E%3Cevil")
    assert template.get("media").count("$Number$") == 1


@pytest.mark.parametrize("chunks", ["", "0", "3", "-1", "1e3", "٣"])
def test_an_mpd_of_chunks_that_are_not_there_is_refused(film, chunks):
    (answer,), _ = fetched(film, f"/tiny/manifest.mpd?chunks={chunks}")
    assert answer[0] == 400 and b"wanted 1 to 2" in answer[1]


def test_without_a_film_there_is_no_mpd(film):
    async def run() -> tuple[int, str]:
        app = origin.application(OriginConfig(host="", videos=(VIDEO,)))
        with patch.object(origin, "emit", lambda line: None):
            async with listening(app) as url, aiohttp.request("GET", f"{url}/tiny/manifest.mpd?chunks=1") as response:
                return response.status, await response.text()

    status, text = asyncio.run(run())
    assert status == 404 and "serves no film" in text


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (Manifest("v", 2.0, (1,), ((2_000,),)), "chunks last 2.0 s, wanted the film's 4.0 s"),
        (Manifest("v", 4.0, (1,), ((1_107,),)), "chunk 0 has 1107 bytes at level 0, wanted room for the film's segment of 1100"),
        (Manifest("v", 4.0, (1, 2, 3), ((2_000, 2_000, 2_000),)), "no segment for chunk 0 at level 2"),
    ],
)
def test_a_manifest_that_the_film_does_not_fit_is_a_sentence(film, video, said):
    with pytest.raises(UserError, match=said):
        load_film(film).check(video)


def test_of_a_video_that_is_longer_than_the_film_what_is_played_is_served(film):
    longer = Manifest("longer", 4.0, (300_000,), ((2_000,), (1_108,), (2_000,)))
    with pytest.raises(UserError, match="no segment for chunk 2 at level 0"):
        load_film(film).check(longer)
    load_film(film).check(longer, chunks=2)
    paths = ("/longer/0/1", "/longer/0/2", "/longer/manifest.mpd?chunks=2", "/longer/manifest.mpd?chunks=3", "/longer/manifest.json")
    found, _ = fetched(film, *paths, video=longer, chunks=2)
    assert [status for status, _, _ in found] == [200, 404, 200, 400, 200]
    assert json.loads(found[4][1])["sizes_bytes"] == [[2_000], [1_108], [2_000]], "policies look at one more"


def test_the_film_lasts_as_long_as_a_video_and_a_seed_makes_it_again():
    def length_s(parts: list[str]) -> int:
        return sum(int(part.split("trim=duration=")[1].split(",")[0]) for part in parts)

    assert length_s(encode.scenes()) == encode.CHUNKS * encode.CHUNK_S
    assert encode.scenes(seed=1) == encode.scenes(seed=1) != encode.scenes(seed=2)


def test_another_setting_is_another_film(monkeypatch):
    before = encode.film_folder()
    monkeypatch.setattr(encode, "BITRATES_KBPS", (80, 130))
    assert encode.film_folder() != before


def test_an_encoder_that_fails_leaves_no_film_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(encode.shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(TestbedError, match="ended with exit code 1"):
        encode.make()
    assert list(tmp_path.iterdir()) == [] and not encode.made()
