"""Debian's packages: which are missing, and how they are installed. Standard library only."""

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from testbed.errors import TestbedError, UserError
from testbed.progress import CommandFailed, Progress

LOCK_WAIT_S = 600.0
"""How long to wait for another package manager (a fresh machine often updates itself just then)."""
_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock")


def missing(wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that are not installed, or not wholly. UserError on a system without dpkg."""
    if not wanted:
        return []
    if not shutil.which("dpkg-query"):
        raise UserError("this system has no dpkg-query, wanted Debian 12 or 13 or Ubuntu 24.04; elsewhere --simulate runs without root")
    command = ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *wanted]
    query = subprocess.run(command, capture_output=True, text=True, check=False)
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install packages without asking; package lists are fetched only when they are needed. Waits for other package managers."""
    env = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S:.0f}", *packages]
    shown = ("Get:", "Unpacking", "Setting up")
    _wait_for_apt(progress)
    progress.run("dpkg: finish what an interrupted run left", ["dpkg", "--configure", "-a"], env=env)
    fresh = not _known_to_apt(packages)
    if fresh:
        progress.run("apt-get update", ["apt-get", "update"], ("Get:",), env=env)
    title = f"apt-get install {' '.join(packages)}"
    try:
        progress.run(title, install, shown, env=env)
    except CommandFailed:
        if fresh:
            raise
        progress.run("apt-get update (the package lists may be old)", ["apt-get", "update"], ("Get:",), env=env)
        progress.run(title, install, shown, env=env)


def _known_to_apt(packages: Sequence[str]) -> bool:
    env = {**os.environ, "LC_ALL": "C"}
    policy = subprocess.run(["apt-cache", "policy", *packages], capture_output=True, text=True, check=False, env=env)
    return len(re.findall(r"^  Candidate: (?!\(none\))", policy.stdout, re.MULTILINE)) == len(packages)


def _wait_for_apt(progress: Progress) -> None:
    while busy := [path for path in _LOCKS if _held(path)]:
        if progress.elapsed_s > LOCK_WAIT_S:
            raise TestbedError(f"another package manager has held {busy[0]} for {LOCK_WAIT_S:.0f} s; start again when it is done")
        progress.say(f"waiting for another package manager, which holds {busy[0]}")
        time.sleep(5)


def _held(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
