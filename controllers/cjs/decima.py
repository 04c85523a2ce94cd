"""Decima: a graph neural network over the stages of all jobs chooses a stage, then a number of executors for its job."""

from typing import Any, Literal

import numpy as np

from controllers.api import CjsAction, CjsObservation, CjsPolicy
from controllers.weights import CJS_SHIPPED, Weights, find_weights, read_weights
from testbed.errors import UserError

FEATURES = 5
JOB_FEATURES = 3
"""Of a stage's features those that are its job's, seen by the executor head."""
EMBEDDING = 16
LAYERS = 3
TASKS_SCALE = 200
WORK_SCALE_S = 100.0
"""Scales of the features (spark-sched-sim, wrappers/neural.py: 200 tasks, 1e5 ms)."""
SLOPE = 0.2
"""Of the leaky ReLU."""
GRAPH_HIDDEN, HEAD_HIDDEN = (32, 16), (64, 64)
BLOCKS = {
    "node_encoder.prep": (FEATURES, *GRAPH_HIDDEN, EMBEDDING),
    "node_encoder.message": (EMBEDDING, *GRAPH_HIDDEN, EMBEDDING),
    "node_encoder.update": (EMBEDDING, *GRAPH_HIDDEN, EMBEDDING),
    "dag_encoder": (FEATURES + EMBEDDING, *GRAPH_HIDDEN, EMBEDDING),
    "global_encoder": (EMBEDDING, *GRAPH_HIDDEN, EMBEDDING),
    "stage_score": (FEATURES + 3 * EMBEDDING, *HEAD_HIDDEN, 1),
    "exec_score": (JOB_FEATURES + 2 * EMBEDDING + 1, *HEAD_HIDDEN, 1),
}
"""Blocks of three linear layers and the widths between them; weights are `NAME.layer{0,1,2}.{weight,bias}`, (out, in)."""
HEADS = ("stage_score", "exec_score")
Array = np.ndarray[Any, Any]


def features(observation: CjsObservation) -> Array:
    """Of each stage, (S, 5), float32.

    | feature | scale |
    | --- | --- |
    | executors its job may be given now | cluster |
    | 1 if its job releases the executors on offer, else -1 | |
    | supply of its job | cluster |
    | tasks that have not started | 200 |
    | tasks that have not started x duration of the last task | 100 s |
    """
    job, executors = observation.stage_job, observation.session.executors
    unstarted = observation.unstarted.astype(np.float32)
    seen = np.empty((observation.stages, FEATURES), np.float32)
    seen[:, 0] = observation.commit_caps[job] / executors
    seen[:, 1] = np.where(job == observation.source_job, 1, -1)
    seen[:, 2] = observation.supply[job] / executors
    seen[:, 3] = unstarted / TASKS_SCALE
    seen[:, 4] = unstarted * observation.last_task_s.astype(np.float32) / np.float32(WORK_SCALE_S)
    return seen


def block(weights: Weights, name: str, inputs: Array) -> Array:
    """Linear, activation, linear, activation, linear: leaky ReLU in the graph network, tanh in the heads."""
    x = inputs
    for layer in range(LAYERS):
        x = x @ weights[f"{name}.layer{layer}.weight"].T + weights[f"{name}.layer{layer}.bias"]
        if layer < LAYERS - 1:
            x = np.tanh(x) if name in HEADS else np.maximum(x, SLOPE * x)
    return x


def embed_stages(weights: Weights, seen: Array, edges: Array) -> Array:
    """Embeddings of stages, (S, 16): messages go from children to parents, one level of the graph at a time, the deepest first.

    `edges` (E, 2) are rows of parent and child. A level's pass takes all edges among its stages and their children, as the published code
    does; on TPC-H that equals hearing each stage once from all its children. Without any edge there is no pass, and no update either.
    """
    prepared = block(weights, "node_encoder.prep", seen)
    if not len(edges):
        return prepared
    parents, children = edges[:, 0], edges[:, 1]
    embedded = np.zeros_like(prepared)
    leaves = np.ones(len(seen), bool)
    leaves[parents] = False
    embedded[leaves] = block(weights, "node_encoder.update", prepared[leaves])
    depth = depths(len(seen), edges)
    for level in range(int(depth.max()) - 1, -1, -1):
        taking_part = depth == level
        taking_part[children[taking_part[parents]]] = True
        taken = taking_part[parents] & taking_part[children]
        receivers, senders = parents[taken], children[taken]
        heard = np.zeros_like(embedded)
        np.add.at(heard, receivers, block(weights, "node_encoder.message", embedded[senders]))
        updated = np.unique(receivers)
        embedded[updated] = prepared[updated] + block(weights, "node_encoder.update", heard[updated])
    return embedded


def depths(stages: int, edges: Array) -> Array:
    """Longest path to each stage from one without parents, (S,). Parents stand above their children."""
    depth = [0] * stages
    for parent, child in sorted(edges.tolist()):
        depth[child] = max(depth[child], depth[parent] + 1)
    return np.array(depth)


class Scorer:
    """The network on one observation: embeddings once, then the two heads."""

    def __init__(self, weights: Weights, seen: Array, edges: Array, job_first: Array) -> None:
        self._weights, self._seen, self._first = weights, seen, job_first
        self._stages = embed_stages(weights, seen, edges)  # (S, 16)
        encoded = block(weights, "dag_encoder", np.concatenate([seen, self._stages], axis=1))
        self._jobs = np.add.reduceat(encoded, job_first[:-1], axis=0)  # (J, 16)
        self._all = block(weights, "global_encoder", self._jobs).sum(axis=0)  # (16,)

    def stage_scores(self, rows: Array, jobs: Array) -> Array:
        """Of the stages in `rows`, whose jobs are `jobs`."""
        everything = np.broadcast_to(self._all, (len(rows), EMBEDDING))
        inputs = np.concatenate([self._seen[rows], self._stages[rows], self._jobs[jobs], everything], axis=1)
        return block(self._weights, "stage_score", inputs)[:, 0]

    def executor_scores(self, job: int, most: int, executors: int) -> Array:
        """Of giving job `job` 1 to `most` executors, (most,); the network sees one fewer, over the cluster's size."""
        shared = np.concatenate([self._seen[self._first[job], :JOB_FEATURES], self._jobs[job], self._all])
        inputs = np.empty((most, len(shared) + 1), np.float32)
        inputs[:, :-1] = shared
        inputs[:, -1] = np.arange(most) / executors
        return block(self._weights, "exec_score", inputs)[:, 0]


def chances(scores: Array) -> Array:
    """Softmax."""
    raised = np.exp(scores - scores.max())
    found: Array = raised / raised.sum()
    return found


class Decima(CjsPolicy):
    """Decima (Mao et al., SIGCOMM 2019) as spark-sched-sim re-implemented it: 20 802 weights, trained by `scripts/train decima`.

    | option | meaning |
    | --- | --- |
    | `weights` | a safetensors file with the arrays of `BLOCKS`; default: those that ship |
    | `decode` | `sample`: drawn from both heads' probabilities, as published; `greedy`: the likeliest, worse with the published weights |

    Differs from the authors' TensorFlow code in features, widths and in the action, which adds executors here and limited a job's there.
    Never declines.
    """

    label = "Decima"
    colour = "#ff7f0e"
    citation = "Mao et al., Learning Scheduling Algorithms for Data Processing Clusters, SIGCOMM 2019"

    def __init__(self, weights: str = "", decode: Literal["sample", "greedy"] = "sample") -> None:
        path = find_weights(weights, "decima", CJS_SHIPPED)
        self._weights, self.decode = read_weights(path), decode
        for name, shape in shapes().items():
            if name not in self._weights or self._weights[name].shape != shape:
                found = self._weights[name].shape if name in self._weights else "none"
                raise UserError(f"policy decima: {path} holds {name} {found}, wanted {shape}")

    def decide(self, observation: CjsObservation) -> CjsAction:
        """A stage, then executors for its job."""
        rows = np.flatnonzero(observation.schedulable)
        jobs = observation.stage_job[rows]
        scorer = Scorer(self._weights, features(observation), observation.edges, observation.job_first)
        chosen = self._choose(scorer.stage_scores(rows, jobs))
        most = int(observation.commit_caps[jobs[chosen]])
        executors = 1 + self._choose(scorer.executor_scores(int(jobs[chosen]), most, observation.session.executors))
        return CjsAction(int(rows[chosen]), executors)

    def _choose(self, scores: Array) -> int:
        if self.decode == "greedy":
            return int(np.argmax(scores))
        cumulated = np.cumsum(chances(scores).astype(np.float64))
        return int(min(np.searchsorted(cumulated, self.rng.random() * cumulated[-1], side="right"), len(scores) - 1))


def shapes() -> dict[str, tuple[int, ...]]:
    """Arrays of a weights file."""
    found: dict[str, tuple[int, ...]] = {}
    for name, widths in BLOCKS.items():
        for layer in range(LAYERS):
            found[f"{name}.layer{layer}.weight"] = (widths[layer + 1], widths[layer])
            found[f"{name}.layer{layer}.bias"] = (widths[layer + 1],)
    return found
