"""Look-ahead in the compiled scheduling simulator: what would it cost to decide this, and then to go on by a rule?

Each candidate is tried on a copy of the state. No further job arrives, tasks that start take the mean that was recorded for their level and
kind, and the rule (`testbed.sim.cjs_rule`) decides the rest, until all jobs that are here are done. The cost is the time they spend here
from now on, together. What a scheduler can't know, and this uses: when tasks that run will end, and means by level and kind. So it is a
teacher, not a policy.

Candidates: the rule's own decision, half and double of its number; and for the source job and the jobs of least remaining work the
stage that the rule would serve, with all executors that it can use, half of them, and one.
"""
# mypy: ignore-errors

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.sim.cjs_board import (
    ACTIVE,
    DONE_MS,
    EXPECTED,
    FROZEN,
    LEFT,
    NEXT_JOB,
    NOTHING,
    NOW,
    POOL_JOB,
    SOURCE,
    STARTS,
    Floats,
    Packed,
    unpacked,
)
from testbed.sim.cjs_compiled import CompiledCjs
from testbed.sim.cjs_machine import ASKED, OVER, advance, committable, decide, demand
from testbed.sim.cjs_rule import BIDDER, DEMAND, LOG_WORK, NUMBERS, best_stage, look_at_jobs, rule_decides
from testbed.sim.compiled import compiled
from testbed.units import s_from_ms
from traces.durations import WARM_UP_MS
from traces.tpch import Profiles, load_profiles

JOBS = 4
"""Jobs of least remaining work that are tried."""
_unpacked = compiled(unpacked)


@dataclass(frozen=True)
class Candidates:
    """What was tried at one decision; the first is what the rule decides."""

    stage: np.ndarray
    """Row of the observation, (C,)."""
    executors: np.ndarray
    """(C,)"""
    cost_s: Floats
    """Time that the jobs that are here will still spend here, together, (C,); infinite if some would starve."""


class LookAhead:
    """Tries candidates on copies of a simulator's state. `rule` are the numbers of `controllers.cjs.srpt_cap.NUMBERS`."""

    def __init__(self, rule: Sequence[float], profiles: Profiles | None = None, jobs: int = JOBS) -> None:
        if len(rule) != NUMBERS:
            raise ValueError(f"the rule has {len(rule)} numbers, wanted {NUMBERS}")
        self._rule, self._jobs = np.array(rule, float), jobs
        self._means_ms = means_ms(profiles or load_profiles())

    def rule(self, simulator: CompiledCjs) -> tuple[int, int]:
        """What the rule decides: row of the stage and number of executors."""
        stage, executors = rule_alone(simulator.packed, self._rule)
        return (int(np.searchsorted(simulator.stage_numbers, stage)) if stage != NOTHING else NOTHING), int(executors)

    def candidates(self, simulator: CompiledCjs) -> Candidates:
        """What comes of each candidate. The simulator is left as it is."""
        stages, executors, costs_ms = try_all(simulator.packed, self._means_ms, self._rule, self._jobs)
        return Candidates(np.searchsorted(simulator.stage_numbers, stages), executors, s_from_ms(costs_ms))


def means_ms(profiles: Profiles) -> Floats:
    """Mean recorded duration with its warm-up, (profile rows, levels, kinds)."""
    before = np.concatenate([[0.0], np.cumsum(profiles.durations_ms, dtype=float)])
    start, count, cold = np.moveaxis(profiles.recorded, -1, 0)
    return (before[start + count] - before[start]) / count + cold * WARM_UP_MS


@compiled
def rule_alone(packed, rule):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The rule's decision: number of the stage and executors."""
    b = _unpacked(packed)
    return rule_decides(b, rule, np.empty((len(b.jobs), BIDDER)), np.zeros(len(b.stages)))


@compiled
def try_all(packed, means_ms, rule, most_jobs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Numbers of stages, executors and costs of all candidates, the rule's own first; (C,) each."""
    b = _unpacked(packed)
    bidders, paths_s = np.empty((len(b.jobs), BIDDER)), np.zeros(len(b.stages))
    stages, executors = list_candidates(b, rule, bidders, paths_s, most_jobs)
    copy = Packed(
        packed.sizes,
        np.empty_like(packed.integers),
        np.empty_like(packed.floats),
        packed.recorded,
        packed.durations_ms,
        means_ms,
        packed.words,
        np.empty((0, packed.log.shape[1])),
    )
    ahead, costs_ms = _unpacked(copy), np.empty(len(stages))
    for i in range(len(stages)):
        copy.integers[:], copy.floats[:] = packed.integers, packed.floats
        ahead.numbers[FROZEN], ahead.numbers[STARTS] = EXPECTED, 0
        ahead.numbers[NEXT_JOB], ahead.numbers[LEFT] = len(b.jobs), b.numbers[ACTIVE]
        decide(ahead, stages[i], executors[i])
        ended = advance(ahead)
        while ended == ASKED:
            stage, count = rule_decides(ahead, rule, bidders, paths_s)
            decide(ahead, stage, count)
            ended = advance(ahead)
        costs_ms[i] = 0.0 if ended == OVER else np.inf
        for j in range(b.numbers[ACTIVE]):
            costs_ms[i] += ahead.job_reals[b.active[j], DONE_MS] - b.clock[NOW]
    return stages, executors, costs_ms


@compiled
def list_candidates(b, rule, bidders, paths_s, most_jobs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Numbers of stages and executors, each pair once."""
    most = 3 * (most_jobs + 2)
    stages, executors, found = np.empty(most, np.int64), np.empty(most, np.int64), 0
    stage, dealt = rule_decides(b, rule, bidders, paths_s)
    able = min(committable(b), demand(b, stage))
    stages[0], executors[0] = stage, min(dealt, able)
    found = 1
    for count in (executors[0] // 2, min(2 * executors[0], able)):
        found = note(stages, executors, found, stage, count)
    look_at_jobs(b, rule, bidders)
    source_job = b.pools[b.numbers[SOURCE], POOL_JOB]
    for turn in range(most_jobs + 1):
        chosen = NOTHING
        for i in range(b.numbers[ACTIVE]):
            if bidders[i, DEMAND] > 0 and (
                (turn == 0 and b.active[i] == source_job)
                or (turn > 0 and (chosen == NOTHING or bidders[i, LOG_WORK] < bidders[chosen, LOG_WORK]))
            ):
                chosen = i
        if chosen == NOTHING:
            continue
        bidders[chosen, DEMAND] = 0
        stage = best_stage(b, rule, b.active[chosen], paths_s)
        able = min(committable(b), demand(b, stage))
        for count in (able, (able + 1) // 2, 1):
            found = note(stages, executors, found, stage, count)
    return stages[:found], executors[:found]


@compiled
def note(stages, executors, found, stage, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """One more candidate, unless there is none or it is known; returns how many there are."""
    if count < 1:
        return found
    for i in range(found):
        if stages[i] == stage and executors[i] == count:
            return found
    stages[found], executors[found] = stage, count
    return found + 1
