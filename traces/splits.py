"""From upstream's files to our splits: the rules that `traces/catalog.toml` names.

| rule | what it does |
| --- | --- |
| `whole` | takes every file as it is |
| `listed` | takes the files that the catalogue lists for each split |
| `fcc` | test is upstream's test set; train and valid are the listed training files, each of which must be free of leaks towards test |
| `norway` | train and test are the listed windows; they share no log and no run, and no two of train share a run; apart is a part of test |

A ride may come in preparations that cut and resample it differently (`traces/rides.py`). Of norway/test 39 of the 70 windows were found to
be of rides that train has windows of, and the other 31 became norway/apart; of these 21 are, too, as was found later: the clock of one
preparation loses time, which `traces/rides.py` does not allow for. A train split without them is under way.

The rules `fcc` and `norway` prove what the lists claim, each time a set is fetched. At the pinned commit 33 of upstream's 235 FCC training
files are free of leaks (`leak_free`); the lists divide 28 of them, and five are in neither split.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from testbed.errors import TestbedError
from traces.catalog import CatalogSet
from traces.formats import read_trace
from traces.leakage import find_leaks, measured_at, run_keys
from traces.rides import find_known
from traces.trace import Trace

Chosen = dict[str, dict[str, Path]]
"""Per split: the name a file gets (below the split's folder) and where it is in the upstream checkout."""


def apply_rule(entry: CatalogSet, upstream: Path) -> Chosen:
    """The files of each split of `entry`, out of a checkout of its upstream repository."""
    return _RULES[entry.rule](entry, upstream)


def leak_free(candidates: Sequence[Trace], test: Sequence[Trace]) -> tuple[Trace, ...]:
    """The candidates with a known measurement unit that share neither it nor a run of samples with a trace of `test`."""
    tainted = {leak.train for leak in find_leaks(candidates, test)}
    return tuple(trace for trace in candidates if (measured_at(trace.name) or ("",))[0] == "unit" and trace.name not in tainted)


def _whole(entry: CatalogSet, upstream: Path) -> Chosen:
    files = {path.relative_to(upstream / folder).as_posix(): path for folder in entry.paths for path in _files(upstream / folder)}
    return {"": files}


def _listed(entry: CatalogSet, upstream: Path) -> Chosen:
    named = _by_name([path for folder in entry.paths for path in _files(upstream / folder)])
    return {split.name: {name: _one(named, name, entry) for name in split.names} for split in entry.splits if not split.of}


def _fcc(entry: CatalogSet, upstream: Path) -> Chosen:
    train_folder, test_folder = (upstream / folder for folder in entry.paths)
    test = {path.name: path for path in _files(test_folder) if measured_at(path.name)}
    named = _by_name(_files(train_folder))
    chosen = {split.name: {name: _one(named, name, entry) for name in split.names} for split in entry.splits if split.names}
    clean = {trace.name for trace in leak_free(_read(_first(named)), _read(test))}
    for split, files in chosen.items():
        if leaking := sorted(files.keys() - clean):
            raise TestbedError(f"{entry.name}/{split}: {leaking[0]} shares a measurement unit or a run of samples with the test set")
    return {**chosen, "test": test}


def _norway(entry: CatalogSet, upstream: Path) -> Chosen:
    chosen = _listed(entry, upstream)
    train = _read(chosen["train"])
    for leak in find_leaks(train, _read(chosen["test"])):
        raise TestbedError(f"{entry.name}: {leak.train} of train and {leak.test} of test share a {leak.kind}: {leak.detail}")
    apart = {name for split in entry.splits if split.of for name in split.names}
    for name in sorted(apart & find_known(train, _read(chosen["test"]))):
        raise TestbedError(f"{entry.name}: {name} of apart is a window of a ride that train has windows of")
    keys = {trace.name: run_keys(trace) for trace in train}
    for one, other in combinations(keys, 2):
        if keys[one] & keys[other]:
            raise TestbedError(f"{entry.name}/train: {one} and {other} share a run of samples")
    return chosen


def _files(folder: Path) -> list[Path]:
    """All files below `folder` but hidden ones, in order; `folder` itself when it is a file."""
    if folder.is_file():
        return [folder]
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not found:
        raise TestbedError(f"{folder}: holds no file, wanted the upstream's traces")
    return found


def _by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(path.name, []).append(path)
    return named


def _one(named: Mapping[str, list[Path]], name: str, entry: CatalogSet) -> Path:
    """The file called `name`; upstream may hold it several times, if with equal content."""
    found = named.get(name, [])
    if not found:
        raise TestbedError(f"{entry.name}: upstream has no file {name}")
    if len({path.read_bytes() for path in found}) > 1:
        raise TestbedError(f"{entry.name}: upstream has {len(found)} files {name} that differ: {', '.join(map(str, found))}")
    return found[0]


def _first(named: Mapping[str, list[Path]]) -> dict[str, Path]:
    return {name: paths[0] for name, paths in named.items()}


def _read(files: Mapping[str, Path]) -> tuple[Trace, ...]:
    return tuple(read_trace(path) for _, path in sorted(files.items()))


_RULES: dict[str, Callable[[CatalogSet, Path], Chosen]] = {"whole": _whole, "listed": _listed, "fcc": _fcc, "norway": _norway}
