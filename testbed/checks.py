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
COMPUTING = ("--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder", "--ignore=tests/emulation")
"""What only computes: side by side, file by file (first a guest, which has a clock of its own)."""
IN_REAL_TIME = ("tests/emulation",)
"""What must not wait for a core: one by one."""
IDLE = ("chrt", "--idle", "0")
"""Only with the CPU time that nobody else wants."""


def main(arguments: Sequence[str]) -> int:
    """Run all checks; `arguments` go to pytest instead of its whole suite. 0 when all passed, else the first exit code that is not."""
    recipe = install.Recipe()
    install.set_up(recipe, ["run", "test"])
    codes = {}
    for name, command in STATIC.items():
        with _started(recipe, name, command, recipe.user) as process:
            codes[name] = process.wait()
    failed = [name for name, code in codes.items() if code]
    title = f"pytest (failed so far: {', '.join(failed)})" if failed else "pytest"
    pytest = ("pytest", *(("-p", "no:cacheprovider") if recipe.user else ()))
    if arguments:
        with _started(recipe, title, (*pytest, *arguments)) as process:
            codes["pytest"] = process.wait()
    else:
        codes |= _suite(recipe, title, pytest)
    return next((code for code in codes.values() if code), 0)


def _suite(recipe: install.Recipe, title: str, pytest: Sequence[str]) -> dict[str, int]:
    """What must not wait for a core, beside what only computes; its output comes when the other has ended."""
    with tempfile.TemporaryFile() as held:
        beside = _started(recipe, f"{title}, in real time: its output comes last", (*pytest, *IN_REAL_TIME), stdout=held, stderr=held)
        with beside as real_time, _started(recipe, title, (*pytest, *COMPUTING), before=IDLE) as computing:
            codes = {"pytest": computing.wait(), "pytest in real time": real_time.wait()}
        held.seek(0)
        sys.stderr.write("== pytest in real time\n")
        sys.stderr.flush()
        shutil.copyfileobj(held, sys.stdout.buffer)
        sys.stdout.flush()
    return codes


def _started(
    recipe: install.Recipe, title: str, command: Sequence[str], user: User | None = None, before: Sequence[str] = (), **streams: Any
) -> "subprocess.Popen[bytes]":
    """A program of `.venv` with its arguments, under `before`."""
    sys.stderr.write(f"== {title}\n")
    sys.stderr.flush()
    program = str(recipe.python.with_name(command[0]))
    return popen_as(user, [*before, program, *command[1:]], cwd=recipe.checkout, env=install.environment(recipe), **streams)
