"""Fetch a catalogued set: sparse git at the pinned commit, our split rule, hashes checked, then one rename into the data folder.

Nothing half-done is ever visible: all work happens in `.fetch-*` below the data folder, and the next fetch removes what a killed one left.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed.errors import TestbedError
from traces.catalog import CatalogSet, hash_files, split_files, split_folder
from traces.splits import apply_rule

REACH_TIMEOUT_S = 15.0
"""How long an upstream may take to answer at all."""
GIT_TIMEOUT_S = 900.0
"""How long one git step may take; the largest set is 20 MB."""


def fetch_set(entry: CatalogSet, data: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Fetch `entry` into the data folder `data` and return its folder there; `say` gets a line for each step.

    Raises `TestbedError` when upstream can't be reached, when its files are not the catalogued ones, or when the folder exists already.
    """
    target = data / entry.folder
    if target.exists():
        raise TestbedError(f"fetching {entry.name}: {target} exists already, wanted it absent: remove it first")
    try:
        return _fetch(entry, data, target, say)
    except OSError as error:
        raise TestbedError(f"fetching {entry.name}: {error.filename or data}: {error.strerror}, wanted to write there") from error


def _fetch(entry: CatalogSet, data: Path, target: Path, say: Callable[[str], None]) -> Path:
    _make_folder(data)
    with _alone(data), tempfile.TemporaryDirectory(prefix=".fetch-", dir=data, ignore_cleanup_errors=True) as work:
        checkout, stage = Path(work) / "checkout", Path(work) / "stage"
        _check_out(entry, checkout, say)
        say(f"{entry.name}: applying the split rule {entry.rule!r} and checking hashes")
        _fill_stage(entry, checkout, stage)
        _give_to_owner(stage, data)
        _make_folder(target.parent)
        os.rename(stage / entry.folder, target)
    return target


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """One fetch at a time in a data folder; what a killed one left is removed."""
    with open(data / ".fetch.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TestbedError(f"another fetch is filling {data}, wanted to be alone: wait for it to end") from error
        _give_to_owner(data / lock.name, data)
        for left in data.glob(".fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _check_out(entry: CatalogSet, checkout: Path, say: Callable[[str], None]) -> None:
    """The catalogued paths of the upstream repository at the pinned commit, and nothing else."""
    upstream = entry.upstream
    checkout.mkdir()
    _git(entry, ["ls-remote", "--exit-code", upstream.url, "HEAD"], checkout, REACH_TIMEOUT_S)
    say(f"{entry.name}: fetching {', '.join(entry.paths)} of {upstream.url} at {upstream.commit[:12]}")
    _git(entry, ["init", "--quiet"], checkout)
    _git(entry, ["remote", "add", "origin", upstream.url], checkout)
    _git(entry, ["sparse-checkout", "set", "--no-cone", *(f"/{path}" for path in entry.paths)], checkout)
    _git(entry, ["fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", upstream.commit], checkout)
    _git(entry, ["checkout", "--quiet", "--detach", upstream.commit], checkout)
    for path in entry.paths:
        if not (checkout / path).exists():
            raise TestbedError(f"fetching {entry.name}: {upstream.url} has no {path} at {upstream.commit[:12]}")


def _git(entry: CatalogSet, arguments: list[str], folder: Path, timeout_s: float = GIT_TIMEOUT_S) -> None:
    """Run git in `folder`; its whole process group ends with it, whatever happens."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        git = subprocess.Popen(
            ["git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *arguments],
            cwd=folder,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise TestbedError(f"fetching {entry.name}: git is not installed, wanted it on PATH") from error
    try:
        _, messages = git.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(git.pid, signal.SIGKILL)
        git.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TestbedError(f"fetching {entry.name}: git {arguments[0]} of {entry.upstream.url} took over {timeout_s:.0f} s") from error
        raise
    if git.returncode:
        lines = [line for line in messages.splitlines() if line.startswith(("fatal:", "error:"))] or messages.splitlines() or ["no message"]
        raise TestbedError(f"fetching {entry.name}: git {arguments[0]} of {entry.upstream.url} failed ({lines[0].strip()})")


def _fill_stage(entry: CatalogSet, checkout: Path, stage: Path) -> None:
    """Copy the files of each split to where they belong below `stage`, and check that they are the catalogued ones."""
    chosen = apply_rule(entry, checkout)
    for split in entry.splits:
        folder = split_folder(stage, entry, split)
        for name, source in chosen.get(split.name, {}).items():  # a part of another split has none of its own
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    for split in entry.splits:
        folder = split_folder(stage, entry, split)
        files = split_files(folder, split)
        seen = hash_files(folder, files)
        if seen != split.sha256:
            found = f"split {split.name!r} has {len(files)} files with sha256 {seen[:12]}"
            raise TestbedError(f"fetching {entry.name}: {found}, wanted {split.files} with {split.sha256[:12]}; nothing was kept")


def _make_folder(folder: Path) -> None:
    """Make `folder` and what lacks above it, each owned like the folder it is in."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        _give_to_owner(each, each.parent)


def _give_to_owner(made: Path, like: Path) -> None:
    """Under sudo, hand what was made to the owner of `like`, so that the user can remove it."""
    if os.geteuid() == 0:
        owner = like.stat()
        for path in (made, *made.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
