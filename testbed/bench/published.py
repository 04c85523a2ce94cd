"""NetLLM's published ABR code and the environment that it runs in: a virtual environment of its own, made once, with the packages it pins.

Its README wants torch 2.1.0 on Python 3.8. Here both sides get the same torch and Python, so that the same kernels compute; transformers
and peft, whose model code and LoRA are part of the method, are NetLLM's.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError, UserError

FOLDER = "adaptive_bitrate_streaming"
PINS = (
    "transformers==4.34.1",
    "peft==0.6.2",
    "numpy==1.24.4",
    "munch==4.0.0",
    "accelerate==0.24.1",  # peft's own requirement has no upper bound; later ones need what transformers 4.34.1 excludes
)
READY = "ready"
PIP_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Checkout:
    """NetLLM's code on this machine."""

    folder: Path
    commit: str
    """Empty when it is no git checkout."""
    changed: bool
    """Whether its ABR model code differs from that commit."""


def checkout(folder: Path) -> Checkout:
    """Look at it. Raises `UserError` when the ABR code is not there."""
    code = folder / FOLDER / "plm_special"
    if not (code / "models" / "rl_policy.py").is_file():
        raise UserError(f"--netllm {folder}: has no {FOLDER}/plm_special/models/rl_policy.py, wanted a checkout of NetLLM")
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    return Checkout(folder.resolve(), commit, bool(_git(folder, "status", "--porcelain", "-uno", "--", str(code.resolve()))))


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={folder.resolve()}", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def pins() -> tuple[str, ...]:
    """What is installed: the torch of this environment, and what NetLLM pins."""
    return (f"torch=={importlib.metadata.version('torch').partition('+')[0]}", *PINS)


def environment(cache: Path, wanted: Sequence[str] | None = None) -> Path:
    """The Python of a virtual environment with those packages, made the first time. Raises `TestbedError` when it can't be made."""
    wanted = tuple(wanted or pins())
    folder = cache / f"netllm-published-{hashlib.sha256(' '.join((sys.version, *wanted)).encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / READY).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], "a virtual environment")
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], " ".join(wanted))
        (folder / READY).touch()
    return python


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_S)
        lines = [] if done.returncode == 0 else [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    except (OSError, subprocess.TimeoutExpired) as error:
        lines = [str(error)]
    if lines:
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise TestbedError(f"NetLLM's environment can't be made ({reason[:200]}), wanted {what}")
