"""The command `scripts/fetch_data NAME...`: fill the checkout's `data/` with catalogued sets; see `traces/fetch.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.errors import TestbedError, UserError, suggestion
from traces.catalog import load_catalog
from traces.fetch import fetch_set
from traces.store import CHECKOUT, list_sets


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named sets; exit code 0 when all are there, 1 when one can't be had, 2 for an unknown name."""
    catalog = load_catalog()
    parser = argparse.ArgumentParser(prog="fetch_data", description="Fetch catalogued sets into data/.")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(catalog)}, or all")
    parser.add_argument("--into", type=Path, default=CHECKOUT / "data", help="the data folder (default: data/ of this checkout)")
    options = parser.parse_args(arguments)
    names = list(catalog) if "all" in options.names else options.names
    if unknown := [name for name in names if name not in catalog]:
        sys.stderr.write(f"fetch_data: {unknown[0]} is not catalogued: {suggestion(unknown[0], catalog)}\n")
        return 2
    failed = [name for name in names if not _have(name, options.into)]
    return 1 if failed else 0


def _have(name: str, into: Path) -> bool:
    """Whether the set is in the data folder, fetched if need be; says what happens."""
    listing = next(each for each in list_sets(into) if each.name == name)
    if listing.present:
        _say(f"{name}: already in {listing.where}")
        return True
    try:
        folder = fetch_set(load_catalog()[name], into, say=_say)
    except (TestbedError, UserError) as error:
        sys.stderr.write(f"fetch_data: {error}\n")
        return False
    _say(f"{name}: in {folder}")
    return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
