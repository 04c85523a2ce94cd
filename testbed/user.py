"""Who called: the person behind sudo owns the results and runs the policies."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """A user and group id."""

    uid: int
    gid: int


def invoking_user() -> User | None:
    """The user who typed sudo; None when the process runs as the caller already."""
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit() and os.environ.get("SUDO_GID", "").isdigit():
        return User(int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
    return None
