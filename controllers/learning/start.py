"""What a training checks before it begins: numbers that make sense, and a folder that it may write to."""

import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from testbed.errors import UserError


def check_least(settings: object, least: float, names: Iterable[str]) -> None:
    """Raise `UserError` for the first option among `names` (`seed`, `ppo.sessions`) that is less than `least`."""
    for name in names:
        if (value := attrgetter(name)(settings)) < least:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}, wanted at least {least:g}")


def open_folder(out: Path, resume: bool) -> None:
    """Make the folder of a run. Raises `UserError` when it holds another one, none to go on with, or can't be written."""
    try:
        used = out.exists() and any(out.iterdir())
        if used and not resume:
            raise UserError(f"{out}: is not empty, wanted a new folder (or --resume)")
        if resume and not used:
            raise UserError(f"{out}: holds no run to go on with, wanted the folder of one that was begun (or no --resume)")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: can't be used ({error.strerror}), wanted a folder to write to") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out}: can't be used (Permission denied), wanted a folder to write to")
