"""Executors as Docker containers, where a Docker engine runs: limits that hold, and a host's namespace that outlives its executor.

Docker can't put a container into a network namespace of ours, but it can put one beside another. So a *pause* container, which sleeps, owns
the namespace; Mininet's host lives in that (`hosts.make_host`), and executors come and go beside it without the wires being touched. The
image holds nothing but empty folders: this machine's /usr, python and checkout are mounted into it, read-only.
"""

import io
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.docker import docker
from testbed.netns.owned import Run
from testbed.user import User

IMAGE = "netllm-testbed-executor:bind"
LABEL = "netllm-testbed"
MEMORY = "512m"
"""Of an executor; one that takes more is killed by the kernel."""
MOST_PIDS = "256"
_FOLDERS = ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "root", "home", "work", "var", "opt", "srv", "mnt")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


class Containers:
    """The containers of a run. Each bears the run's token as a label, so that `owned.clean` finds it after a kill -9."""

    def __init__(self, run: Run) -> None:
        self._label = f"{LABEL}={run.token}"
        self._prefix = f"netllm-{run.token[:8]}"
        self._count = 0
        self._run = run
        run.add_containers(self._label)
        docker("import", *_changes(), "-", IMAGE, input=_image())

    def pause(self, host: str) -> int:
        """The pid whose network namespace is the host's."""
        name = f"{self._prefix}-{host}"
        docker(
            "run", "--detach", "--name", name, "--label", self._label, "--network", "none", *_mounts(), IMAGE, "/usr/bin/sleep", "infinity"
        )
        return int(docker("inspect", "--format", "{{.State.Pid}}", name))

    def command(self, host: str, argv: Sequence[str], user: User | None, env: Mapping[str, str], folder: Path) -> tuple[str, list[str]]:
        """Name of a new executor beside the host's pause container, and the command that runs it until it ends."""
        self._count += 1
        name = f"{self._prefix}-{host}-{self._count}"
        limits = ["--memory", MEMORY, "--memory-swap", MEMORY, "--pids-limit", MOST_PIDS, "--cap-drop", "ALL", "--read-only"]
        safety = ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
        identity = ["--user", f"{user[0]}:{user[1]}"] if user else []
        settings = [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        beside = ["--network", f"container:{self._prefix}-{host}", "--workdir", str(Path.cwd())]
        mounts = [*_mounts(), "--volume", f"{folder}:{folder}"]
        run = ["docker", "run", "--name", name, "--label", self._label]
        return name, [*run, *beside, *limits, *safety, *identity, *settings, *mounts, IMAGE, *argv]

    def ended_by(self, name: str) -> str:
        """How a container ended; then it is removed."""
        told = docker("inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", name).split()
        docker("rm", "--force", name)
        return "ran out of memory" if told[0] == "true" else f"ended with code {told[1]}"

    def close(self) -> None:
        """Remove them all. Raises `TestbedError` when docker can't be asked; the run's record stays then, for `clean`."""
        self._run.remove_containers()


def _mounts() -> list[str]:
    """What a container sees of this machine, read-only."""
    shown = {
        "/usr",
        "/etc/ld.so.cache",
        "/etc/passwd",
        "/etc/group",
        sys.prefix,
        sys.base_prefix,
        str(Path.cwd()),
        str(Path(__file__).parents[2]),
    }
    kept = [
        path for path in sorted(shown) if os.path.exists(path) and not any(path.startswith(f"{other}/") for other in shown if other != path)
    ]
    return [word for path in kept for word in ("--volume", f"{path}:{path}:ro")]


def _changes() -> list[str]:
    return ["--change", f"LABEL {LABEL}=image"]


def _image() -> bytes:
    """A tar file of empty folders and the links of a merged /usr."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, target in _LINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return data.getvalue()
