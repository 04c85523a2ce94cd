"""Jobs and when they come: a workload is drawn from profiles by its seed alone, so every scheduler meets the same one.

Arrivals are Poisson. Templates are equally likely. The order of draws for each job (query, size, then the gap to the next job) and the
generator (PCG64 of the seed) are those of spark-sched-sim's `TPCHJobSequenceGen`, so that a seed names the same jobs there and here.

Decima's profiles say nothing of the bytes that stages exchange. We derive them: a query moves `SHUFFLE_SHARE` of its input in all, and a
stage writes its part of that in proportion to its work (tasks x mean duration), the same to each of its children. That is a stand-in, good
enough to load links in proportion to jobs, and no measurement. Our own profile (`traces/tpch_own.py`) has what was measured.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from testbed.errors import UserError
from testbed.units import ms_from_s, s_from_ms
from traces.tpch import QUERIES, Profiles, load_profiles

JOBS = 200
INTERARRIVAL_S = 25.0
"""Mean gap between arrivals (Mao et al., SIGCOMM 2019, section 7.2; the default of decima-sim, spark-sched-sim and NetLLM)."""
SHUFFLE_SHARE = 0.05
"""Of a query's input that crosses between stages. Spark's event logs of TPC-H at scale 1 (1 GB): 44 MB for q9, 0 to 117 MB for others."""
BYTES_PER_GIGABYTE = 1e9


@dataclass(frozen=True)
class Stage:
    """One stage of a job: alike tasks that may run once all parents are complete."""

    tasks: int
    parents: tuple[int, ...]
    children: tuple[int, ...]
    mean_task_s: float
    """Mean recorded duration of a task: what is known of the stage before it runs."""
    output_bytes: float = 0.0
    """Written for each child."""


@dataclass(frozen=True)
class Job:
    """One job of a workload; its stages are in topological order."""

    number: int
    """In order of arrival, from 0."""
    name: str
    arrival_s: float
    stages: tuple[Stage, ...]
    template: int = -1
    """In the profiles that durations are drawn from; -1 when there are none."""


@dataclass(frozen=True)
class Workload:
    """Jobs in order of arrival."""

    name: str
    seed: int
    interarrival_s: float
    jobs: tuple[Job, ...]

    @property
    def tasks(self) -> int:
        """Tasks of all jobs."""
        return sum(stage.tasks for job in self.jobs for stage in job.stages)


def draw_workload(jobs: int = JOBS, interarrival_s: float = INTERARRIVAL_S, seed: int = 1, profiles: Profiles | None = None) -> Workload:
    """`jobs` TPC-H jobs, the first at 0 s; of Decima's profiles unless others are given. Raises `UserError` for numbers without sense, or
    when Decima's are not on this machine."""
    if jobs < 1 or not interarrival_s > 0 or seed < 0:
        raise UserError(f"{jobs} jobs, {interarrival_s:g} s between them and seed {seed} are asked for, wanted at least 1, above 0 and 0")
    profiles = profiles or load_profiles()
    rng, arrival_ms, drawn = np.random.default_rng(seed), 0.0, []
    for number in range(jobs):
        query, size = int(rng.integers(QUERIES)), int(rng.choice(len(profiles.sizes)))
        template = size * QUERIES + query
        drawn.append(Job(number, profiles.template_name(template), s_from_ms(arrival_ms), stages_of(profiles, template), template))
        arrival_ms += rng.exponential(ms_from_s(interarrival_s))
    return Workload(profiles.name, seed, interarrival_s, tuple(drawn))


def stages_of(profiles: Profiles, template: int) -> tuple[Stage, ...]:
    """The stages of a template."""
    return _stages(_Key(profiles), template)


class _Key:
    """Profiles as a key of the cache: by identity, since arrays have no hash."""

    def __init__(self, profiles: Profiles) -> None:
        self.profiles = profiles

    def __hash__(self) -> int:
        return id(self.profiles)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.profiles is self.profiles


@cache
def _stages(key: _Key, template: int) -> tuple[Stage, ...]:
    profiles = key.profiles
    numbers = profiles.stages_of(template)
    parents: dict[int, list[int]] = {number: [] for number in numbers}
    children: dict[int, list[int]] = {number: [] for number in numbers}
    for parent, child in profiles.edges.tolist():
        if parent in children:
            children[parent].append(child - numbers.start)
            parents[child].append(parent - numbers.start)
    tasks, mean_ms = profiles.tasks[numbers.start : numbers.stop], profiles.mean_ms[numbers.start : numbers.stop]
    readers = np.array([len(children[number]) for number in numbers])
    if profiles.shuffled_bytes is None:
        output_bytes = _derived_bytes(profiles.sizes[template // QUERIES], tasks * mean_ms, readers)
    else:
        output_bytes = profiles.shuffled_bytes[numbers.start : numbers.stop] * (readers > 0)  # each child reads all of it
    return tuple(
        Stage(
            tasks=int(tasks[i]),
            parents=tuple(parents[number]),
            children=tuple(children[number]),
            mean_task_s=float(s_from_ms(mean_ms[i])),
            output_bytes=float(output_bytes[i]),
        )
        for i, number in enumerate(numbers)
    )


def _derived_bytes(size: str, work: NDArray[np.float64], readers: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each stage writes for each of its children, where nobody recorded it."""
    input_bytes = BYTES_PER_GIGABYTE * float(size.removesuffix("g"))
    written = work * (readers > 0)
    shares: NDArray[np.float64] = written / max(written.sum(), 1e-9)
    return SHUFFLE_SHARE * input_bytes * shares / np.maximum(readers, 1)
