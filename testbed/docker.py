"""The docker command: whether an engine answers, what it is told, and what bears a label removed."""

import shutil
import subprocess

from testbed.errors import TestbedError

ANSWER_S = 60.0
LOOK_S = 5.0


def engine_fault() -> str:
    """Why containers can't be used here; nothing when they can."""
    if not shutil.which("docker"):
        return "there is no docker command"
    try:
        done = subprocess.run(["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, timeout=LOOK_S, check=False)
    except subprocess.TimeoutExpired:
        return f"docker did not answer in {LOOK_S:g} s"
    return "" if done.returncode == 0 and done.stdout.strip() else "no docker engine answers"


def sweep(label: str) -> list[str]:
    """Remove all containers that bear `label`; their names. Raises `TestbedError` when the engine can't be asked: some may be there."""
    names = docker("ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}").split()
    if names:
        docker("rm", "--force", *names)
    return names


def docker(*arguments: str, input: bytes | None = None) -> str:
    """What `docker ARGUMENTS` prints. Raises `TestbedError` when it fails."""
    try:
        done = subprocess.run(["docker", *arguments], input=input, capture_output=True, timeout=ANSWER_S, check=False)
    except FileNotFoundError:
        raise TestbedError("there is no docker command") from None
    except subprocess.TimeoutExpired:
        raise TestbedError(f"docker {arguments[0]} did not answer in {ANSWER_S:g} s") from None
    if done.returncode:
        raise TestbedError(f"docker {arguments[0]} ended with code {done.returncode}: {done.stderr.decode(errors='replace').strip()[:500]}")
    return done.stdout.decode().strip()
