"""The command `scripts/profile_tpch`: run TPC-H with Spark on this machine and write `tpch_own.json`; see `traces/tpch_own.py`.

A killed run goes on where it stopped: each query that is through is kept until the file is written.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from testbed.cache import cache_folder
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import TestbedError, UserError
from testbed.host import cpu_field
from testbed.units import s_from_ms
from traces.spark_log import LoggedQuery
from traces.spark_run import Runner, SparkSettings, application, check_installed, generate
from traces.tpch import QUERIES
from traces.tpch_own import OWN_FILE, VERSION, WORK_S, OwnProfile, StageProfile, Template, Waves, to_json

SIZES_GB = (0.1, 0.3, 1.0)
EXECUTORS = (1, 2)


@dataclass(frozen=True)
class Settings:
    """What is profiled."""

    sizes_gb: tuple[float, ...] = SIZES_GB
    executors: tuple[int, ...] = EXECUTORS
    spark: SparkSettings = field(default_factory=SparkSettings)

    def __post_init__(self) -> None:
        checks = (
            ("sizes", self.sizes_gb, all(0.01 <= size <= 1000 for size in self.sizes_gb), "0.01 to 1000 GB"),
            ("executors", self.executors, all(1 <= count <= 256 for count in self.executors), "1 to 256"),
            ("partitions", (self.spark.partitions,), 1 <= self.spark.partitions <= 10_000, "1 to 10000"),
            ("split-mb", (self.spark.split_bytes / 1e6,), 4 <= self.spark.split_bytes / 1e6 <= 1000, "4 to 1000"),
            ("memory-gb", (self.spark.memory_gb,), 1 <= self.spark.memory_gb <= 1000, "1 to 1000"),
        )
        for name, seen, ok, wanted in checks:
            if not ok or list(seen) != sorted(set(seen)):
                raise UserError(f"--{name} is {' '.join(f'{each:g}' for each in seen)}, wanted {wanted}, rising")

    @property
    def queries(self) -> int:
        """To be run in all."""
        return QUERIES * len(self.sizes_gb) * len(self.executors)


class Part(msgspec.Struct, frozen=True):
    """A query that is through."""

    run: LoggedQuery
    versions: dict[str, str]
    load: float
    """Processes that ran or waited for a core, mean of a minute, ours among them."""


Parts = dict[tuple[float, int, int], Part]
"""By size, query, executors."""


class Store:
    """Parts on disk, apart for each kind of settings."""

    def __init__(self, work: Path, spark: SparkSettings) -> None:
        self._folder = work / f"parts-{hashlib.sha256(repr(spark).encode()).hexdigest()[:8]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: tuple[float, int, int]) -> Path:
        return self._folder / f"{key[0]:g}g-q{key[1]}-{key[2]}.json"

    def keep(self, key: tuple[float, int, int], part: Part) -> None:
        """Whole or not at all."""
        scratch = self._folder / f".{os.getpid()}"
        scratch.write_bytes(msgspec.json.encode(part))
        scratch.replace(self._path(key))

    def find(self, key: tuple[float, int, int]) -> Part | None:
        """What an earlier run kept."""
        path = self._path(key)
        return msgspec.json.decode(path.read_bytes(), type=Part) if path.exists() else None


def record(settings: Settings, work: Path, told: Callable[[str, int], None]) -> Parts:
    """Runs all that is not kept yet. `told` hears what is being done, and how many queries more are through."""
    store, parts, warm = Store(work, settings.spark), Parts(), False
    for size_gb, executors in itertools.product(settings.sizes_gb, settings.executors):
        keys, data, what = _keys(size_gb, executors), work / "data" / f"{size_gb:g}g", f"{size_gb:g} GB, {executors} executors"
        parts |= {key: part for key in keys if (part := store.find(key))}
        missing = [key for key in keys if key not in parts]
        told(what, len(keys) - len(missing))
        if not missing:
            continue
        generate(size_gb, data)
        with application(data, size_gb, executors, settings.spark, work) as runner:
            if not warm:
                _warm_up(runner, told)
            warm = True
            for key in missing:
                parts[key] = Part(runner.run(key[1]), runner.versions, os.getloadavg()[0])
                store.keep(key, parts[key])
                told(f"{what}, q{key[1]}", 1)
    return parts


def _keys(size_gb: float, executors: int) -> list[tuple[float, int, int]]:
    return [(size_gb, query, executors) for query in range(1, QUERIES + 1)]


def _warm_up(runner: Runner, told: Callable[[str, int], None]) -> None:
    """All queries once, unrecorded: Java has compiled the most of Spark by then, as in a cluster that is up."""
    for query in range(1, QUERIES + 1):
        told(f"warming up, q{query}", 0)
        runner.run(query)


def assemble(settings: Settings, parts: Parts, made: dict[str, object]) -> OwnProfile:
    """The profile of all parts. Raises `TestbedError` where a query fell into other stages with another number of executors."""
    templates = tuple(
        Template(query, f"{size_gb:g}g", _stages([parts[size_gb, query, count].run for count in settings.executors], settings, query))
        for size_gb in settings.sizes_gb
        for query in range(1, QUERIES + 1)
    )
    work_s = float(np.mean([s_from_ms(sum(stage.work_ms for stage in template.stages)) for template in templates]))
    sizes = tuple(f"{size_gb:g}g" for size_gb in settings.sizes_gb)
    return OwnProfile(VERSION, made, max(round(WORK_S / work_s), 1), sizes, settings.executors, templates)


def _stages(runs: Sequence[LoggedQuery], settings: Settings, query: int) -> tuple[StageProfile, ...]:
    if len({tuple((stage.parents, stage.tasks) for stage in run.stages) for run in runs}) > 1:
        raise TestbedError(f"query {query} fell into other stages or tasks with another number of executors, wanted the same")
    return tuple(
        StageProfile(
            alike[0].parents,
            alike[0].shuffled_bytes,
            {count: Waves(stage.fresh_ms, stage.first_ms, stage.rest_ms) for count, stage in zip(settings.executors, alike, strict=True)},
        )
        for alike in zip(*(run.stages for run in runs), strict=True)
    )


def facts(settings: Settings) -> dict[str, object]:
    """Of the header, what is known before the first query."""
    return {
        "utc": utc_now().isoformat(timespec="seconds"),
        "commit": checkout_commit() or "unknown",
        "command": command_line("scripts/profile_tpch", sys.argv[1:]),
        "machine": f"{cpu_field('model name') or 'unknown processor'}, {os.cpu_count()} cores",
        "tpchgen-cli": importlib.metadata.version("tpchgen-cli"),
        "settings": asdict(settings.spark),
        "load_before": round(os.getloadavg()[0], 2),
    }


def strain(settings: Settings, parts: Parts) -> dict[str, object]:
    """Of the header, what the queries tell: versions, and how busy the machine was."""
    cpu = {
        str(count): round(float(np.mean([part.run.cpu_share for key, part in parts.items() if key[2] == count])), 3)
        for count in settings.executors
    }
    load = round(float(np.mean([part.load for part in parts.values()])), 2)
    return {**next(iter(parts.values())).versions, "load_during": load, "cpu_share": cpu}


def table_text(profile: OwnProfile) -> str:
    """What docs/cjs.md shows: means over the queries of each size."""
    lines = ["| size | stages | tasks | mean task, ms | work, s | shuffled, MB | stretched: work, s | shuffled, MB |"]
    lines.append("| --- " * lines[0].count(" |") + "|")
    for size in profile.sizes:
        stages = [template.stages for template in profile.templates if template.size == size]
        count, tasks = len(stages), sum(stage.tasks for each in stages for stage in each)
        work_ms = sum(stage.work_ms for each in stages for stage in each)
        work_s = s_from_ms(work_ms) / count
        shuffled_mb = sum(stage.bytes for each in stages for stage in each) / 1e6 / count
        cells = [sum(map(len, stages)) / count, tasks / count, work_ms / tasks, work_s, shuffled_mb]
        cells += [profile.stretch * work_s, profile.stretch * shuffled_mb]
        lines.append(f"| {size} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and write; exit code 2 for what can't be used, 1 for what failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="profile_tpch", description="Profile TPC-H on Spark, on this machine.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_GB, metavar="GB", help="scale factors (default: 0.1 0.3 1)")
    parser.add_argument("--executors", type=int, nargs="+", default=EXECUTORS, metavar="N", help="threads of Spark (default: 1 2)")
    parser.add_argument("--partitions", type=int, default=16, help="of each shuffle (default: 16)")
    parser.add_argument("--split-mb", type=int, default=4, help="of a table that one task reads (default: 4)")
    parser.add_argument("--memory-gb", type=int, default=3, help="heap of the Java process (default: 3)")
    parser.add_argument("--out", type=Path, default=OWN_FILE, help="where to write (default: traces/tpch_own.json)")
    options = parser.parse_args(arguments)
    try:
        spark = SparkSettings(options.partitions, options.split_mb * 1_000_000, options.memory_gb)
        return _profile(Settings(tuple(options.sizes), tuple(options.executors), spark), options.out)
    except (UserError, TestbedError, OSError) as error:
        sys.stderr.write(f"profile_tpch: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("profile_tpch: interrupted; the same command goes on where it stopped\n")
        return 130


def _profile(settings: Settings, out: Path) -> int:
    check_installed()
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out is {out}, whose folder can't be written, wanted one that can")
    work, made = cache_folder() / "tpch_own", facts(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("data and Spark", total=settings.queries)
        parts = record(settings, work, lambda text, more: progress.update(bar, advance=more, description=text))
    profile = assemble(settings, parts, made | strain(settings, parts))
    out.write_bytes(to_json(profile))
    shutil.rmtree(work, ignore_errors=True)
    sys.stdout.write(f"{table_text(profile)}\n{out}: {out.stat().st_size} bytes, stretch {profile.stretch}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
