"""What a child of a run says, line by line, however it comes."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed.child import Child

CHECKOUT = Path(__file__).parents[2]
SAYS = "import sys; out = sys.stdout.buffer; out.write({!r}); out.flush(); sys.stdin.read(); out.write({!r})"


def saying(folder: Path, at_once: bytes, later: bytes = b"") -> Child:
    """A process that says something at once, and something when it has its config."""
    (folder / "talks.py").write_text(SAYS.format(at_once, later))

    def popen(argv: list[str], **keywords: Any) -> "subprocess.Popen[bytes]":
        environment = {**(keywords.pop("env", None) or os.environ), "PYTHONPATH": f"{folder}:{CHECKOUT}"}
        return subprocess.Popen(argv, cwd=folder, env=environment, **keywords)

    return Child(popen, "talks")


def told_to_go_on(child: Child) -> list[bytes]:
    stdin = child._process.stdin
    assert stdin
    stdin.close()
    said = list(child.lines())
    child.end(5.0)
    return said


@pytest.mark.parametrize(
    ("at_once", "later", "lines"),
    [
        (b"first\n", b"second\n", [b"second\n"]),
        (b"first\nsecond\n", b"", [b"second\n"]),
        (b"first\nsecond\nthi", b"rd\nfourth\n", [b"second\n", b"third\n", b"fourth\n"]),
        (b"first\nsecond\nto", b"rn", [b"second\n"]),
        (b"first\nto", b"", []),
    ],
)
def test_what_comes_with_the_first_line_is_not_lost(tmp_path: Path, at_once: bytes, later: bytes, lines: list[bytes]) -> None:
    child = saying(tmp_path, at_once, later)
    assert child.first_line(60) == child.first_line(0) == b"first\n"
    assert told_to_go_on(child) == lines


def test_lines_are_all_there_when_nobody_asked_for_the_first(tmp_path: Path) -> None:
    assert told_to_go_on(saying(tmp_path, b"first\nsec", b"ond\n")) == [b"first\n", b"second\n"]


def test_a_line_that_is_not_whole_is_no_first_line(tmp_path: Path) -> None:
    child = saying(tmp_path, b"fir", b"st\nsecond\n")
    assert child.first_line(0.2) is None
    assert told_to_go_on(child) == [b"first\n", b"second\n"]
    assert child.first_line(60) == b""
