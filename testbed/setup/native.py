"""The relay in C: compiled at set-up into `.venv/libexec`, under a name that holds a hash of its sources. Standard library only.

A change of the sources gives the program another name, so that an old one is never taken for it; the set-up then builds it again.
"""

import contextlib
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from testbed.errors import TestbedError
from testbed.user import User

CHECKOUT = Path(__file__).resolve().parents[2]
COMPILER = "cc"
FLAGS = ("-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-ffp-contract=off")
"""Contraction into fused multiply-add would round otherwise than Python does."""
STRICT = ("-Werror", "-Wconversion", "-Wshadow")
"""For the tests' builds only: a newer compiler's new warning is no reason to leave a user without the relay."""
SANITISERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
"""For the tests: any access out of bounds and any overflow ends the relay with a report."""
NO_COMPILER = f"no C compiler ({COMPILER}): links use the slower Python relay; `apt-get install gcc libc6-dev`, then scripts/setup"

Run = Callable[[Sequence[str]], object]
"""Runs a command to its end; TestbedError when it fails."""


def sources(checkout: Path = CHECKOUT) -> list[Path]:
    """C files and headers, in an order that never changes; none in a checkout without a relay in C."""
    return sorted((checkout / "testbed" / "shapers" / "native").glob("*.[ch]"))


def target(checkout: Path = CHECKOUT) -> Path:
    """Where the program belongs that the present sources make."""
    digest = hashlib.sha256("\0".join((platform.machine(), COMPILER, *FLAGS)).encode())
    for path in sources(checkout):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return checkout / ".venv" / "libexec" / f"netllm-relay-{digest.hexdigest()[:16]}"


def built(checkout: Path = CHECKOUT) -> Path | None:
    """The program, when it was built from the present sources. Takes less than a millisecond."""
    program = target(checkout)
    return program if sources(checkout) and os.access(program, os.X_OK) else None


def fault(checkout: Path = CHECKOUT) -> str:
    """Why there is no program; empty when there is one, or when a set-up by the present user would build it."""
    if built(checkout) or not sources(checkout):
        return ""
    program = target(checkout)
    with contextlib.suppress(OSError):
        return _note(program).read_text(encoding="utf-8").strip()
    if not shutil.which(COMPILER):
        return NO_COMPILER
    folder = next((path for path in (program.parent, program.parent.parent) if path.exists()), None)
    if folder and not os.access(folder, os.W_OK):
        return f"{folder} can't be written: links use the slower Python relay; run scripts/setup as its owner, or with sudo"
    return ""


def lacking(checkout: Path = CHECKOUT) -> bool:
    """Whether a set-up by the present user would build it."""
    return bool(sources(checkout)) and not built(checkout) and not fault(checkout)


def command(checkout: Path, program: Path, extra: Sequence[str] = ()) -> list[str]:
    """What compiles it all into `program`."""
    files = [str(path) for path in sources(checkout) if path.suffix == ".c"]
    return [COMPILER, *FLAGS, *extra, "-o", str(program), *files, "-lm"]


def build(checkout: Path, run: Run, owner: User | None = None) -> None:
    """Compile it with `run`, as `owner`, and remove older ones. A failure is what `fault` tells from then on. Safe to interrupt."""
    program = target(checkout)
    note, fresh = _note(program), program.with_suffix(".new")
    if not program.parent.exists():
        program.parent.mkdir()
        _give(program.parent, owner)
    try:
        run(command(checkout, fresh))
    except TestbedError as error:
        note.write_text(f"the relay in C could not be compiled, links use the slower Python relay: {_cause(error)}\n", encoding="utf-8")
        _give(note, owner)
    else:
        fresh.replace(program)
        note.unlink(missing_ok=True)
    for old in program.parent.glob("netllm-relay-*"):
        if old not in (program, note):
            old.unlink()


def forget_fault(checkout: Path = CHECKOUT) -> None:
    """Let the next set-up try again what failed."""
    with contextlib.suppress(OSError):
        _note(target(checkout)).unlink()


def _give(path: Path, owner: User | None) -> None:
    if owner:
        os.chown(path, *owner)


def _cause(error: TestbedError) -> str:
    """The compiler's first complaint."""
    first, *more = str(error).splitlines()
    return next((line.strip() for line in more if "error" in line), first)


def _note(program: Path) -> Path:
    """Where a failed attempt is remembered, so that not every start tries again."""
    return program.with_suffix(".failed")
