"""`scripts/test`: set this host up, then run every check of the project, pytest last. Standard library only."""

import sys
from collections.abc import Sequence

from testbed.setup import install
from testbed.user import User, popen_as

STATIC = {
    "ruff": ("ruff", "check", "."),
    "mypy": ("mypy",),
    "import-linter": ("lint-imports", "--no-logo"),
}
"""What runs before pytest, as the user, by name: a program of `.venv` and its arguments."""
SUITE = {
    "pytest": ("--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder", "--ignore=tests/emulation"),
    "pytest in real time": ("tests/emulation",),
}
"""All tests: those that only compute side by side, file by file (first a guest, which has a clock of its own), then one by one those that
must not wait for a core."""


def main(arguments: Sequence[str]) -> int:
    """Run all checks; `arguments` go to pytest instead of `SUITE`. 0 when all passed, else the exit code of the first that failed."""
    recipe = install.Recipe()
    install.set_up(recipe, ["run", "test"])
    codes = {name: _run(recipe, name, command, recipe.user) for name, command in STATIC.items()}
    cache = ("-p", "no:cacheprovider") if recipe.user else ()
    for name, chosen in ({"pytest": arguments} if arguments else SUITE).items():
        failed = [name for name, code in codes.items() if code]
        title = f"{name} (failed so far: {', '.join(failed)})" if failed else name
        codes[name] = _run(recipe, title, ("pytest", *cache, *chosen), None)
    return next((code for code in codes.values() if code), 0)


def _run(recipe: install.Recipe, title: str, command: Sequence[str], user: User | None) -> int:
    sys.stderr.write(f"== {title}\n")
    sys.stderr.flush()
    program = str(recipe.python.with_name(command[0]))
    with popen_as(user, [program, *command[1:]], cwd=recipe.checkout, env=install.environment(recipe)) as process:
        return process.wait()
