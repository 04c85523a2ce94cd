"""What is done: one small Parquet file per policy, setting and seed. An evaluation that was interrupted plays only what is missing.

A cell is known by a hash of all that decides its content (policy's source, options and weights; simulator; traces, video and path; seed),
so a changed policy, adapter or trace set is played anew, and unchanged ones are not.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

FORMAT = 1
SCHEMA = pl.Schema(
    {
        "setting": pl.String,
        "policy": pl.String,
        "member": pl.Int64,
        "seed": pl.Int64,
        "unit": pl.String,
        "group": pl.String,
        "trace": pl.String,
        "trace_sha256": pl.String,
        "offset_s": pl.Float64,
        "qoe": pl.Float64,
        "bitrate_mbps": pl.Float64,
        "rebuffer_s": pl.Float64,
        "switch_mbps": pl.Float64,
        "startup_s": pl.Float64,
        "optimum": pl.Float64,
    }
)
"""A row of the results: one session. `member` is a training seed, `seed` a sampling seed; means per chunk as in `testbed/metrics.py`."""
CELL = {"qoe": pl.Float64, "bitrate_mbps": pl.Float64, "rebuffer_s": pl.Float64, "switch_mbps": pl.Float64, "startup_s": pl.Float64}
_RANDOM, _REFUSED, _SECONDS = "random", "refused", "seconds"


@dataclass(frozen=True)
class Cell:
    """A policy's sessions on one setting with one seed, in the order of the setting's playbacks."""

    sessions: tuple[tuple[float, ...], ...]
    """Per session the columns of `CELL`; for the optimum only QoE is known, the others are NaN."""
    random: bool = False
    """Whether the policy drew random numbers: then other seeds give other sessions."""
    refused: str = ""
    """Why the policy can't play this setting; there are no sessions then."""
    seconds: float = 0.0
    """CPU time it took, of the thread that played it."""


class CellStore:
    """Cells in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, setting: str, policy: str, seed: int, identities: Sequence[str]) -> Path:
        """Where the cell is kept; its name can be read, its end is the hash."""
        key = hashlib.sha256(repr((FORMAT, seed, *identities)).encode()).hexdigest()[:16]
        said = "--".join(re.sub(r"[^\w.=-]+", "_", part)[-40:] for part in (setting, policy))
        return self.folder / f"{said}--{seed}--{key}.parquet"

    def read(self, path: Path) -> Cell | None:
        """The cell, or None when it isn't there. A file cut short counts as missing."""
        if not path.is_file():
            return None
        try:
            frame, told = pl.read_parquet(path), pl.read_parquet_metadata(path)
            return Cell(tuple(frame.select(*CELL).iter_rows()), told[_RANDOM] == "yes", told[_REFUSED], float(told[_SECONDS]))
        except (PolarsError, OSError, KeyError, ValueError):
            return None

    def write(self, path: Path, cell: Cell) -> None:
        """Keep a cell: a scratch file is renamed, so that a kill leaves no half."""
        told = {_RANDOM: "yes" if cell.random else "no", _REFUSED: cell.refused, _SECONDS: f"{cell.seconds:.3f}"}
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        pl.DataFrame(cell.sessions, schema=CELL, orient="row").write_parquet(scratch, metadata=told)
        scratch.replace(path)


def write_results(path: Path, rows: Sequence[dict[str, Any]], header: str) -> None:
    """All sessions in one file, with the evaluation's header (JSON) under the key `netllm`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(scratch, metadata={"netllm": header})
    scratch.replace(path)
