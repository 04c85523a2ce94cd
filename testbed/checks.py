"""`scripts/test`: set this host up, then run every check of the project, pytest last. Standard library only."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from testbed.setup import install
from testbed.user import User, popen_as

STATIC = {
    "ruff": ("ruff", "check", "."),
    "mypy": ("mypy",),
    "import-linter": ("lint-imports", "--no-logo"),
}
"""What runs before pytest, as the user, by name: a program of `.venv` and its arguments."""
REAL_TIME = "tests/emulation"
"""One by one, because they must not wait for a core."""
BESIDE = ("tests/guest", "tests/golden", "tests/unit/test_learning.py", "tests/unit/test_genet.py")
"""What computes for minutes and looks at no clock, or at one of its own: with the CPU time that real time leaves."""
SIDE_BY_SIDE = ("--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder")
"""File by file."""
REST = tuple(f"--ignore={place}" for place in (REAL_TIME, *BESIDE))
IDLE = ("chrt", "--idle", "0")
"""Runs a program only while nobody else wants the core."""


def main(arguments: Sequence[str]) -> int:
    """Run all checks; `arguments` go to pytest instead of the whole suite. 0 when all passed, else the exit code of one that failed."""
    recipe = install.Recipe()
    install.set_up(recipe, ["run", "test"])
    codes: dict[str, int] = {}
    for name, command in STATIC.items():
        codes[name] = _run(recipe, name, command, recipe.user)
    pytest = ("pytest", *(("-p", "no:cacheprovider") if recipe.user else ()))
    if arguments:
        codes["pytest"] = _run(recipe, _title("pytest", codes), (*pytest, *arguments))
    else:
        _suite(recipe, pytest, codes)
    return next((code for code in codes.values() if code), 0)


def _suite(recipe: install.Recipe, pytest: Sequence[str], codes: dict[str, int]) -> None:
    """All tests. The rest waits for what is beside real time, which would get no CPU time from it."""
    beside, real_time, rest = f"pytest {' '.join(BESIDE)}", f"pytest {REAL_TIME}", "pytest, the rest"
    with tempfile.TemporaryFile() as held:
        command = (*pytest, *SIDE_BY_SIDE, *BESIDE)
        with _started(recipe, f"{beside}, shown later", command, before=IDLE, stdout=held, stderr=held) as process:
            codes[real_time] = _run(recipe, _title(real_time, codes), (*pytest, REAL_TIME))
            codes[beside] = process.wait()
        _say(beside)
        held.seek(0)
        shutil.copyfileobj(held, sys.stdout.buffer)
        sys.stdout.flush()
    codes[rest] = _run(recipe, _title(rest, codes), (*pytest, *SIDE_BY_SIDE, *REST))


def _title(name: str, codes: dict[str, int]) -> str:
    failed = [name for name, code in codes.items() if code]
    return f"{name} (failed so far: {', '.join(failed)})" if failed else name


def _run(recipe: install.Recipe, title: str, command: Sequence[str], user: User | None = None) -> int:
    with _started(recipe, title, command, user) as process:
        return process.wait()


def _started(
    recipe: install.Recipe, title: str, command: Sequence[str], user: User | None = None, before: Sequence[str] = (), **streams: Any
) -> "subprocess.Popen[bytes]":
    """A program of `.venv` with its arguments, through the programs `before`."""
    _say(title)
    program = str(recipe.python.with_name(command[0]))
    return popen_as(user, [*before, program, *command[1:]], cwd=recipe.checkout, env=install.environment(recipe), **streams)


def _say(title: str) -> None:
    sys.stderr.write(f"== {title}\n")
    sys.stderr.flush()
