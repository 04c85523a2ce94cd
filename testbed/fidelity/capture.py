"""Headers of all packets at an interface inside a host, stamped by the kernel: one tcpdump, whose ring the kernel fills meanwhile."""

import gzip
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.fidelity.evidence import Capture
from testbed.units import ms_from_s

HEAD_BYTES = 96
"""Of each frame: Ethernet, IP and TCP with all options, or 46 bytes of a datagram."""
RING_KIB = 16_384
"""Holds what a second of 100 Mbit/s brings ten times over."""
RETIRE_S = 1.5
"""A packet is in the ring for up to a second before tcpdump sees it (libpcap's time-out); what is there when it ends is lost."""
READY_S = 20.0
STOP_S = 10.0
_COUNTS = ("captured", "received by filter", "dropped by kernel")


def require_tcpdump() -> None:
    """UserError where there is none."""
    if not shutil.which("tcpdump"):
        raise UserError("fidelity needs tcpdump, which is not installed, wanted Debian's package tcpdump: run scripts/setup")


class Tap:
    """A capture under way. Made, it captures; `stop` ends it."""

    def __init__(self, popen: Callable[..., subprocess.Popen[bytes]], interface: str, path: Path) -> None:
        self._interface, self._path, self._said = interface, path, b""
        options = ["-nn", "-s", str(HEAD_BYTES), "-B", str(RING_KIB), "--time-stamp-precision=nano"]
        command = ["tcpdump", "-i", interface, *options, "-w", "-"]  # our own descriptor: tcpdump gives up root, which owns the folder
        with path.open("xb") as file:
            self._process = popen(command, stdout=file, stderr=subprocess.PIPE)

    def wait_ready(self) -> None:
        """Block until packets are captured. TestbedError when it ends instead."""
        assert self._process.stderr
        deadline_s = now_s() + READY_S
        poll = select.poll()
        poll.register(self._process.stderr, select.POLLIN)
        while b"listening on" not in self._said:
            ready = poll.poll(ms_from_s(max(deadline_s - now_s(), 0)))
            piece = self._process.stderr.read1() if ready else b""  # type: ignore[attr-defined]
            if not piece:
                raise TestbedError(f"tcpdump at {self._interface} did not start: {self._text() or f'silent for {READY_S:g} s'}")
            self._said += piece

    def stop(self) -> Capture:
        """End it; to be called `RETIRE_S` after the last packet that matters."""
        self._process.send_signal(signal.SIGTERM)
        try:
            _, rest = self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TestbedError(f"tcpdump at {self._interface} did not end within {STOP_S:g} s of SIGTERM") from None
        self._said += rest
        found = [re.search(rf"(\d+) packets? {what}", self._text()) for what in _COUNTS]
        if self._process.returncode or not all(found):
            raise TestbedError(f"tcpdump at {self._interface} ended with code {self._process.returncode}: {self._text()}")
        captured, received, dropped = (int(match[1]) for match in found if match)
        return Capture(file=self._path.name, interface=self._interface, captured=captured, received=received, dropped=dropped)

    def kill(self) -> None:
        """End it at once; callable at any time."""
        self._process.kill()
        self._process.wait()

    def _text(self) -> str:
        return " ".join(self._said.decode(errors="replace").split())


def compress(folder: Path, capture: Capture) -> Capture:
    """Its file as `.gz`, which scapy and tcpdump's family read as well."""
    plain = folder / capture.file
    packed = plain.with_name(f"{plain.name}.gz")
    try:
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=4) as sink:
            shutil.copyfileobj(source, sink)
        plain.unlink()
    except OSError as error:
        raise TestbedError(f"{packed}: {error.strerror}") from error
    fields: dict[str, Any] = {name: getattr(capture, name) for name in capture.__struct_fields__}
    return Capture(**{**fields, "file": packed.name})
