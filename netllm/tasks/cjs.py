"""Cluster job scheduling as the language model sees it: one token a decision; the answer is a stage and a number of executors.

A token is the sum of two modalities.

| modality | content |
| --- | --- |
| state | the graph of all stages that are not complete, summed up over messages, stages and jobs; the shortest jobs one by one |
| action | what was decided before: where, how many, how long ago |

No feature is `last_task_s`: under the published rules that is the duration of a task that has only begun. Work is in logs, executors are
shares of the cluster, so that other clusters work too. Stages and jobs are of any number; the heads point at one of them
(`netllm.graph`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from controllers.api import CjsAction, CjsObservation

WORK_UNIT_S = 100.0
LEAST_S = 1e-3
WAVE = 20
"""Tasks of a stage that count as one after another in a critical path, as in the rule `srpt_cap`."""
STAGE_FEATURES, JOB_FEATURES, CLUSTER_FEATURES, ACTION_FEATURES = 8, 14, 9, 6
SHORTEST = 8
"""Jobs that are told one by one."""
TRUST_ABOVE = 24
"""Executors: in larger clusters an executor more or less changes little, and the costs of decisions tell less."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CjsTask:
    """The task's settings, kept in the adapter."""

    hidden: int = 64
    """Width inside the graph encoder and the heads."""
    context: int = 64
    """Decisions in the context at most; when it is full, the newer half is read anew. Training reads windows of this length."""
    trust: float = 0.0
    """Added to the log-probabilities of the stage and of the number of executors that the rule `srpt_cap` decides, in clusters of more than
    `TRUST_ABOVE` executors; chosen by `scripts/adapt cjs-trust`."""
    name: ClassVar[str] = "cjs"
    max_steps: ClassVar[int] = 1
    """Decisions have no number: a session has thousands."""
    context_steps: ClassVar[int] = 0
    """A token attends to all of the context."""
    groups: ClassVar[tuple[tuple[str, ...], ...]] = (("state", "action"),)
    """The tokens of a decision."""

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """One per modality."""
        from netllm.encoders import ScalarEncoder
        from netllm.graph import GraphEncoder

        return {"state": GraphEncoder(width, self.hidden), "action": ScalarEncoder(ACTION_FEATURES, width, self.hidden)}

    def head(self, width: int) -> nn.Module:
        """Points at a stage, and at a number of executors."""
        from netllm.graph import PointerHead

        return PointerHead(width, self.hidden)


@dataclass(frozen=True, slots=True)
class Graph:
    """What is told of one decision: S stages, J jobs, E edges."""

    stages: Array
    """(S, 8): logs of work, critical path, tasks not started and mean task; runnable, schedulable; running and demand over the cluster."""
    jobs: Array
    """(J, 14)"""
    cluster: Array
    """(9,)"""
    stage_job: Array
    """Row of each stage's job, (S,)."""
    edges: Array
    """(E, 2): rows of parent and child."""
    shortest: Array
    """Rows of the jobs told one by one, (SHORTEST,): the source job, then those of least work among jobs that can be served; -1: none."""
    can_take: Array
    """Executors that a stage can be given now, (S,); 0: it can't be chosen."""


def graph_of(seen: CjsObservation) -> Graph:
    """The features of an observation, float32."""
    executors, jobs, job = seen.session.executors, seen.jobs, seen.stage_job
    work_s = seen.mean_task_s * seen.unstarted
    path_s = critical_paths_s(seen)
    log_work = np.log(np.maximum(work_s, LEAST_S) / WORK_UNIT_S)
    can_take = np.where(seen.schedulable, np.minimum(seen.demand, seen.committable), 0)
    stages = np.stack(
        [
            np.maximum(log_work, -6.0) / 2,
            np.log(np.maximum(path_s, LEAST_S)) / 3,
            np.log1p(seen.unstarted) / 3,
            np.log(np.maximum(seen.mean_task_s, LEAST_S)) / 2,
            seen.runnable,
            seen.schedulable,
            seen.running / executors,
            np.clip(seen.demand / executors, -1, 3),
        ],
        axis=1,
    )
    is_source = np.arange(jobs) == seen.source_job
    job_work_s = np.bincount(job, work_s, jobs)
    log_job_work = np.log(np.maximum(job_work_s / WORK_UNIT_S, 0.02))
    has = seen.supply - seen.committable * is_source
    wanted = np.bincount(job, seen.demand * seen.schedulable, jobs)
    runnable = np.bincount(job, seen.demand * (seen.schedulable & seen.runnable), jobs)
    longest_s = np.zeros(jobs)
    np.maximum.at(longest_s, job, path_s)
    order = np.empty(jobs)
    order[np.lexsort((np.arange(jobs), job_work_s))] = np.arange(jobs)
    running_s = np.bincount(job, seen.mean_task_s * seen.running, jobs)
    told = [
        log_job_work / 2,
        is_source,
        has / executors,
        np.log1p(np.maximum(has, 0)) / 2,
        np.minimum(wanted / executors, 3),
        np.minimum(runnable / executors, 3),
        runnable <= 0,
        np.log(np.maximum(longest_s, LEAST_S)) / 3,
        np.log1p(seen.job_age_s) / 5,
        np.diff(seen.job_first) / 10,
        order / max(jobs, 1),
        np.minimum(order, 10) / 10,
        np.log(np.maximum(running_s, LEAST_S) / WORK_UNIT_S + 0.01) / 3,
        np.log(np.maximum(job_work_s, LEAST_S) / np.maximum(job_work_s.sum(), LEAST_S) + 1e-3) / 3,
    ]
    servable = np.flatnonzero(wanted > 0)
    first = servable[np.lexsort((job_work_s[servable], ~is_source[servable]))][:SHORTEST]
    shortest = np.full(SHORTEST, -1, np.int64)
    shortest[: len(first)] = first
    cluster = [
        np.log(executors) / 4,
        seen.committable / executors,
        np.log(seen.committable) / 4,
        np.log1p(jobs) / 3,
        seen.source_job < 0,
        np.log1p(job_work_s.sum() / executors) / 5,
        seen.running.sum() / executors,
        np.minimum(seen.supply.sum() / executors, 3),
        len(servable) / 10,
    ]
    numbers = np.float32
    return Graph(
        stages.astype(numbers), np.stack(told, axis=1).astype(numbers), np.array(cluster, numbers), job, seen.edges, shortest, can_take
    )  # fmt: skip


def critical_paths_s(seen: CjsObservation) -> Array:
    """Critical path that each stage begins, tasks counted in waves, (S,); children stand below their parents."""
    own_s = (seen.mean_task_s * (1 + seen.unstarted / WAVE)).tolist()
    path_s = list(own_s)
    for parent, child in sorted(seen.edges.tolist(), reverse=True):
        path_s[parent] = max(path_s[parent], own_s[parent] + path_s[child])
    return np.array(path_s)


def action_features(before: CjsObservation | None, action: CjsAction | None, now_s: float) -> Array:
    """What was decided before, (6,): zeros at a session's beginning."""
    if before is None or action is None or action.stage < 0:
        return np.zeros(ACTION_FEATURES, np.float32)
    job = int(before.stage_job[action.stage])
    told = [
        1.0,
        action.executors / before.session.executors,
        action.executors / before.committable,
        job == before.source_job,
        np.log1p(now_s - before.now_s) / 2,
        now_s == before.now_s,
    ]
    return np.array(told, np.float32)


def joined(graphs: Sequence[Graph], actions: Sequence[Array]) -> dict[str, Array]:
    """Decisions end to end, as `netllm.graph.Decisions` has them."""
    jobs = np.array([len(graph.jobs) for graph in graphs])
    stages = np.array([len(graph.stages) for graph in graphs])
    first_job, first_stage = np.cumsum(jobs) - jobs, np.cumsum(stages) - stages
    total = int(jobs.sum())
    return {
        "stages": np.concatenate([graph.stages for graph in graphs]),
        "jobs": np.concatenate([graph.jobs for graph in graphs]),
        "cluster": np.stack([graph.cluster for graph in graphs]),
        "action": np.stack(actions),
        "stage_job": np.concatenate([graph.stage_job + first for graph, first in zip(graphs, first_job, strict=True)]),
        "job_decision": np.repeat(np.arange(len(graphs)), jobs),
        "edges": np.concatenate([graph.edges.reshape(-1, 2) + first for graph, first in zip(graphs, first_stage, strict=True)]),
        "shortest": np.stack(
            [np.where(graph.shortest < 0, total, graph.shortest + first) for graph, first in zip(graphs, first_job, strict=True)]
        ),
        "can_take": np.concatenate([graph.can_take for graph in graphs]),
    }
