"""Shortest remaining time first with caps, compiled: what `controllers.cjs.srpt_cap` decides, from the tables, for look-ahead.

The rule's numbers are handed in (`controllers.cjs.srpt_cap.NUMBERS`); a test compares decisions of the two over whole workloads.
"""
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

from math import exp, log

import numpy as np

from testbed.sim.cjs_board import (
    ACTIVE,
    CHILDREN,
    CHILDREN_END,
    COMPLETED,
    FIRST,
    MEAN_MS,
    NOTHING,
    OFFERED,
    OPEN_PARENTS,
    POOL_JOB,
    SOURCE,
    STOP,
    SUPPLY,
    TASKS,
    UNSTARTED,
)
from testbed.sim.cjs_machine import committable, demand
from testbed.sim.compiled import compiled_in_place
from testbed.units import ms_from_s

# Places in the rule's numbers, in the order of `controllers.cjs.srpt_cap.NUMBERS`
WORK, STAY, STAY_PER_WORK, NOT_YET, NOT_YET_AT_SOURCE, CAP, CAP_PER_WORK, CAP_PER_JOBS = range(8)
ABOVE_CAP, ABOVE_CAP_AT_ALL, PATH, STAGE_WORK, PATH_PER_TASK, CAP_EXECUTORS, WORK_UNIT_S, LEAST_WORK, LEAST_S = range(8, 17)
NUMBERS = 17

# Columns of `bidders`, one row an active job
LOG_WORK, JOB_CAP, HAS, DEMAND, CAN_RUN, SCORE = range(6)
BIDDER = 6
_MS = ms_from_s(1.0)


@compiled_in_place
def look_at_jobs(b, rule, bidders):
    """Fill `bidders` (jobs, 6) for the active jobs, by arrival."""
    source_job = b.pools[b.numbers[SOURCE], POOL_JOB]
    for i in range(b.numbers[ACTIVE]):
        job = b.active[i]
        wanted, can_run, work_ms = 0, 0, 0.0
        for stage in range(b.jobs[job, FIRST], b.jobs[job, STOP]):
            work_ms += b.stages[stage, UNSTARTED] * b.stage_reals[stage, MEAN_MS]
            if b.stages[stage, OFFERED]:
                wanted += demand(b, stage)
                if b.stages[stage, OPEN_PARENTS] == 0:
                    can_run += demand(b, stage)
        each = bidders[i]
        each[LOG_WORK] = log(max(work_ms / _MS / rule[WORK_UNIT_S], rule[LEAST_WORK]))
        cap = exp(rule[CAP] + rule[CAP_PER_WORK] * each[LOG_WORK] + rule[CAP_PER_JOBS] * log(b.numbers[ACTIVE]))
        each[JOB_CAP] = min(max(cap * len(b.executors) / rule[CAP_EXECUTORS], 1.0), float(len(b.executors)))
        each[HAS] = b.jobs[job, SUPPLY] - (committable(b) if job == source_job else 0)
        each[DEMAND], each[CAN_RUN] = wanted, can_run


@compiled_in_place
def score(rule, each, is_source):
    """How much a job should have the next executor; `each` is its row of `bidders`."""
    found = -rule[WORK] * each[LOG_WORK]
    if is_source:
        found += rule[STAY] + rule[STAY_PER_WORK] * each[LOG_WORK]
    if each[CAN_RUN] <= 0:
        found -= rule[NOT_YET_AT_SOURCE] if is_source else rule[NOT_YET]
    above = each[HAS] + 1 - each[JOB_CAP]
    if above > 0:
        found -= rule[ABOVE_CAP] * above / each[JOB_CAP] + rule[ABOVE_CAP_AT_ALL]
    return found


@compiled_in_place
def best_stage(b, rule, job, paths_s):
    """The job's offered stage to serve: runnable before not yet runnable, then by critical path and work. `paths_s` (stages,) is room."""
    first, best, best_runs, best_rank = b.jobs[job, FIRST], NOTHING, False, -np.inf
    for stage in range(b.jobs[job, STOP] - 1, first - 1, -1):
        if b.stages[stage, COMPLETED] == b.stages[stage, TASKS]:
            continue
        below_s = 0.0
        for i in range(b.stages[stage, CHILDREN], b.stages[stage, CHILDREN_END]):
            below_s = max(below_s, paths_s[b.links[i]])
        mean_s = b.stage_reals[stage, MEAN_MS] / _MS
        paths_s[stage] = below_s + mean_s * (1 + rule[PATH_PER_TASK] * b.stages[stage, UNSTARTED])
    for stage in range(first, b.jobs[job, STOP]):
        if b.stages[stage, OFFERED]:
            work_s = b.stages[stage, UNSTARTED] * b.stage_reals[stage, MEAN_MS] / _MS
            rank = rule[PATH] * log(max(paths_s[stage], rule[LEAST_S])) + rule[STAGE_WORK] * log(max(work_s, rule[LEAST_S]))
            runs = b.stages[stage, OPEN_PARENTS] == 0
            if best == NOTHING or (runs and not best_runs) or (runs == best_runs and rank > best_rank):
                best, best_runs, best_rank = stage, runs, rank
    return best


@compiled_in_place
def rule_decides(b, rule, bidders, paths_s):
    """The stage (NOTHING declines) and the number of executors that the rule gives it. `bidders` and `paths_s` are room."""
    look_at_jobs(b, rule, bidders)
    source_job = b.pools[b.numbers[SOURCE], POOL_JOB]
    jobs, first, dealt = b.numbers[ACTIVE], NOTHING, 0
    for i in range(jobs):
        bidders[i, SCORE] = score(rule, bidders[i], b.active[i] == source_job)
    for _ in range(committable(b)):
        best = NOTHING
        for i in range(jobs):
            if bidders[i, DEMAND] > 0 and (best == NOTHING or bidders[i, SCORE] > bidders[best, SCORE]):
                best = i
        if best == NOTHING:
            break
        each = bidders[best]
        each[HAS] += 1
        each[DEMAND] -= 1
        each[CAN_RUN] -= 1
        each[SCORE] = score(rule, each, b.active[best] == source_job)
        if first == NOTHING:
            first = best
        dealt += best == first
    if first == NOTHING:
        return NOTHING, 0
    return best_stage(b, rule, b.active[first], paths_s), dealt
