"""`run.py fidelity` on real links: captures and links count the same packets, and nothing is left however it ends."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import descendants, interfaces, network
from rich.console import Console

from testbed.errors import UserError
from testbed.fidelity.command import Check, capture, find_ways
from testbed.fidelity.evidence import Folder, write
from testbed.fidelity.page import judge

pytestmark = pytest.mark.emulation

CLI = [sys.executable, "-m", "testbed.cli", "fidelity"]
MARK = "TEST_FIDELITY_MARK"
BACK_ENDS = [
    pytest.param("userspace", 30.0, id="userspace"),
    pytest.param("python", 30.0, id="python"),
    pytest.param("kernel", 0.0, id="kernel-without-delay"),
    pytest.param("kernel", 30.0, id="kernel"),
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Steps, and an outage."""
    path = tmp_path / "steps.csv"
    path.write_text("time_s,rate_mbps\n0.8,12\n1.1,0\n1.6,3\n2.5,8\n")
    return path


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither process nor interface."""
    monkeypatch.setenv(MARK, secrets.token_hex(16))
    before = interfaces()
    yield
    deadline_s = time.monotonic() + 5
    while (descendants(os.environ[MARK]) or interfaces() != before) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert descendants(os.environ[MARK]) == {}
    assert interfaces() == before


@pytest.mark.parametrize(("link", "rtt_ms"), BACK_ENDS)
def test_both_accounts_count_the_same_packets(tmp_path, trace, link, rtt_ms):
    """How late packets are, and so the verdicts, depends on what else this machine does; what is counted doesn't."""
    uplink = str(trace) if link == "userspace" else None
    check = Check(trace=str(trace), uplink=uplink, link=link, rtt_ms=rtt_ms, seconds=2.0, queue=30_000)
    ways, _ = find_ways(check)
    folder = tmp_path / "captured"
    folder.mkdir()
    try:
        with network(tmp_path / "state", check.lanes, check.path) as net:
            evidence = capture(check, ways, net, folder, Console(quiet=True))
    except UserError as error:
        pytest.skip(str(error))  # a kernel without what --link kernel needs
    write(folder, Folder(command="", commit="", started_utc="2026", options={}, host={}, notes=(), evidence=tuple(evidence)))
    judge(folder, Console(quiet=True))
    told = msgspec.json.decode((folder / "fidelity.json").read_bytes())
    assert [link["name"] for link in told["links"]] == ["lane0-tcp", "lane0-udp"]
    for link in told["links"]:
        assert link["verdict"] != "void", link["reasons"]
        rows = {row["what"]: row for row in link["comparisons"]}
        counts = [rows[f"packets {what}"] for what in ("in", "out", "in less out", "that overtook another")] + [rows["uncounted losses"]]
        assert [(row["what"], row["captured"] - row["said"]) for row in counts if row["captured"] != row["said"]] == []
        assert rows["packets in"]["captured"] > 200
        assert rows["packets earlier than due"]["agrees"] is not False
    assert told["links"][1]["comparisons"][2]["captured"] > 0, "datagrams at 1.2 times the mean fill the queue"


def test_a_check_from_the_command_line(tmp_path, trace):
    """Its folder, which a second command judges to the same end."""
    command = [*CLI, "--trace", trace, "--seconds", "1", "--traffic", "udp", "--load", "busy", "--out", tmp_path / "out"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1)  # the verdict is a matter of this machine's other work
    (folder,) = (tmp_path / "out").iterdir()
    assert f"judging the captures in {folder}\n" in done.stdout, "for whom it takes too long: they are kept"
    names = {path.name for path in folder.iterdir()}
    assert names == {"captures.json", "fidelity.json", "fidelity.html", "lane0-udp-server.pcap.gz", "lane0-udp-client.pcap.gz"}
    before = (folder / "fidelity.json").read_bytes()
    assert subprocess.run([*CLI, folder], check=False).returncode == done.returncode
    assert (folder / "fidelity.json").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_interrupted_leaves_nothing(tmp_path, trace, number):
    command = [*CLI, "--trace", trace, "--seconds", "60", "--load", "busy", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("*/*.pcap")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_input_is_one_sentence_and_nothing_starts(tmp_path):
    for arguments, said in (
        (["--trace", "nowhere"], "trace 'nowhere' is neither"),
        (["--link", "veth"], "--link"),
        ([str(tmp_path)], "wanted the folder of a fidelity check"),
    ):
        done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
