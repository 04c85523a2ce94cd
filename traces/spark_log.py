"""Reads Spark's event log: the stages of one query as a DAG, with how long their tasks took and what they wrote to the shuffle.

A query is all jobs whose property `QUERY` bears its name. Rules:

| what the log has | what becomes of it |
| --- | --- |
| a *skipped* stage: ORDER BY samples its input in a job whose stages the next job names anew | the executed stage that made the same RDD |
| jobs without a common stage: sampling, subqueries, broadcasts | a job's first stages come after the last ones of the jobs that were over |
| stages whose numbers change from run to run | put in an order by what does not: tasks, records read and written, and their neighbours' |
| tasks of an executor of several cores | each core is a slot; a task takes the first free one. A profile's *executor* is a slot |
| duration of a task | CPU time of deserialising and running it, at least 1 ms: other load is not in it, waiting for a disk neither |
| a slot's first task in the query, else in the stage, else any other | `fresh`, `first`, `rest` |

AQE and broadcast joins by size must be off, or a query falls into jobs of one stage.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from testbed.errors import TestbedError

QUERY = "testbed.query"
"""Local property that names a query; Spark hands it on to threads that run subqueries and broadcasts."""
END = "org.apache.spark.sql.execution.ui.SparkListenerSQLExecutionEnd"
EXECUTION = "spark.sql.execution.id"
LAUNCH, FINISH = "Launch Time", "Finish Time"
CPU = ("Executor Deserialize CPU Time", "Executor CPU Time")
"""Task metrics, ns."""
NS_PER_MS = 1_000_000
ROUNDS = 20
"""More than any path through a query's stages is long."""

Event = dict[str, Any]


@dataclass(frozen=True)
class LoggedStage:
    """One stage as it ran."""

    parents: tuple[int, ...]
    """Places of earlier stages in the query."""
    shuffled_bytes: int
    """Written for later stages, all tasks together."""
    fresh_ms: tuple[int, ...]
    first_ms: tuple[int, ...]
    rest_ms: tuple[int, ...]

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.fresh_ms) + len(self.first_ms) + len(self.rest_ms)


@dataclass(frozen=True)
class LoggedQuery:
    """One run of a query."""

    stages: tuple[LoggedStage, ...]
    cpu_share: float
    """Of the time that tasks ran, the share that they had a core: less than one where they waited for a core or a disk."""


class EventLog:
    """A log that Spark still writes, read on from where the last reading ended. Neither rolled nor compressed."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        self._cut = b""
        self.cores: dict[str, int] = {}
        """Of each executor."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def events(self) -> list[Event]:
        """What was added; a line that is not whole yet comes next time."""
        *lines, self._cut = (self._cut + self._file.read()).split(b"\n")
        found = [json.loads(line) for line in lines if line]
        self.cores |= cores_of(found)
        return found


def cores_of(events: Iterable[Event]) -> dict[str, int]:
    """Cores of the executors that came."""
    return {each["Executor ID"]: each["Executor Info"]["Total Cores"] for each in events if each["Event"] == "SparkListenerExecutorAdded"}


def is_over(events: Iterable[Event], query: str) -> bool:
    """Whether Spark has said that the query's SQL execution ended: the last that it says of it."""
    asked, ended = set[int](), set[int]()
    for event in events:
        if event["Event"] == "SparkListenerJobStart" and _name(event) == query:
            asked.add(int(event["Properties"][EXECUTION]))
        elif event["Event"] == END:
            ended.add(int(event["executionId"]))
    return bool(asked) and asked <= ended


def read_query(events: Iterable[Event], query: str, cores: Mapping[str, int]) -> LoggedQuery:
    """The run of a query, from all events of it. Raises `TestbedError` where a job or task failed, or the DAG has a hole."""
    logged = _Logged(query)
    for event in events:
        logged.add(event)
    if not logged.executed:
        raise TestbedError(f"the event log has no stage of query {query}, wanted at least one")
    parents, waves = logged.parents(), _waves(logged.tasks, cores)
    numbers = ordered(parents, {number: (logged.counts[number], *logged.records[number]) for number in parents})
    place = {number: i for i, number in enumerate(numbers)}
    stages = []
    for number in numbers:
        if (found := sum(map(len, waves[number]))) != logged.counts[number]:
            raise TestbedError(f"stage {number} of query {query} has {found} tasks that ended well, wanted {logged.counts[number]}")
        before = tuple(sorted(place[parent] for parent in parents[number]))
        stages.append(LoggedStage(before, logged.written[number], *map(tuple, waves[number])))
    return LoggedQuery(tuple(stages), logged.cpu_share)


def ordered(parents: Mapping[int, set[int]], labels: Mapping[int, tuple[int, ...]]) -> list[int]:
    """Stages, parents before children, in an order that their numbers decide only between stages that nothing else tells apart."""
    children: dict[int, set[int]] = {number: set() for number in parents}
    for number, before in parents.items():
        for parent in before:
            children[parent].add(number)
    rank = _ranked(labels)
    for _ in range(ROUNDS):
        rank = _ranked({n: (rank[n], *_ranks(parents[n], rank), -1, *_ranks(children[n], rank)) for n in parents})
    place: dict[int, int] = {}
    while len(place) < len(parents):
        ready = [number for number in parents if number not in place and parents[number] <= place.keys()]
        place[min(ready, key=lambda number: (rank[number], sorted(place[parent] for parent in parents[number]), number))] = len(place)
    return list(place)


def _ranks(numbers: Iterable[int], rank: Mapping[int, int]) -> list[int]:
    return sorted(rank[number] for number in numbers)


def _ranked(labels: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    places = {label: place for place, label in enumerate(sorted(set(labels.values())))}
    return {number: places[label] for number, label in labels.items()}


@dataclass
class _Job:
    begin_ms: int
    stages: list[int]
    end_ms: int | None = None


@dataclass
class _Logged:
    """What the log has of one query."""

    query: str
    jobs: dict[int, _Job] = field(default_factory=dict)
    executed: set[int] = field(default_factory=set)
    named: dict[int, list[int]] = field(default_factory=dict)
    """Parents of each stage, executed or skipped, under the numbers of its own job."""
    counts: dict[int, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)
    """The RDD that a stage makes."""
    tasks: list[Event] = field(default_factory=list)
    written: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes to the shuffle, by stage."""
    records: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """Read from tables and written to the shuffle, by stage: the same in each run, while bytes vary a little."""
    ran_ms: int = 0
    cpu_ns: int = 0

    @property
    def cpu_share(self) -> float:
        """CPU time over run time."""
        return self.cpu_ns / NS_PER_MS / max(self.ran_ms, 1)

    def add(self, event: Event) -> None:
        """The next event."""
        kind = event["Event"]
        if kind == "SparkListenerJobStart" and _name(event) == self.query:
            self._job(event)
        elif kind == "SparkListenerJobEnd" and event["Job ID"] in self.jobs:
            if event["Job Result"]["Result"] != "JobSucceeded":
                raise TestbedError(f"job {event['Job ID']} of query {self.query} failed: {str(event['Job Result'])[:200]}")
            self.jobs[event["Job ID"]].end_ms = event["Completion Time"]
        elif kind == "SparkListenerStageCompleted" and event["Stage Info"]["Stage ID"] in self.named:
            self.executed.add(event["Stage Info"]["Stage ID"])
        elif kind == "SparkListenerTaskEnd" and event["Stage ID"] in self.named:
            self._task(event)

    def _job(self, event: Event) -> None:
        self.jobs[event["Job ID"]] = _Job(event["Submission Time"], event["Stage IDs"])
        for info in event["Stage Infos"]:
            self.named[info["Stage ID"]] = info["Parent IDs"]
            self.counts[info["Stage ID"]] = info["Number of Tasks"]
            self.made[info["Stage ID"]] = max(rdd["RDD ID"] for rdd in info["RDD Info"])  # the stage's own is the youngest of its RDDs

    def _task(self, event: Event) -> None:
        if event["Task End Reason"]["Reason"] != "Success":
            raise TestbedError(f"a task of stage {event['Stage ID']} of query {self.query} failed: {str(event['Task End Reason'])[:200]}")
        metrics = event["Task Metrics"]
        self.tasks.append(event)
        self.written[event["Stage ID"]] += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
        self.records[event["Stage ID"]][0] += metrics["Input Metrics"]["Records Read"]
        self.records[event["Stage ID"]][1] += metrics["Shuffle Write Metrics"]["Shuffle Records Written"]
        self.ran_ms += metrics["Executor Run Time"]
        self.cpu_ns += metrics["Executor CPU Time"]

    def parents(self) -> dict[int, set[int]]:
        """Of each executed stage, with skipped stages and the order of jobs resolved."""
        makers = {self.made[number]: number for number in sorted(self.executed)}
        found = {number: {self._executed(parent, makers) for parent in self.named[number]} for number in self.executed}
        for job in sorted(self.jobs.values(), key=lambda each: each.begin_ms):
            own = self.executed & set(job.stages)
            over = [each for each in self.jobs.values() if each.end_ms is not None and each.end_ms <= job.begin_ms]
            before = {number for each in over for number in self.executed & set(each.stages)}
            ends = before - {parent for number in before | own for parent in found[number]}
            for number in own:
                if not found[number] & own:
                    found[number] |= ends
        return found

    def _executed(self, number: int, makers: Mapping[int, int]) -> int:
        if number in self.executed:
            return number
        if self.made[number] not in makers:
            raise TestbedError(f"stage {number} of query {self.query} was skipped and no other made its RDD, wanted one that did")
        return makers[self.made[number]]


def _name(event: Event) -> str | None:
    name: str | None = event.get("Properties", {}).get(QUERY)
    return name


@dataclass
class _Slot:
    free_ms: int
    stage: int


def _waves(tasks: Iterable[Event], cores: Mapping[str, int]) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Durations by stage: fresh, first, rest."""
    slots: dict[str, list[_Slot]] = defaultdict(list)
    waves: dict[int, tuple[list[int], list[int], list[int]]] = defaultdict(lambda: ([], [], []))
    seen = set[tuple[str, int, int]]()
    for task in sorted(tasks, key=lambda each: (each["Task Info"][LAUNCH], each["Task Info"]["Task ID"])):
        info, stage, executor = task["Task Info"], task["Stage ID"], task["Task Info"]["Executor ID"]
        number, fresh = _take_slot(slots[executor], cores.get(executor, 1), info[LAUNCH])
        slots[executor][number] = _Slot(info[FINISH], stage)
        wave = 0 if fresh else 2 if (executor, number, stage) in seen else 1
        seen.add((executor, number, stage))
        cpu_ns = sum(task["Task Metrics"][name] for name in CPU)
        waves[stage][wave].append(max(round(cpu_ns / NS_PER_MS), 1))
    return waves


def _take_slot(slots: list[_Slot], cores: int, launch_ms: int) -> tuple[int, bool]:
    """Number of the slot that a task takes, and whether it is its first. Spark notes an end a little after the slot took its next task."""
    free = [number for number, slot in enumerate(slots) if slot.free_ms <= launch_ms]
    if free:
        return free[0], False
    if len(slots) < cores:
        slots.append(_Slot(0, -1))
        return len(slots) - 1, True
    return min(range(len(slots)), key=lambda number: slots[number].free_ms), False
