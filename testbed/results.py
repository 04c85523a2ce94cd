"""The result folder of a run: written while it runs. All else in it is made from its `events.jsonl` (`testbed/report/build.py`)."""

import contextlib
import os
import threading
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from testbed.clock import utc_now
from testbed.errors import TestbedError, UserError
from testbed.records import EndRow, Event, RunHeader, TraceRow
from testbed.units import bits_from_bytes
from testbed.user import User, invoking_user
from traces.trace import RateTrace, Trace

_MOST_POINTS = 2000
"""A trace is stored for the figures with at most this many segments."""


class ResultFolder:
    """`results/<UTC time>-<task>/` while a run goes on. Every appended row is in the file when `append` returns, so kill -9 loses none."""

    def __init__(self, path: Path, owner: User | None) -> None:
        self.path = path
        self.owner = owner
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._file = (path / "events.jsonl").open("xb")
        self._fault = ""
        """Why a write failed. Behind what may be half a line nothing more is written: so it is the last one, which readers forgive."""

    @classmethod
    def create(cls, base: Path, header: RunHeader, now: datetime) -> "ResultFolder":
        """Make a new folder below `base`, write the header and `experiment.toml`, and point `base/latest` at it. Never reuses a folder."""
        owner = invoking_user()
        path = new_folder(base, f"{now:%Y%m%dT%H%M%SZ}-{header.task}", owner)
        folder = cls(path, owner)
        folder.append(header)
        (path / "experiment.toml").write_text(header.experiment_toml, encoding="utf-8")
        give(path, owner)
        _point_latest(base, path.name, owner)
        return folder

    def append(self, event: Event) -> None:
        """Write one event through to the file. Threads may share a folder."""
        self._write(self._encoder.encode(event) + b"\n")

    def extend(self, events: Iterable[Event]) -> None:
        """Write several events in one go: link counters come by the thousand."""
        self._write(b"".join(self._encoder.encode(event) + b"\n" for event in events))

    def _write(self, data: bytes) -> None:
        with self._lock:
            if not self._fault:
                try:
                    self._file.write(data)
                    self._file.flush()
                except OSError as error:
                    self._fault = error.strerror or str(error)
            if self._fault:
                raise TestbedError(f"{self.path}: {self._fault}; `run.py report {self.path}` shows what is written")

    def close(self) -> None:
        """Close the event file without an end line, as after a failure: what it has can be reported. Closing twice does nothing."""
        with self._lock, contextlib.suppress(OSError):  # `append` has told
            self._file.close()

    def finish(self, reason: str = "complete") -> None:
        """Write the end line and close the event file."""
        self.append(EndRow(ended_utc=utc_now().isoformat(timespec="seconds"), reason=reason))
        self.close()


def trace_row(trace: Trace) -> TraceRow:
    """What the figures need of a trace: its capacity, in equal bins when it has very many segments."""
    if isinstance(trace, RateTrace) and len(trace.rates_bps) <= _MOST_POINTS:
        edges_s, rates_bps = list(trace.edges_s), list(trace.rates_bps)
    else:
        edges_s, rates_bps = _binned(trace)
    return TraceRow(trace=trace.name, sha256=trace.sha256, edges_s=edges_s, rates_bps=rates_bps)


def as_trace(row: TraceRow) -> RateTrace:
    """The trace back from what is stored of it, with equal bytes and means."""
    return RateTrace(row.trace, tuple(row.edges_s), tuple(row.rates_bps))


def _binned(trace: Trace) -> tuple[list[float], list[float]]:
    """Capacity in equal bins of about a second (more when the trace is long): edges and rates."""
    bins = min(max(round(trace.duration_s), 1), _MOST_POINTS)
    edges_s = np.linspace(0.0, trace.duration_s, bins + 1)
    bits = bits_from_bytes(np.diff(trace.bytes_by(edges_s)))
    return edges_s.tolist(), (bits / np.diff(edges_s)).tolist()


def give(path: Path, owner: User | None) -> None:
    """Give a result folder and what is in it to `owner`; symlinks are not followed."""
    if owner is None or os.geteuid() != 0:
        return
    os.chown(path, *owner, follow_symlinks=False)
    for directory, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(os.path.join(directory, name), *owner, follow_symlinks=False)


def check_base(base: Path) -> None:
    """Raise `UserError` unless result folders can be made in `base`, before anything is started."""
    existing = next(folder for folder in (base.absolute(), *base.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"--out {base}: {existing} is a file, wanted a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {base}: {existing} can't be written to, wanted a folder in which results can be written")
    if (base / "latest").exists() and not (base / "latest").is_symlink():
        raise UserError(f"{base / 'latest'} is not a symbolic link, wanted nothing there or a link to the newest result folder")


def new_folder(base: Path, name: str, owner: User | None) -> Path:
    """Make `base/name`, or `base/name-2`, `-3`, ... when it is there already."""
    check_base(base)
    missing = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _give_one(folder, owner)
        number, path = 1, base / name
        while not _made(path):
            number += 1
            path = base / f"{name}-{number}"
    except OSError as error:
        raise UserError(f"--out {base}: {error.strerror}, wanted a folder in which results can be written") from None
    return path


def _made(path: Path) -> bool:
    """Make the folder; False when something of that name is there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _give_one(path: Path, owner: User | None) -> None:
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner, follow_symlinks=False)


def _point_latest(base: Path, name: str, owner: User | None) -> None:
    """Make `base/latest` a symlink to the folder `name` in one step."""
    temporary = base / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    _give_one(temporary, owner)
    temporary.replace(base / "latest")
