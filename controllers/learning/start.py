"""How training and evaluation begin and end: what can be asked for, numbers that make sense, a folder to write to, the exit code."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path

from testbed.errors import UserError


def exit_code(work: Callable[[], object], interrupted: str) -> int:
    """0 when `work` is done; 2 and a sentence for a user's mistake, a full disk or a folder taken away; 130 after Ctrl-C."""
    try:
        work()
    except (UserError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def usage(program: str, known: Mapping[str, str]) -> str:
    """What a program does by its first word, a line each."""
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {about}" for name, about in known.items()]
    first = next(iter(known))
    return "\n".join([f"usage: {program} {{{','.join(known)}}} [options]", "", *lines, "", f"Options of one: {program} {first} --help"])


def check_least(settings: object, least: float, names: Iterable[str]) -> None:
    """Raise `UserError` for the first option among `names` (`seed`, `ppo.sessions`) that is less than `least`."""
    for name in names:
        if (value := attrgetter(name)(settings)) < least:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}, wanted at least {least:g}")


def open_folder(out: Path, resume: bool | None) -> None:
    """Make the folder of a run. Raises `UserError` when it holds another one, none to go on with, or can't be written.

    `resume` is None for what can't go on.
    """
    try:
        used = out.exists() and any(out.iterdir())
        if used and not resume:
            raise UserError(f"{out}: is not empty, wanted a new folder{'' if resume is None else ' (or --resume)'}")
        if resume and not used:
            raise UserError(f"{out}: holds no run to go on with, wanted the folder of one that was begun (or no --resume)")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: can't be used ({error.strerror}), wanted a folder to write to") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out}: can't be used (Permission denied), wanted a folder to write to")
