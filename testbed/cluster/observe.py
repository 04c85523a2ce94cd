"""What the policy is told of the engine's state while it is asked."""

from collections.abc import Mapping
from operator import index
from typing import Any

import numpy as np

from controllers.api import CjsAction, CjsObservation, CjsSession
from testbed.cluster.engine import Engine
from testbed.cluster.state import StageState
from testbed.errors import AnswerError

Stages = list[StageState]


def active_stages(engine: Engine) -> Stages:
    """The rows of an observation."""
    return [stage for job in engine.active for stage in job.active]


def observe(engine: Engine, session: CjsSession, now_s: float, started_s: Mapping[tuple[int, int], float] | None = None) -> CjsObservation:
    """The observation. `started_s` (duration of the task of (job, stage) that started last) is for the published rules only."""
    if engine.source is None:
        raise ValueError("nothing is on offer, so there is nothing to observe")
    stages = active_stages(engine)
    rows = {(stage.job, stage.number): row for row, stage in enumerate(stages)}
    source_jobs = [row for row, job in enumerate(engine.active) if job.spec.number == engine.source.job]
    counts = [len(job.active) for job in engine.active]
    if started_s is None:
        last_task_s = [stage.last_task_s for stage in stages]
    else:
        last_task_s = [started_s.get((stage.job, stage.number), stage.spec.mean_task_s) for stage in stages]
    offered = set(engine.schedulable)
    edges = [(row, rows[stage.job, child]) for row, stage in enumerate(stages) for child in stage.spec.children]
    return CjsObservation(
        session=session,
        now_s=now_s,
        committable=engine.source.committable,
        source_job=source_jobs[0] if source_jobs else -1,
        job_id=np.array([job.spec.number for job in engine.active], np.int64),
        job_age_s=np.array([now_s - job.arrived_s for job in engine.active]),
        job_first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        supply=np.array([job.supply for job in engine.active], np.int64),
        stage_id=np.array([stage.number for stage in stages], np.int64),
        stage_job=np.repeat(np.arange(len(counts)), counts),
        unstarted=np.array([stage.unstarted for stage in stages], np.int64),
        running=np.array([stage.running for stage in stages], np.int64),
        demand=np.array([stage.demand for stage in stages], np.int64),
        mean_task_s=np.array([stage.spec.mean_task_s for stage in stages]),
        last_task_s=np.array(last_task_s),
        runnable=np.array([stage.open_parents == 0 for stage in stages], bool),
        schedulable=np.array([stage in offered for stage in stages], bool),
        edges=np.array(edges, np.int64).reshape(-1, 2),
    )


def checked(decided: Any, seen: CjsObservation) -> CjsAction:
    """A policy's answer in plain numbers (numpy's integers are numbers, too). Raises `AnswerError` when it can't be meant."""
    try:
        action = CjsAction(index(decided.stage), index(decided.executors))
    except (AttributeError, TypeError):
        action = None
    if action is None or not fits(action, seen):
        wanted = f"wanted DECLINE, or a schedulable stage of {seen.stages} and 1 to {seen.committable} executors, as a CjsAction"
        raise AnswerError(f"answered {decided!r:.200}, {wanted}")
    return action


def fits(action: CjsAction, seen: CjsObservation) -> bool:
    """Whether an action can be meant."""
    if action.stage == -1:
        return True
    chosen = 0 <= action.stage < seen.stages and bool(seen.schedulable[int(action.stage)])
    return chosen and 1 <= action.executors <= seen.committable
