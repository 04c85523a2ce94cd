"""Jobs, observations and drivers that several tests of scheduling share. All are made by arithmetic."""

import numpy as np

from controllers.api import CjsAction, CjsObservation, CjsPolicy, CjsSession
from testbed.sim.cjs import Simulator
from traces.durations import Durations
from traces.tpch import KINDS, LEVELS, Profiles
from traces.workload import Job, Stage, Workload, stages_of


def job(number: int, tasks: tuple[int, ...], edges: tuple[tuple[int, int], ...] = (), arrival_s: float = 0.0) -> Job:
    stages = tuple(
        Stage(count, tuple(p for p, c in edges if c == i), tuple(c for p, c in edges if p == i), 1.0 + i) for i, count in enumerate(tasks)
    )
    return Job(number, f"job{number}", arrival_s, stages)


def workload(*jobs: Job, seed: int = 1) -> Workload:
    return Workload("toy", seed, 25.0, jobs)


class Fixed(Durations):
    """Every task of stage s takes s + 1 seconds, and half a second more when its executor is cold."""

    def draw_ms(self, job: int, stage: int, task: int, kind: int, attached: int) -> float:
        return 1000.0 * (stage + 1) + 500.0 * (kind == 0)


def session(executors: int = 4, moving_delay_s: float = 2.0) -> CjsSession:
    return CjsSession("test", executors, moving_delay_s)


def profiles(rng: np.random.Generator, templates: int = 5) -> Profiles:
    """Small random DAGs: no template and no duration is anybody's."""
    counts = rng.integers(1, 6, templates)
    first_stage = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    stages = int(first_stage[-1])
    edges = [
        (first + parent, first + child)
        for first, count in zip(first_stage[:-1].tolist(), counts.tolist(), strict=True)
        for child in range(1, count)
        for parent in range(child)
        if rng.random() < 0.5
    ]
    shape = (stages, len(LEVELS), len(KINDS))
    count = rng.integers(1, 5, shape)
    start = (np.cumsum(count) - count.ravel()).reshape(shape)
    durations_ms = rng.integers(1, 5000, int(count.sum())).astype(np.uint32)
    ordered_ms = np.concatenate([np.sort(durations_ms[s : s + n]) for s, n in zip(start.ravel(), count.ravel(), strict=True)])
    recorded = np.stack([start, count, rng.integers(0, 2, shape)], axis=-1).astype(np.int64)
    mean_ms = rng.uniform(500, 3000, stages)
    return Profiles(
        first_stage, rng.integers(1, 30, stages), mean_ms, np.array(edges, np.int64).reshape(-1, 2), recorded, durations_ms, ordered_ms
    )


def random_workload(seed: int, jobs: int = 6, interarrival_s: float = 8.0) -> tuple[Workload, Profiles]:
    """Jobs of random templates, and the profiles their durations come from."""
    rng = np.random.default_rng([seed, 99])
    made = profiles(rng)
    arrivals_s = np.concatenate([[0.0], np.cumsum(rng.exponential(interarrival_s, jobs - 1))]).tolist()
    drawn = []
    for number, arrival_s in enumerate(arrivals_s):
        template = int(rng.integers(made.templates))
        drawn.append(Job(number, f"job{number}", arrival_s, stages_of(made, template), template))
    return workload(*drawn, seed=seed), made


class Random(CjsPolicy):
    """Any schedulable stage, any number; declines one time in `decline`."""

    label, colour, citation = "Random", "#000000", "nobody, nowhere"

    def __init__(self, decline: int = 0) -> None:
        self.decline = decline

    def decide(self, observation: CjsObservation) -> CjsAction:
        if self.decline and self.rng.integers(self.decline) == 0:
            return CjsAction(-1)
        rows = np.flatnonzero(observation.schedulable)
        return CjsAction(int(self.rng.choice(rows)), int(self.rng.integers(1, observation.committable + 1)))


def play_out(simulator: Simulator, policy: CjsPolicy, playing: CjsSession, seed: int = 1, steps: int = 100_000) -> list[CjsAction]:
    """Play to the end (or for some steps), and what was decided."""
    policy.reset(playing, seed)
    actions: list[CjsAction] = []
    while not simulator.ended and len(actions) < steps:
        actions.append(policy.decide(simulator.observation))
        simulator.step(actions[-1])
    return actions
