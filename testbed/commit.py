"""What made a result: the commit of this project that is running, and the command."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("--out",)
"""Options that only say where results go."""
RESUMED = "--resume"


def checkout_commit() -> str:
    """The checkout's commit, with `+` when files differ from it; empty outside git."""
    git = ["git", "--no-optional-locks", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if dirty else "")


def command_line(program: str, arguments: Sequence[str]) -> str:
    """How to make the same again, in any folder: without `--out` and `--resume`."""
    kept, skip = [program], False
    for word in arguments:
        if not skip and word != RESUMED and not word.startswith(tuple(f"{name}=" for name in FOLDERS)) and word not in FOLDERS:
            kept.append(word)
        skip = word in FOLDERS
    return shlex.join(kept)
