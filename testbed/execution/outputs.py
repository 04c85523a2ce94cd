"""Where the outputs of tasks lie, and from where a task reads: the driver's map of blocks.

A task of a stage reads an equal part of what each parent wrote for that stage. Real shuffles read a slice of every map output; here a
bundle reads from few executors, drawn evenly along their shares, at least `LEAST_BYTES` from each: over a stage that is the same traffic
from executor to executor, with a fraction of the requests. Blocks are whole multiples of `WORTH_BYTES`, because time compression shrinks
blocks but no packet's headers; the rest is owed, and read along with what comes later. As a job's end leaves rests that nobody reads, what
is owed begins anywhere between nothing and `WORTH_BYTES`, evenly: so in the mean all that is due travels.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from traces.workload import Job

LEAST_BYTES = 1 << 16
WORTH_BYTES = 1 << 11
STRIDE = 0.6180339887498949
"""The golden ratio's: successive draws spread evenly over 0 to 1."""

Place = tuple[int, int]
"""Job and stage."""


@dataclass(frozen=True)
class Part:
    """Bytes of a stage's output to be read from one executor, where `tasks` of its tasks ended."""

    holder: int
    job: int
    stage: int
    tasks: int
    size_bytes: int


class Vanished(Exception):
    """A parent's outputs are gone in part."""

    def __init__(self, place: Place) -> None:
        super().__init__(f"outputs of stage {place[1]} of job {place[0]} are gone")
        self.place = place


class Outputs:
    """Of all jobs that are active."""

    def __init__(self, bytes_scale: float) -> None:
        self._bytes_scale, self._point, self._begin = bytes_scale, 0.0, 0.0
        self._owed: dict[tuple[Place, int, int], float] = {}
        """Bytes of a stage that a receiver has yet to read from a holder."""
        self._held: dict[Place, dict[int, list[int]]] = defaultdict(dict)
        self._gone: dict[Place, set[int]] = {}
        """Tasks whose outputs went with an executor, until they have run again."""
        self._claimed: dict[Place, set[int]] = defaultdict(set)
        """Of these, the ones that somebody was asked to run again."""

    def add(self, place: Place, executor: int, tasks: list[int]) -> None:
        """These tasks ended on `executor`."""
        self._held[place].setdefault(executor, []).extend(tasks)
        if place in self._gone:
            self._gone[place].difference_update(tasks)
            self._claimed[place].difference_update(tasks)
            if not self._gone[place]:
                del self._gone[place]

    def lose(self, executor: int) -> None:
        """All that lay at `executor` is gone."""
        for place, holders in self._held.items():
            if tasks := holders.pop(executor, None):
                self._gone.setdefault(place, set()).update(tasks)

    def gone(self) -> list[Place]:
        """Stages with outputs that are gone and unclaimed, later ones first: what these miss, they need of earlier ones."""
        return sorted((place for place, tasks in self._gone.items() if tasks - self._claimed[place]), reverse=True)

    def claim(self, place: Place) -> list[int]:
        """Tasks that must run again, each told once."""
        tasks = self._gone.get(place, set()) - self._claimed[place]
        self._claimed[place] |= tasks
        return sorted(tasks)

    def forget(self, job: int) -> None:
        """The job is done."""
        for table in (self._held, self._gone, self._claimed):
            for place in [place for place in table if place[0] == job]:
                table.pop(place)
        for key in [key for key in self._owed if key[0][0] == job]:
            del self._owed[key]

    def parts(self, job: Job, stage: int, tasks: int, executor: int) -> list[Part]:
        """What `tasks` tasks of a stage read on `executor` from others; what lies there already travels nowhere. Raises `Vanished`."""
        child = job.stages[stage]
        return [part for parent in child.parents for part in self._of(job, parent, tasks / child.tasks, executor)]

    def _of(self, job: Job, parent: int, share: float, executor: int) -> Iterator[Part]:
        place = job.number, parent
        if place in self._gone:
            raise Vanished(place)
        holders = self._held[place]
        size_bytes = share * job.stages[parent].output_bytes * self._bytes_scale
        count = int(min(max(size_bytes // LEAST_BYTES, 1), len(holders)))
        for holder, points in self._drawn(holders, count).items():
            if holder == executor:
                continue
            if part_bytes := self._worth((place, holder, executor), size_bytes * points / count):
                yield Part(holder, job.number, parent, len(holders[holder]), part_bytes)

    def _worth(self, key: tuple[Place, int, int], due_bytes: float) -> int:
        """What to read now that so much more is due; the rest is owed."""
        if key not in self._owed:
            self._begin = (self._begin + STRIDE) % 1
            self._owed[key] = self._begin * WORTH_BYTES
        blocks, self._owed[key] = divmod(self._owed[key] + due_bytes, WORTH_BYTES)
        return int(blocks) * WORTH_BYTES

    def _drawn(self, holders: dict[int, list[int]], count: int) -> dict[int, int]:
        """Holders hit by `count` evenly spaced points along their shares, and how often."""
        self._point = (self._point + STRIDE) % 1
        total = sum(map(len, holders.values()))
        points = [(self._point + i) / count * total for i in range(count)]
        drawn: dict[int, int] = {}
        reach = 0
        for holder, tasks in holders.items():
            reach += len(tasks)
            while points and points[0] < reach:
                points.pop(0)
                drawn[holder] = drawn.get(holder, 0) + 1
        return drawn
