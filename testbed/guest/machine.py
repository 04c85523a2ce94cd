"""Boots a guest, runs one command in a copy of the checkout, hands its output on, and brings back what it left. Standard library only."""

import io
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.guest.image import CHECKOUT, Image
from testbed.user import invoking_user, popen_as, popen_tied

PROGRAM = "qemu-system-x86_64"
Clock = Literal["virtual", "real"]
CLOCKS: dict[Clock, tuple[str, ...]] = {
    "virtual": ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off", "-rtc", "base=utc,clock=vm"),
    "real": ("-accel", "tcg,thread=multi", "-smp", str(min(len(os.sched_getaffinity(0)), 4))),
}
"""`virtual`: one nanosecond passes with each instruction, and nothing while all sleep: timing doesn't depend on the host's load.
`real`: the host's clock and several processors, for what only has to work."""
CPU = "max,-erms,-fsrm"
"""Without the two, Linux copies eight bytes at an instruction instead of one."""
MEMORY = "2G"
APPEND = "console=ttyS0 quiet panic=-1 no_timer_check nvme_core.io_timeout=4000000 nvme_core.admin_timeout=4000000 rdinit=/sbin/guestinit"
"""`no_timer_check`: on a busy host the kernel would find its timer wanting and panic. The time-outs (in seconds): the virtual clock runs
as fast as it can while the guest waits for its disk. Therefore its root is in memory, and the checkout is read before the command runs."""
PORTS = ("stdout", "stderr", "status", "out")
"""In the order in which `init.sh` knows them."""
SCRATCH = "/var/tmp"
"""Disk, where /tmp may be memory."""
TAIL_BYTES = 8_000
PADDING_BYTES = 1 << 20
"""After the tar of the checkout, so that a whole number of blocks can be read past its end."""


@dataclass
class Heard:
    """What the guest and QEMU said that is not the command's output."""

    tails: dict[str, bytes] = field(default_factory=lambda: dict.fromkeys(("status", "console", "qemu"), b""))

    def add(self, name: str, data: bytes) -> None:
        """More of it; the end is kept."""
        self.tails[name] = (self.tails[name] + data)[-TAIL_BYTES:]

    def lines(self, name: str) -> list[str]:
        """The last of what `name` said."""
        return [line.strip() for line in self.tails[name].decode(errors="replace").splitlines() if line.strip()]

    def exit_code(self) -> int:
        """The command's. TestbedError when it never got that far."""
        status = self.lines("status")
        if status and status[-1].startswith("exit "):
            return int(status[-1].removeprefix("exit "))
        panic = next((line for line in self.lines("console") if "Kernel panic" in line), None)
        if panic:
            raise TestbedError(f"the guest's kernel gave up: {panic}")
        step = "ended before the command did" if "booted" in status else "did not boot"
        last = [*self.lines("qemu"), *self.lines("console")][-5:]
        raise TestbedError(f"the guest {step}; the last it said: {' / '.join(last) or 'nothing'}")


def run(image: Image, lock: int, command: Sequence[str], clock: Clock, timeout_s: float, out: Path) -> int:
    """Run `command` in the guest; its exit code. `out` is made when the command left something.

    TestbedError: the guest did not boot, panicked, or was not done in time. However this ends, QEMU ends with it.
    """
    if not shutil.which(PROGRAM):
        raise UserError(f"{PROGRAM} is not installed, wanted Debian's package qemu-system-x86")
    with ExitStack() as stack:
        checkout, left = (stack.enter_context(tempfile.TemporaryFile(dir=SCRATCH)) for _ in range(2))  # without a name: nothing stays
        pack(CHECKOUT, command, checkout)
        streams = {name: stack.enter_context(_pipe()) for name in (*PORTS, "console", "qemu")}
        argv = arguments(image, checkout.fileno(), clock, {name: write for name, (_, write) in streams.items()})
        kept = [lock, checkout.fileno(), *(write for _, write in streams.values())]
        process = popen_tied(None, argv, stdin=subprocess.DEVNULL, stdout=kept[-1], stderr=kept[-1], pass_fds=kept)
        try:
            for _, write in streams.values():
                os.close(write)
            heard = _follow({name: read for name, (read, _) in streams.items()}, now_s() + timeout_s, timeout_s, left)
        finally:
            process.kill()
            process.wait()
        code = heard.exit_code()
        if left.tell():
            unpack(left, out)
    return code


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Its two ends; the writing one is closed by who uses it."""
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)


def arguments(image: Image, checkout: int, clock: Clock, ports: dict[str, int]) -> list[str]:
    """QEMU's command line; `checkout` is a descriptor, `ports` are those that it writes to."""
    argv = [PROGRAM, "-M", "q35,hpet=off", "-cpu", CPU, "-m", MEMORY, *CLOCKS[clock]]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none", "-nic", "none"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.root), "-append", APPEND]
    argv += ["-drive", f"id=checkout,if=none,format=raw,file=/dev/fd/{checkout},readonly=on", "-device", "nvme,serial=1,drive=checkout"]
    argv += ["-serial", f"file:/dev/fd/{ports['console']}"]
    argv += ["-device", "virtio-serial-pci"]
    for number, name in enumerate(PORTS, 1):
        argv += ["-chardev", f"file,id={name},path=/dev/fd/{ports[name]}", "-device", f"virtserialport,chardev={name},nr={number}"]
    return argv


def pack(checkout: Path, command: Sequence[str], archive: BinaryIO) -> None:
    """The checkout as a tar: what git tracks, and what it doesn't know yet and doesn't ignore, as it lies there; and the command."""
    ask = ["git", "-c", "safe.directory=*", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(ask, capture_output=True, check=False)
    if listed.returncode != 0:
        seen = listed.stderr.decode(errors="replace").strip()
        raise UserError(f"{checkout} is no git checkout ({seen}), wanted one to copy to the guest")
    script = f"exec {shlex.join(command)}\n".encode()
    member = tarfile.TarInfo(".guest-command")
    member.size = len(script)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(member, io.BytesIO(script))
        for name in sorted(set(os.fsdecode(listed.stdout).split("\0"))):
            if name and (checkout / name).is_file():
                tar.add(checkout / name, name, filter=_of_root)
    archive.truncate(archive.tell() + PADDING_BYTES)
    archive.flush()


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def unpack(archive: BinaryIO, out: Path) -> None:
    """Into `out`, which is made, as the user's who typed sudo."""
    archive.seek(0)
    user = invoking_user()
    try:
        out.mkdir(parents=True)
        if user:
            os.chown(out, *user)
    except OSError as error:
        raise UserError(f"--out {out} can't be made: {error.strerror}, wanted a folder that can") from error
    command = ["tar", "--no-same-owner", "-C", str(out), "-x"]
    with popen_as(user, command, stdin=archive, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate()
    if process.returncode != 0:
        raise TestbedError(f"what the command left can't be unpacked into {out}: {errors.decode(errors='replace').strip()}")


def _follow(reads: dict[str, int], deadline_s: float, timeout_s: float, left: BinaryIO) -> Heard:
    """Hand the command's output on until QEMU has closed everything."""
    heard = Heard()
    with selectors.DefaultSelector() as selector:
        sinks = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer, "out": left}
        for name, read in reads.items():
            selector.register(read, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(max(deadline_s - now_s(), 0))
            if not ready:
                raise TestbedError(f"the command was not done within {timeout_s:g} s on the host's clock; --timeout-s gives it more")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                elif key.data in sinks:
                    sinks[key.data].write(data)
                    sinks[key.data].flush()
                else:
                    heard.add(key.data, data)
    return heard
