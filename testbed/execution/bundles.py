"""Tasks that travel together: the driver's own account of which task of a stage is where.

The engine lets an executor go on with its stage, unasked, as long as that has tasks. So what an executor does next is known for a while,
and several short tasks can be sent at once. `StagePool` hands them out so that the engine may be told of each start and end as if they
were sent one by one, and decisions fall at the same events:

- An executor gets at most half of its even part of what is left, so that the last tasks of a stage go one by one.
- Should one find nothing while others still hold tasks that have not begun, it takes the last of these (`steal`).

The engine numbers tasks as it starts them; the pool has numbers of its own, by which durations are drawn. `Bundle.engine_tasks` joins them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MOST_TASKS = 64
BUNDLE_S = 0.2
"""A bundle is closed when it lasts as long."""


@dataclass(eq=False)
class Sent:
    """A bundle on its executor. Times are the driver's clock."""

    number: int
    executor: int
    job: int
    stage: int
    due_s: float
    tasks: list[int]
    """By the pool's numbers, in order."""
    durations_s: list[float]
    engine_tasks: list[int]
    """By the engine's numbers: those that it knows to have started. The last of these runs."""
    tick: asyncio.TimerHandle | None = None
    """Tells the engine of the next end."""
    halted: bool = False
    """The engine has let the executor go; what had not begun was handed back."""

    @property
    def place(self) -> tuple[int, int]:
        """Job and stage."""
        return self.job, self.stage

    @property
    def begun(self) -> int:
        """How many tasks have started."""
        return len(self.engine_tasks)

    def planned_end_s(self, index: int) -> float:
        """When task `index` is to end."""
        return self.due_s + sum(self.durations_s[: index + 1])

    def hand_back(self) -> int:
        """Give the last task away."""
        self.durations_s.pop()
        return self.tasks.pop()


class StagePool:
    """Tasks of a stage that no executor has."""

    def __init__(self, tasks: int) -> None:
        self._free = deque(range(tasks))

    def give_back(self, tasks: Iterable[int]) -> None:
        """They are to be run (again), before others."""
        self._free.extendleft(tasks)

    def take(self, executors: int, duration_s: Callable[[int, bool], float]) -> tuple[list[int], list[float]]:
        """Tasks for one of `executors` executors at the stage, and their durations; none when there is none.

        `duration_s` tells how long a task takes and is handed whether it is the first.
        """
        most = max(min(len(self._free) // (2 * max(executors, 1)), MOST_TASKS), 1)
        tasks: list[int] = []
        durations_s: list[float] = []
        while self._free and len(tasks) < most and (not tasks or sum(durations_s) < BUNDLE_S):
            tasks.append(self._free.popleft())
            durations_s.append(duration_s(tasks[-1], len(tasks) == 1))
        return tasks, durations_s


def steal(bundles: Iterable[Sent], place: tuple[int, int]) -> Sent | None:
    """The bundle of a stage whose last task, not begun yet, would begin last."""
    waiting = [bundle for bundle in bundles if bundle.place == place and not bundle.halted and len(bundle.tasks) > bundle.begun]
    return max(waiting, key=lambda bundle: bundle.planned_end_s(len(bundle.tasks) - 2), default=None)
