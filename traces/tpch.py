"""TPC-H on Spark as Decima recorded it: 22 queries at 7 sizes, each a DAG of stages with the durations of their tasks.

A stage was run with several numbers of executors (its *levels*); each run has the tasks that an executor ran first in the job (*fresh*),
first in the stage (*first*) and later in the stage (*rest*). The upstream files hold pickles: they are read once, safely
(`traces/pickled.py`), and kept in the project's cache as plain arrays.

Rules of the published simulators (decima-sim, spark-sched-sim; the same in both), applied when the arrays are made:

| rule | |
| --- | --- |
| tasks of a stage | first wave and rest wave together, at the first level that the file lists |
| first | fresh durations are taken out of the first wave they are also listed in; an emptied level takes that of the next lower one |
| level that a stage lacks | its highest |
| kind that a level lacks | fresh: first and a warm-up; rest: first; first: fresh |
| mean task | over all durations of the stage, all levels and kinds |
"""

import contextlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.cache import cache_folder
from testbed.errors import UserError
from traces.catalog import load_catalog
from traces.pickled import read_object
from traces.store import obtain

WorkloadName = Literal["tpch", "tpch_own"]
NAME: Final = "tpch"
FORMAT = 2
"""Of the kept file: a change of the rules above, or of the arrays, counts it up."""
QUERIES = 22
SIZES = ("2g", "5g", "10g", "20g", "50g", "80g", "100g")
LEVELS = (5, 10, 20, 40, 50, 60, 80, 100)
"""Numbers of executors that durations are drawn for; the recorded level 2 only counts for the mean."""
KINDS = ("fresh", "rest", "first")
"""What an executor did before the task: nothing in this job, or idle since; a task of the same stage; a task of another stage."""
FRESH, REST, FIRST = range(3)
_WAVES = ("fresh_durations", "rest_wave", "first_wave")


class NotHereError(UserError):
    """Decima's profiles can't be had on this machine."""


@dataclass(frozen=True)
class Profiles:
    """All templates end to end. A template is a query at a size: number `size * 22 + query - 1`; stages are numbered over all of them."""

    first_stage: NDArray[np.int64]
    """(templates + 1,): the stages of template t are `first_stage[t]` to `first_stage[t + 1]`."""
    tasks: NDArray[np.int64]
    """(stages,)"""
    mean_ms: NDArray[np.float64]
    """(stages,): mean recorded duration of a task."""
    edges: NDArray[np.int64]
    """(edges, 2): parent and child; a parent's number is always the lower one."""
    recorded: NDArray[np.int64]
    """(stages, levels, kinds, 3): where in `durations_ms` the recorded durations begin; how many there are, at least one; 1 where the
    simulator's warm-up delay is added, because nothing fresh was recorded."""
    durations_ms: NDArray[np.uint32]
    """Every list of durations, in the order of the file."""
    ordered_ms: NDArray[np.uint32]
    """The same lists, each from the shortest to the longest."""
    name: WorkloadName = NAME
    sizes: tuple[str, ...] = SIZES
    """Of the data, each with all queries."""
    shuffled_bytes: NDArray[np.float64] | None = None
    """(stages,): what a stage wrote for later ones; None where nobody recorded that."""

    def stages_of(self, template: int) -> range:
        """The stages of a template."""
        return range(int(self.first_stage[template]), int(self.first_stage[template + 1]))

    @property
    def templates(self) -> int:
        """Number of templates."""
        return len(self.first_stage) - 1

    def template_name(self, template: int) -> str:
        """`q7-50g`."""
        return f"q{template % QUERIES + 1}-{self.sizes[template // QUERIES]}"


def load_profiles(root: str | Path | None = None) -> Profiles:
    """Decima's profiles. Raises `NotHereError` when they are not on this machine, `UserError` when a file is bad."""
    return _load(str(root) if root is not None else None, str(cache_folder()))


@cache
def _load(root: str | None, cache_path: str) -> Profiles:
    sha256 = load_catalog()[NAME].splits[0].sha256
    kept = Path(cache_path) / NAME / f"{sha256[:16]}-{FORMAT}.npz"
    found = _read_kept(kept)
    if found is None:
        folder, lack = obtain(NAME, root)
        if folder is None:
            raise NotHereError(f"workload {NAME} is not on this machine ({lack}), wanted it there: run scripts/fetch_data {NAME}")
        found = convert(folder)
        with contextlib.suppress(OSError):  # a cache that can't be written costs time and nothing else
            _keep(kept, found)
    return found


def convert(folder: Path) -> Profiles:
    """The arrays of all templates in a folder laid out like upstream's. Raises `UserError` naming the file that is bad."""
    maker = Maker()
    for size in SIZES:
        for query in range(1, QUERIES + 1):
            matrix, stages = folder / size / f"adj_mat_{query}.npy", folder / size / f"task_duration_{query}.npy"
            maker.add(read_edges(matrix), read_object(stages), stages)
    return maker.profiles()


def read_edges(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """Number of stages and edges (parent, child) of an adjacency matrix. Raises `UserError` unless it is a DAG in topological order."""
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: can't be read ({' '.join(str(error).split())[:100]}), wanted an adjacency matrix") from error
    square = isinstance(matrix, np.ndarray) and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    if not square or matrix.dtype.kind not in "fiu" or not np.isin(matrix, (0, 1)).all():
        raise UserError(f"{path}: holds no square matrix of zeros and ones, wanted an adjacency matrix")
    edges = [(int(parent), int(child)) for parent, child in zip(*np.nonzero(matrix), strict=True)]
    if any(parent >= child for parent, child in edges):
        raise UserError(f"{path}: has an edge from a stage to an earlier one, wanted parents before children")
    return len(matrix), edges


class Maker:
    """Collects templates. Durations are taken `stretch` times as long as they are told."""

    def __init__(self, stretch: int = 1) -> None:
        self._stretch = stretch
        self.first_stage, self.tasks, self.mean_ms = [0], list[int](), list[float]()
        self.edges: list[tuple[int, int]] = []
        self.recorded: list[list[list[tuple[int, int, int]]]] = []
        self.durations_ms: list[int] = []
        self.ordered_ms: list[int] = []

    def add(self, dag: tuple[int, list[tuple[int, int]]], recorded: Any, path: Path) -> None:
        """One template: its DAG and what its file holds."""
        stages, edges = dag
        if not isinstance(recorded, dict) or list(recorded) != list(range(stages)):
            raise UserError(f"{path}: holds no stages 0 to {stages - 1} in order, wanted as many as its adjacency matrix has")
        self.edges += [(self.first_stage[-1] + parent, self.first_stage[-1] + child) for parent, child in edges]
        for number, waves in recorded.items():
            self._add_stage(checked(waves, f"{path}: stage {number}"))
        self.first_stage.append(self.first_stage[-1] + stages)

    def _add_stage(self, waves: dict[str, dict[int, list[int]]]) -> None:
        level = next(iter(waves["first_wave"]))
        self.tasks.append(len(waves["first_wave"][level]) + len(waves["rest_wave"][level]))
        waves = {**waves, "first_wave": first_without_fresh(waves["first_wave"], waves["fresh_durations"])}
        lists = {wave: {n: [self._stretch * ms for ms in each] for n, each in levels.items()} for wave, levels in waves.items()}
        self.mean_ms.append(float(np.mean([ms for wave in _WAVES for each in lists[wave].values() for ms in each])))
        places = {wave: {level: self._store(each) for level, each in lists[wave].items()} for wave in _WAVES}
        highest = max(waves["first_wave"])
        self.recorded.append([self._row(level if level in waves["first_wave"] else highest, places) for level in LEVELS])

    def _store(self, durations_ms: list[int]) -> tuple[int, int, int]:
        self.durations_ms += durations_ms
        self.ordered_ms += sorted(durations_ms)
        return len(self.durations_ms) - len(durations_ms), len(durations_ms), 0

    @staticmethod
    def _row(level: int, places: Mapping[str, Mapping[int, tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
        """Start, count and cold of each kind at a level, with what stands in for a kind that wasn't recorded."""
        nothing = (0, 0, 0)
        fresh, rest, first = (places[wave].get(level, nothing) for wave in _WAVES)
        new_to_stage = first if first[1] else fresh
        return [fresh if fresh[1] else (first[0], first[1], 1), rest if rest[1] else new_to_stage, new_to_stage]

    def profiles(self) -> Profiles:
        """All of it as arrays. Raises `UserError` where a stage has nothing to draw from."""
        made = Profiles(
            first_stage=np.array(self.first_stage, np.int64),
            tasks=np.array(self.tasks, np.int64),
            mean_ms=np.array(self.mean_ms, np.float64),
            edges=np.array(self.edges, np.int64).reshape(-1, 2),
            recorded=np.array(self.recorded, np.int64),
            durations_ms=np.array(self.durations_ms, np.uint32),
            ordered_ms=np.array(self.ordered_ms, np.uint32),
        )
        count = made.recorded[..., 1]
        if not (count > 0).all():
            stage = int(np.argwhere(count == 0)[0][0])
            raise UserError(f"stage {stage} of the TPC-H profiles has no duration for some executor level, wanted at least one")
        return made


def checked(waves: Any, where: str) -> dict[str, dict[int, list[int]]]:
    """What was recorded of a stage, if it is that: three kinds of the same levels, durations of 0 to 65 535 ms, tasks at all."""
    if not isinstance(waves, dict) or set(waves) != set(_WAVES):
        raise UserError(f"{where} has {_named(waves)}, wanted {', '.join(_WAVES)}")
    levels = {_levels(wave) for wave in waves.values()}
    if len(levels) != 1 or levels == {()}:
        raise UserError(f"{where} has kinds with different levels or none, wanted the same for all")
    for wave in waves.values():
        for durations_ms in wave.values():
            if not isinstance(durations_ms, list) or not all(type(ms) is int and 0 <= ms < 2**16 for ms in durations_ms):
                raise UserError(f"{where} has durations that are no integers from 0 to 65535, wanted milliseconds")
    level = next(iter(waves["first_wave"]))
    if not waves["first_wave"][level] and not waves["rest_wave"][level]:
        raise UserError(f"{where} has no task, wanted at least one")
    return waves


def _levels(wave: Any) -> tuple[int, ...]:
    return tuple(sorted(wave)) if isinstance(wave, dict) and all(type(level) is int for level in wave) else ()


def _named(waves: Any) -> str:
    return ", ".join(map(str, waves)) if isinstance(waves, Iterable) and waves else "nothing"


def first_without_fresh(first: Mapping[int, list[int]], fresh: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """The first wave of each level without its fresh durations, each taken out once; an emptied level has that of the next lower one."""
    kept: dict[int, list[int]] = {}
    lower: list[int] = []
    for level in sorted(first):
        left = Counter(fresh[level])
        kept[level] = []
        for ms in first[level]:
            if left[ms]:
                left[ms] -= 1
            else:
                kept[level].append(ms)
        kept[level] = lower = kept[level] or lower
    return kept


_KEPT = [field.name for field in fields(Profiles) if field.default is MISSING]
"""What of Decima's profiles is no constant."""


def _read_kept(path: Path) -> Profiles | None:
    """What is kept; None where there is nothing, or something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Profiles(**{name: arrays[name] for name in _KEPT})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.recorded.shape == (len(found.tasks), len(LEVELS), len(KINDS), 3) else None


def _keep(path: Path, profiles: Profiles) -> None:
    """Write beside the target, then rename: nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(temporary, **{name: getattr(profiles, name) for name in _KEPT})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
