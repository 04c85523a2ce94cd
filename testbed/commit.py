"""Which commit of this project is running."""

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def checkout_commit() -> str:
    """The checkout's commit, with `+` when files differ from it; empty outside git."""
    git = ["git", "--no-optional-locks", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if dirty else "")
