"""Runs TPC-H queries with Spark on this machine and reads its event log after each. Needs the extra `profile` and Java.

One Java process for all of it, an application for each size and number of executors. An *executor* is a thread: Spark's `local[N]`. All
threads share one JVM, so a *fresh* task pays for compiling its query's code, not for the start of a JVM.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from testbed.errors import TestbedError, UserError
from traces.spark_log import QUERY, Event, EventLog, LoggedQuery, is_over, read_query

QUERIES_FILE = Path(__file__).with_name("tpch_queries.sql")
EXTRA = "scripts/profile_tpch installs what it needs; by hand: the extra `profile` of pyproject.toml, and Java 17 or newer"
FILES = 4
"""That each table but the two smallest is split into."""
ROW_GROUP_BYTES = 2_000_000
"""Uncompressed. A part of a file that holds no middle of a row group is an empty task: row groups must be smaller than parts."""
LOG_S, LOG_TRIES = 0.05, 600
"""How often the log is looked at until Spark has written of a query's end, and how many times at most."""


@dataclass(frozen=True)
class SparkSettings:
    """What decides how a query falls into stages and tasks."""

    partitions: int = 16
    """Of each shuffle."""
    split_bytes: int = 4_000_000
    """Of a table's files that one task reads."""
    memory_gb: int = 3
    """Heap of the Java process."""


def conf(settings: SparkSettings, work: Path) -> dict[str, str]:
    """Spark's configuration: one linked DAG a query, the same tasks with any number of threads, a plain log, loopback only."""
    return {
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.shuffle.partitions": str(settings.partitions),
        "spark.sql.files.maxPartitionBytes": str(settings.split_bytes),
        "spark.sql.files.openCostInBytes": "0",
        "spark.sql.files.minPartitionNum": "1",
        "spark.default.parallelism": str(settings.partitions),
        "spark.driver.memory": f"{settings.memory_gb}g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": log_folder(work).as_uri(),
        "spark.local.dir": str(work),
        "spark.sql.warehouse.dir": str(work / "warehouse"),
    }


def log_folder(work: Path) -> Path:
    """Where event logs lie."""
    return work.resolve() / "log"


@cache
def queries() -> dict[int, str]:
    """The 22 queries; `{fraction}` in the eleventh depends on the size."""
    parts = re.split(r"^-- q(\d+)$", QUERIES_FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {int(number): text.strip() for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def query_text(query: int, size_gb: float) -> str:
    """As Spark is asked; q11's fraction is 0.0001 over the size (specification, section 2.4.11.3)."""
    return queries()[query].replace("{fraction}", f"{0.0001 / size_gb:.10f}")


def check_installed() -> None:
    """Raise `UserError` naming what is missing: pyspark, tpchgen-cli or Java."""
    for name, there in (("pyspark", find_spec("pyspark")), ("tpchgen-cli", generator()), ("java", _java())):
        if not there:
            raise UserError(f"{name} is not installed, wanted it for profiling: {EXTRA}")


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None)


def generator() -> str | None:
    """The program that makes TPC-H data: beside this interpreter, else in PATH."""
    return shutil.which("tpchgen-cli", path=str(Path(sys.executable).parent)) or shutil.which("tpchgen-cli")


def generate(size_gb: float, folder: Path) -> None:
    """All tables at a scale factor, as Parquet. A folder that is there is whole: it gets its name last."""
    if folder.exists():
        return
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    options = ["--scale-factor", f"{size_gb:g}", "--parts", str(FILES), "--row-group-bytes", str(ROW_GROUP_BYTES), "--quiet"]
    done = subprocess.run(
        [generator() or "tpchgen-cli", "parquet", *options, "--output-dir", str(scratch)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TestbedError(f"tpchgen-cli ended with exit code {done.returncode} at {size_gb:g} GB: {' '.join(done.stderr.split())[-300:]}")
    scratch.rename(folder)


class Runner:
    """A Spark application on one size of the data."""

    def __init__(self, session: Any, log: EventLog, size_gb: float) -> None:
        self._session, self._log, self._size_gb = session, log, size_gb

    @property
    def versions(self) -> dict[str, str]:
        """Of Spark and Java."""
        context = self._session.sparkContext
        return {"spark": str(context.version), "java": str(context._jvm.java.lang.System.getProperty("java.version"))}

    def run(self, query: int) -> LoggedQuery:
        """One query, its result thrown away."""
        name = str(query)
        self._session.sparkContext.setLocalProperty(QUERY, name)
        try:
            self._session.sql(query_text(query, self._size_gb)).collect()
        except Exception as error:  # whatever Java may say
            raise TestbedError(f"query {query} failed at {self._size_gb:g} GB: {' '.join(str(error).split())[:300]}") from error
        return read_query(self._events_of(name), name, self._log.cores)

    def _events_of(self, name: str) -> list[Event]:
        events: list[Event] = []
        for _ in range(LOG_TRIES):
            events += self._log.events()
            if is_over(events, name):
                return events
            time.sleep(LOG_S)
        raise TestbedError(f"Spark's event log says nothing of the end of query {name} after {LOG_S * LOG_TRIES:g} s, wanted its end")


@contextmanager
def application(data: Path, size_gb: float, executors: int, settings: SparkSettings, work: Path) -> Iterator[Runner]:
    """A Spark application of `executors` threads that knows the tables; stopped at the end."""
    from pyspark.sql import SparkSession

    log_folder(work).mkdir(parents=True, exist_ok=True)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    session = _built(SparkSession.builder, {"spark.master": f"local[{executors}]", **conf(settings, work)})
    try:
        for table in sorted(path.name for path in data.iterdir()):
            session.read.parquet(str(data / table)).createOrReplaceTempView(table)
        with EventLog(_log_path(log_folder(work), session.sparkContext.applicationId)) as log:
            yield Runner(session, log, size_gb)
    finally:
        with suppress(Exception):  # a Java process that has gone can't be asked to stop
            session.stop()


def _built(builder: Any, options: Mapping[str, str]) -> Any:
    for name, value in options.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # whatever Java may say
        raise TestbedError(f"Spark did not start: {' '.join(str(error).split())[:300]}") from error


def _log_path(folder: Path, application_id: str) -> Path:
    for path in (folder / f"{application_id}.inprogress", folder / application_id):
        if path.exists():
            return path
    raise TestbedError(f"Spark writes no event log {application_id} to {folder}, wanted one")
