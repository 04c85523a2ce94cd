"""`scripts/bench links --quick` on this machine: who can be measured is, and what is written holds together. No number is judged."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import interfaces

from testbed.bench import links

pytestmark = pytest.mark.emulation

TAKING_PART = ("relay", "relay_gso", "python", "mahimahi", "tclink_1s", "veth")


@pytest.fixture
def state() -> Iterator[Path]:
    """Mahimahi, which never runs as root, reads its traces there: pytest's own folders are for root alone."""
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_smoke_run_measures_everybody_and_leaves_nothing(tmp_path: Path, state: Path) -> None:
    before = interfaces()
    settings = links.LinksSettings(contenders=TAKING_PART, quick=True, out=tmp_path / "results", write=tmp_path / "docs" / "links.md")
    folder = links.links(settings, state_dir=state)
    found = json.loads((folder / "bench.json").read_text())
    assert found["failed"] == []
    present = set(TAKING_PART) - set(found["absent"])
    assert {"python", "tclink_1s", "veth"} <= present
    measured = {(row["phase"], row.get("traffic"), row["contender"]) for row in found["rows"]}
    assert {key for phase, traffic, key in measured if (phase, traffic) == ("rate", "udp")} == present - {"veth", "relay_gso"}
    assert {key for phase, traffic, key in measured if (phase, traffic) == ("rate", "tcp")} == present - {"veth", "relay_gso"}
    assert {key for phase, _, key in measured if phase == "delay"} == present - {"veth", "tclink_1s", "relay_gso"}
    assert {key for phase, _, key in measured if phase == "tcp"} == present - {"tclink_1s"}
    assert {key for phase, _, key in measured if phase == "flood"} == present - {"tclink_1s", "relay_gso"}
    rate = [row for row in found["rows"] if row["phase"] == "rate"]
    assert all(row["windows"] > 0 and 0 <= row["rate_error_100ms_pct"] < 100 for row in rate)
    assert all(row["probes"] + row["probes_lost"] == 400 for row in found["rows"] if row["phase"] == "delay")
    assert all(row["tcp_bps"] > 1e6 for row in found["rows"] if row["phase"] == "tcp")
    assert [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()] == found["rows"]
    assert (folder / "links.svg").read_text() == (tmp_path / "docs" / "links.svg").read_text()
    assert "(links.svg)" in (tmp_path / "docs" / "links.md").read_text()
    assert interfaces() == before
