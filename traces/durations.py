"""How long a task takes, drawn from what Spark recorded: by the number of executors at its job and by what its executor did before.

| executors at the job | recorded level (published rule, the same in decima-sim and spark-sched-sim) |
| --- | --- |
| up to 5, or exactly a level | that level |
| n between levels L and R | L with probability (n - L) / (R - L), else R: just above L nearly always R |
| above 100 | 100 |

Two ways to draw. `StreamDurations` takes them from one stream in the order in which tasks start, as published: the same task takes another
time under another scheduler. `FrozenDurations` fixes two uniform numbers for each (job, stage, task, kind), one that chooses the level and
one that is the quantile within it: schedulers are compared on the same work.
"""

import random
from bisect import bisect_right
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from traces.tpch import KINDS, LEVELS, Profiles
from traces.workload import Workload

WARM_UP_MS = 1000.0
"""Added to a first-wave duration where nothing fresh was recorded (spark-sched-sim and decima-sim)."""
FROZEN = 7
"""Tells the frozen numbers from the other draws of a seed."""


class Durations(Protocol):
    """A way to draw."""

    def draw_ms(self, job: int, stage: int, task: int, kind: int, attached: int) -> float:
        """Duration of a task of kind `traces.tpch.KINDS[kind]` that starts with `attached` executors at its job."""


def level_span(attached: int) -> tuple[int, int]:
    """Places in `LEVELS` of the recorded levels around `attached` executors; twice the same where there is nothing to choose."""
    left = max(bisect_right(LEVELS, attached) - 1, 0)
    between = LEVELS[left] < attached < LEVELS[-1]
    return left, left + between


class WordStream:
    """The stream of Python's `random.Random(seed)`, drawn as spark-sched-sim and NetLLM do."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._bits = self._random.getrandbits

    def random(self) -> float:
        """Uniform on [0, 1)."""
        return self._random.random()

    def below(self, count: int) -> int:
        """A whole number from 0 to `count - 1`, as `random.choice` draws its index."""
        bits, width = self._bits, count.bit_length()
        drawn = bits(width)
        while drawn >= count:
            drawn = bits(width)
        return drawn


class StreamDurations:
    """As published: one stream, consumed in the order in which tasks start."""

    def __init__(self, workload: Workload, profiles: Profiles, stream: WordStream, warm_up_ms: float = WARM_UP_MS) -> None:
        self._first = [int(profiles.first_stage[job.template]) for job in workload.jobs]
        self._recorded = profiles.recorded.tolist()
        self._durations_ms, self._stream, self._warm_up_ms = profiles.durations_ms, stream, warm_up_ms

    def draw_ms(self, job: int, stage: int, task: int, kind: int, attached: int) -> float:
        """The next of the stream; the task's number plays no part."""
        level, right = level_span(attached)
        if right != level:
            point = 1 + int(self._stream.random() * (LEVELS[right] - LEVELS[level]))
            level = level if point <= attached - LEVELS[level] else right
        start, count, cold = self._recorded[self._first[job] + stage][level][kind]
        duration_ms = float(self._durations_ms[start + self._stream.below(count)])
        return duration_ms + self._warm_up_ms if cold else duration_ms


def frozen_uniforms(workload: Workload, job: int, stage: int) -> NDArray[np.float64]:
    """What fixes a stage's durations, (tasks, kinds, 2): for the level, and for the quantile."""
    rng = np.random.default_rng([workload.seed, FROZEN, job, stage])
    return rng.random((workload.jobs[job].stages[stage].tasks, len(KINDS), 2))


class FrozenDurations:
    """Two uniform numbers for each (job, stage, task, kind), whatever the scheduler does."""

    def __init__(self, workload: Workload, profiles: Profiles, warm_up_ms: float = WARM_UP_MS) -> None:
        self._workload, self._profiles, self._warm_up_ms = workload, profiles, warm_up_ms
        self._drawn: dict[tuple[int, int], NDArray[np.float64]] = {}

    def draw_ms(self, job: int, stage: int, task: int, kind: int, attached: int) -> float:
        """What was fixed for this task."""
        if (job, stage) not in self._drawn:
            self._drawn[job, stage] = frozen_uniforms(self._workload, job, stage)
        for_level, quantile = self._drawn[job, stage][task, kind].tolist()
        level, right = level_span(attached)
        if right != level and for_level * (LEVELS[right] - LEVELS[level]) >= attached - LEVELS[level]:
            level = right
        row = int(self._profiles.first_stage[self._workload.jobs[job].template]) + stage
        start, count, cold = self._profiles.recorded[row, level, kind].tolist()
        duration_ms = float(self._profiles.ordered_ms[start + int(quantile * count)])
        return duration_ms + self._warm_up_ms if cold else duration_ms
