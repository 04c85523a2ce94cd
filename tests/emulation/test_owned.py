"""Interfaces of the root namespace: `clean` deletes what is recorded and bears our alias, and nothing else. The rest are unit tests."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import interfaces

from testbed import owned
from testbed.owned import Header, OwnedInterface, clean, run_lock

pytestmark = pytest.mark.emulation

NAMES = ("ntbtest0", "ntbtest2")


@pytest.fixture
def veths() -> Iterator[None]:
    """Two pairs."""
    for name in NAMES:
        subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield
    for name in NAMES:
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


@pytest.mark.usefixtures("veths")
def test_only_an_interface_with_our_alias_is_deleted(tmp_path: Path) -> None:
    with run_lock("killed", tmp_path) as run:
        alias = run.add_interface(NAMES[0])
    subprocess.run(["ip", "link", "set", NAMES[0], "alias", alias], check=True)
    subprocess.run(["ip", "link", "set", NAMES[1], "alias", "of somebody else"], check=True)
    (tmp_path / "killed").mkdir()
    lines = [Header("killed", "token", owned._boot_id(), 2**22 + 1, 5), *(OwnedInterface(name, alias) for name in (*NAMES, "ntbtest9"))]
    (tmp_path / "killed" / "owned.jsonl").write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    assert clean(tmp_path) == [f"interface {NAMES[0]}", "state of run killed"]
    left = {name.partition("@")[0] for name in interfaces()}
    assert NAMES[0] not in left and NAMES[1] in left
