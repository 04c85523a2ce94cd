"""Who called: the person behind sudo owns the results and runs the policies. And processes that die with the one that starts them."""

import ctypes
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.errors import UserError

User = tuple[int, int]
"""User id and group id."""

DIE_WITH_STARTER = ("setpriv", "--pdeathsig", "KILL")
PR_SET_PDEATHSIG = 1


def invoking_user() -> User | None:
    """The user who typed sudo; None when the process runs as the caller already."""
    try:
        return (int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])) if os.geteuid() == 0 else None
    except (KeyError, ValueError):
        return None


def expanded(path: str | Path) -> Path:
    """A path that a user gave, with `~` and `~name` made a home folder. Raises `UserError` where nobody knows of such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: nobody knows the home folder {Path(path).parts[0]}, wanted a user of this machine") from None


def popen_as(user: User | None, argv: Sequence[str], **keywords: Any) -> subprocess.Popen[bytes]:
    """Start a process as `user`, without root's groups; as ourselves when `user` is None."""
    if user:
        environment = {**(keywords.pop("env", None) or os.environ), "HOME": home(user)}
        keywords |= {"user": user[0], "group": user[1], "extra_groups": [], "env": environment}
    return subprocess.Popen(argv, **keywords)


def popen_tied(user: User | None, argv: Sequence[str], **keywords: Any) -> subprocess.Popen[bytes]:
    """`popen_as`, and the kernel kills the process when the thread that starts it ends, as by kill -9 of us (`PR_SET_PDEATHSIG`).

    Changing the user forgets the death signal, therefore `setpriv` sets it after that; exec keeps it, and the process id.
    """
    return popen_as(user, [*DIE_WITH_STARTER, *argv], **keywords)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; at once if its parent is no longer `parent_pid`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def home(user: User) -> str:
    """The user's home folder; `/` when there is no such user any more."""
    try:
        return pwd.getpwuid(user[0]).pw_dir
    except KeyError:
        return "/"
