"""From the events of a run to everything derived: parquet tables, `summary.json`, `report.html`, figures for papers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from testbed.errors import TestbedError
from testbed.events import read_run
from testbed.report.page import render
from testbed.report.summary import summarise
from testbed.results import give
from testbed.user import User, invoking_user


def build(folder: Path, owner: User | None = None, figures: str | None = None) -> dict[str, Any]:
    """Make everything derived in a result folder anew from its `events.jsonl`; returns the summary.

    Works on the folder of a killed run. `figures` (pdf, png or svg) also writes figures for a paper into `figures/`. All of it is given to
    the `owner` (default: the invoking user).
    """
    run = read_run(folder)
    summary = summarise(run)
    for name, table in run.tables.items():
        _replace(folder / f"{name}.parquet", table.write_parquet)
    summary_json = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    _replace(folder / "summary.json", lambda path: path.write_bytes(summary_json))
    page = render(run, summary).encode()
    _replace(folder / "report.html", lambda path: path.write_bytes(page))
    if figures is not None:
        from testbed.report.paper import export  # matplotlib takes a second to load

        try:
            export(run, folder / "figures", figures)
        except OSError as error:
            raise TestbedError(f"{error.filename or folder / 'figures'}: {error.strerror or error}; make room for figures") from error
    give(folder, owner or invoking_user())
    return summary


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and move it there, so that nobody ever reads half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise TestbedError(f"{path}: {error.strerror or error}; make room, then `run.py report {path.parent}`") from error
    finally:
        temporary.unlink(missing_ok=True)
