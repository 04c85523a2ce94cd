"""`scripts/guest`: a real kernel boots, what runs in it is heard, nothing stays; and the kernel's links in it are what they should be.

The first test builds the image where none is cached, which takes one or two minutes.
"""

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import descendants

from testbed.guest import image

CHECKOUT = Path(__file__).parents[2]
LINK_TESTS = ("tests/emulation/test_link.py", "tests/emulation/test_kernel_links.py")
LACKING = [program for program in ("qemu-system-x86_64", "debootstrap", "cpio") if not shutil.which(program)]
IS_DEBIAN = platform.machine() == "x86_64" and platform.freedesktop_os_release().get("ID") == "debian"

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(LACKING), reason=f"the guest needs {', '.join(LACKING)} (scripts/setup ci)"),
    pytest.mark.skipif(not IS_DEBIAN, reason="the guest is built from the apt sources of a Debian host on x86_64"),
    pytest.mark.skipif("NETLLM_TESTBED_GUEST" in os.environ, reason="this is a guest"),
]


class Guest:
    """Runs of `scripts/guest`; all processes they start are told by a mark in their environment."""

    def __init__(self) -> None:
        self.mark = f"GUEST_TEST_{uuid.uuid4().hex}"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, CHECKOUT / "scripts" / "guest", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, self.mark: "1"})

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, errors = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    def left(self) -> dict[int, str]:
        """Processes that still live."""
        return descendants(self.mark)

    def wait_for_none(self) -> None:
        """What is being killed takes a moment to die."""
        deadline = time.monotonic() + 20
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.left() == {}


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    for pid in made.left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_links_of_the_kernel_conform_in_a_real_kernel(guest):
    """Netem, HTB, CoDel; Mininet's TCLink behind Open vSwitch's kernel data path."""
    done = guest.run("--", "python3", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-k", "kernel", *LINK_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = {what: int(count) for count, what in re.findall(r"(\d+) (passed|skipped|failed)", done.stdout.splitlines()[-1])}
    assert counted["passed"] > 40, done.stdout
    assert counted.get("skipped", 0) <= 8, done.stdout


def test_output_exit_code_and_what_was_left_come_back(guest, tmp_path):
    script = "echo to-out; echo to-err >&2; uname -r; mkdir $GUEST_OUT/a; head -c 1000000 /dev/zero >$GUEST_OUT/a/b; exit 7"
    done = guest.run("--out", str(tmp_path / "out"), "--", "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    first, kernel = done.stdout.splitlines()
    assert first == "to-out" and kernel in image.recipe().kernel and kernel.endswith("cloud-amd64")
    assert "to-err" in done.stderr and "to-err" not in done.stdout
    assert (tmp_path / "out" / "a" / "b").stat().st_size == 1_000_000
    assert guest.left() == {}


def test_a_panic_is_told(guest):
    done = guest.run("--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode == 1 and "Kernel panic" in done.stderr
    assert guest.left() == {}


def test_a_command_that_takes_too_long_is_ended(guest):
    done = guest.run("--clock", "real", "--timeout-s", "15", "--", "sleep", "1000")
    assert done.returncode == 1 and "not done within 15 s" in done.stderr
    assert guest.left() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_machine_outlives_the_script(guest, number):
    with guest.start("--clock", "real", "--", "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout.readline() == "up\n"
        assert any("qemu" in command for command in guest.left().values())
        process.send_signal(number)
        process.wait()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    guest.wait_for_none()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_image(guest, tmp_path, number):
    with guest.start("--cache", str(tmp_path), "--", "true") as process:
        while not list(tmp_path.glob("building-*/root/debootstrap")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate()
    guest.wait_for_none()
    assert list(tmp_path.glob("guest-*")) == []
    assert list(tmp_path.glob("building-*")) == [] or number == signal.SIGKILL  # the next build removes it
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    shutil.rmtree(tmp_path)
