"""What a run owns on this machine: recorded before or as it is made, so that the next run or `clean` can remove it after a kill -9.

Under `STATE_DIR` lie a lock file, which a run holds as long as it lives, and a folder for each run with its sockets and `owned.jsonl`.
A process is ours if its pid and its start time are recorded, or if its environment bears the run's random token. Nothing is ever removed by
the look of its name.
"""

import fcntl
import os
import re
import secrets
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, NoReturn, Self

import msgspec

from testbed.clock import now_s, utc_now
from testbed.docker import sweep
from testbed.errors import TestbedError, UserError
from testbed.units import ms_from_s

STATE_DIR = Path("/run/netllm-testbed")
TOKEN_VARIABLE = "NETLLM_TESTBED_TOKEN"
"""In the environment of each process of a run."""
KILL_TIMEOUT_S = 5.0
ORPHAN_TIMEOUT_S = 5.0
"""For the lock that a dead run's child still holds."""


class Header(msgspec.Struct, frozen=True, tag="header"):
    """First line of `owned.jsonl`."""

    run_id: str
    token: str
    boot_id: str
    pid: int
    start_ticks: int


class OwnedProcess(msgspec.Struct, frozen=True, tag="process"):
    """A process that the run started; `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int
    what: str


class OwnedContainers(msgspec.Struct, frozen=True, tag="containers"):
    """Docker containers that bear a label of the run's."""

    label: str


class ChangedSetting(msgspec.Struct, frozen=True, tag="setting"):
    """A kernel setting of the host that the run changes for a moment."""

    path: str
    before: str
    during: str


_Line = Header | OwnedProcess | OwnedContainers | ChangedSetting


@dataclass(frozen=True)
class Cleaned:
    """What was done about killed runs: a phrase for each thing that was removed, a sentence for each run whose record had to be kept."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def require_root() -> None:
    """Raise UserError unless this process is root."""
    if os.geteuid() != 0:
        why = "emulation makes network namespaces and interfaces"
        raise UserError(f"{why} and needs root, but runs as user {os.geteuid()}; use sudo, or --simulate")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM within; does nothing outside the main thread, which alone gets to see them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class Run:
    """Context manager: this process's claim to be the only run, and the record of what it makes. Cleans up after killed runs first.

    Within, SIGTERM raises SystemExit (unless somebody handles it already), so that everything is undone.
    """

    def __init__(self, run_id: str, state_dir: Path = STATE_DIR) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", run_id) or run_id.startswith("."):
            raise TestbedError(f"run id {run_id!r}, wanted letters, digits, dots, dashes and underscores")
        self.run_id = run_id
        self.token = secrets.token_hex(16)
        self.folder = state_dir / run_id
        self.removed: list[str] = []
        """What a killed run had left, and was removed on the way in."""
        self._state_dir = state_dir
        self._lock: int | None = None
        self._record: IO[bytes] | None = None
        self._handles_sigterm = False
        self._labels: list[str] = []

    def __enter__(self) -> Self:
        self._lock = _lock(self._state_dir)
        try:
            cleaned = _clean(self._state_dir)
            self.removed = cleaned.removed
            sys.stderr.writelines(f"note: {sentence}\n" for sentence in cleaned.kept)
            self.folder.mkdir(mode=0o755)
            self._record = open(self.folder / "owned.jsonl", "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
            self._write(Header(self.run_id, self.token, _boot_id(), os.getpid(), start_ticks(os.getpid()) or 0))
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _exit_on_signal)
                self._handles_sigterm = True
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _write(self, line: _Line) -> None:
        if self._record is None:
            raise TestbedError(f"run {self.run_id} is over, nothing can be made in its name")
        self._record.write(msgspec.json.encode(line) + b"\n")
        self._record.flush()

    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        """`environment` with the run's token, for each process that the run starts."""
        return {**environment, TOKEN_VARIABLE: self.token}

    def add_process(self, pid: int, what: str) -> None:
        """Record a process right after it was started (and before it was waited for)."""
        self._write(OwnedProcess(pid, start_ticks(pid) or 0, what))

    def add_containers(self, label: str) -> None:
        """Record the label of containers before the first is made."""
        self._write(OwnedContainers(label))
        self._labels.append(label)

    def remove_containers(self) -> None:
        """Remove those of all recorded labels. Raises `TestbedError` when docker can't be asked."""
        while self._labels:
            sweep(self._labels[-1])
            self._labels.pop()

    @contextmanager
    def changed(self, path: Path, value: str) -> Iterator[None]:
        """Within, the host's setting at `path` is `value`. Recorded, so that `clean` sets it back after a kill -9."""
        before = path.read_text().strip()
        setting = ChangedSetting(str(path), before, value)
        self._write(setting)
        try:
            path.write_text(value)
            yield
        finally:
            path.write_text(before)

    def kill_stragglers(self) -> list[str]:
        """Kill whatever of this run still lives; returns what that was."""
        return _kill(_living(self.token, []))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with undisturbed():
            try:
                if self._record:
                    self._undo(self._record)
            finally:
                if self._lock is not None:
                    os.close(self._lock)
                    self._lock = None
                if self._handles_sigterm:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _undo(self, record: IO[bytes]) -> None:
        self.kill_stragglers()
        record.close()
        self._record = None
        try:
            self.remove_containers()
        except TestbedError as error:
            raise TestbedError(_kept(self.folder, error)) from error
        shutil.rmtree(self.folder)


@contextmanager
def run_lock(run_id: str | None = None, state_dir: Path = STATE_DIR) -> Iterator[Run]:
    """Be the only run on this machine; without `run_id` the time and the pid make one. UserError while another run is under way."""
    with Run(run_id or f"{utc_now():%Y%m%dT%H%M%S}-{os.getpid()}", state_dir) as run:
        yield run


def clean(state_dir: Path = STATE_DIR) -> Cleaned:
    """Remove what killed runs left and nothing else. UserError while a run is under way."""
    lock = _lock(state_dir)
    try:
        return _clean(state_dir)
    finally:
        os.close(lock)


def _lock(state_dir: Path) -> int:
    """Take the lock; its descriptor (close-on-exec) holds it.

    Of a run killed while it started a process, the child holds the lock until it has become its program: that is waited for.
    """
    state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline_s = now_s() + ORPHAN_TIMEOUT_S
    while not _locked(lock):
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        if _may_live(holder) or now_s() > deadline_s:
            os.close(lock)
            where = f"process {holder or 'unknown'}, {state_dir / 'lock'}"
            raise UserError(f"another run is under way ({where}); wait for its end, or end it")
        time.sleep(0.01)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _may_live(holder: str) -> bool:
    """Whether the process that wrote its pid into the lock file may still run; a zombie doesn't."""
    return not holder.isdecimal() or _state(int(holder)) not in (None, "Z")


def _clean(state_dir: Path) -> Cleaned:
    cleaned = Cleaned()
    for folder in sorted(path for path in state_dir.iterdir() if path.is_dir()):
        lines = list(_read(folder / "owned.jsonl"))
        if lines and isinstance(lines[0], Header) and lines[0].boot_id == _boot_id():
            cleaned.removed.extend(_clean_run(lines[0], lines))
        try:  # unlike processes and settings, containers outlive a boot
            labels = [line.label for line in lines if isinstance(line, OwnedContainers)]
            cleaned.removed.extend(f"container {name}" for label in labels for name in sweep(label))
        except TestbedError as error:
            cleaned.kept.append(_kept(folder, error))
        else:
            shutil.rmtree(folder)
            cleaned.removed.append(f"state of run {folder.name}")
    return cleaned


def _kept(folder: Path, error: TestbedError) -> str:
    return f"{error}: containers of run {folder.name} may be left, so {folder} is kept for the next run or `clean` to try again"


def _clean_run(header: Header, lines: Sequence[_Line]) -> list[str]:
    """End and set back what the record of a run of this boot names."""
    removed = _kill(_living(header.token, [line for line in lines if isinstance(line, OwnedProcess)]))
    return removed + [f"change of {line.path}" for line in lines if isinstance(line, ChangedSetting) and _set_back(line)]


def _read(path: Path) -> Iterator[_Line]:
    """Lines of a record up to the first torn one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    decoder = msgspec.json.Decoder(_Line)
    for line in data.split(b"\n"):
        try:
            yield decoder.decode(line)
        except msgspec.DecodeError:
            return


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When process `pid` was started, in clock ticks since boot; None if there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _state(pid: int) -> str | None:
    """Of process `pid`: R, S, D, Z, ... as in proc(5); None if there is none."""
    fields = _stat(pid)
    return fields[0] if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return stat.rpartition(")")[2].split()


def _living(token: str, recorded: list[OwnedProcess]) -> list[OwnedProcess]:
    """Processes that bear `token` or are recorded and still the same; never this one."""
    found = {line.pid: line for line in recorded if line.start_ticks and start_ticks(line.pid) == line.start_ticks}
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in found:
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                pid = int(entry.name)
                found[pid] = OwnedProcess(pid, start_ticks(pid) or 0, (entry / "comm").read_text().strip())
        except OSError:  # it ended meanwhile
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def _kill(processes: list[OwnedProcess]) -> list[str]:
    """SIGKILL each that is still the same process, wait until they are gone."""
    killed = []
    with _pidfds(processes) as descriptors:
        for process, descriptor in descriptors:
            if start_ticks(process.pid) == process.start_ticks:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                killed.append(f"process {process.pid} ({process.what})")
        deadline_s = now_s() + KILL_TIMEOUT_S
        for process, descriptor in descriptors:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(ms_from_s(max(deadline_s - now_s(), 0))):
                raise TestbedError(f"process {process.pid} ({process.what}) did not end within {KILL_TIMEOUT_S} s of SIGKILL")
    return killed


@contextmanager
def _pidfds(processes: list[OwnedProcess]) -> Iterator[list[tuple[OwnedProcess, int]]]:
    """A descriptor for each process that still lives."""
    opened: list[tuple[OwnedProcess, int]] = []
    try:
        for process in processes:
            try:
                opened.append((process, os.pidfd_open(process.pid)))
            except ProcessLookupError:
                continue
        yield opened
    finally:
        for _, descriptor in opened:
            os.close(descriptor)


def _set_back(setting: ChangedSetting) -> bool:
    """Restore a setting that still is as the run had set it."""
    path = Path(setting.path)
    if setting.before == setting.during or path.read_text().split() != setting.during.split():
        return False
    path.write_text(setting.before)
    return True
