"""Decisions as arrays to learn from: windows of an episode, and batches of windows with their graphs end to end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from controllers.api import CjsAction, CjsObservation
from netllm.cjs.experience import CjsEpisode, replay
from netllm.graph import CjsModel, Decisions, to_tensors
from netllm.tasks.cjs import Array, Graph, action_features, graph_of, joined
from testbed.sim.cjs_ahead import Candidates

GRAPHS = ("stages", "jobs", "cluster", "action", "stage_job", "job_decision", "edges", "shortest", "can_take")


@dataclass(frozen=True)
class LabelSettings:
    """What look-ahead's costs say of how likely a decision should be: prior x exp(-cost / temperature), over the candidates."""

    temperature_s: float = 0.15
    """Least temperature, in seconds that all jobs spend together."""
    temperature_share: float = 0.0008
    """Temperature as a share of what the rule's decision costs: costs of a large backlog differ by more, by chance, too."""
    prior: float = 2.0
    """How much likelier the rule's own decision is where nothing costs less."""
    expected: float = 2.0
    """Weight of what the student's decision is expected to cost, in temperatures, beside the cross-entropy."""


MOST_COST = 20.0
"""In temperatures; candidates that starve jobs cost this."""


def temperature_of(found: Candidates, settings: LabelSettings) -> float:
    """In seconds."""
    return max(settings.temperature_s, settings.temperature_share * float(found.cost_s[0]))


def costs_of(found: Candidates, settings: LabelSettings) -> Array:
    """What each candidate costs more than the rule's decision, in temperatures, (C,)."""
    return np.clip((found.cost_s - found.cost_s[0]) / temperature_of(found, settings), -MOST_COST, MOST_COST)


def chances_of(found: Candidates, settings: LabelSettings) -> Array:
    """How likely each candidate should be, (C,)."""
    chances: Array = np.exp(-(found.cost_s - found.cost_s.min()) / temperature_of(found, settings))
    chances[0] *= settings.prior
    chances = chances / chances.sum()
    return chances


@dataclass(frozen=True)
class Window:
    """Consecutive decisions of one session, with labels: `tried_*` are candidates, end to end."""

    arrays: dict[str, Array]
    tried_row: Array
    """Row among the window's stages, (C,)."""
    tried_executors: Array
    tried_chance: Array
    tried_cost: Array
    """See `costs_of`, (C,)."""
    tried_decision: Array
    """Of each candidate, (C,)."""

    @property
    def decisions(self) -> int:
        """How many."""
        return len(self.arrays["cluster"])


def windows_of(episode: CjsEpisode, settings: LabelSettings) -> Iterable[Window]:
    """The labelled windows of an episode, played again."""
    before: CjsObservation | None = None
    last: CjsAction | None = None
    graphs: list[Graph] = []
    actions: list[Array] = []
    labels, starts = iter(episode.labels), list(episode.starts)
    within: list[Candidates] = []
    for step, seen in replay(episode):
        if starts and starts[0] <= step:
            graphs.append(graph_of(seen))
            actions.append(action_features(before, last, seen.now_s))
            within.append(next(labels))
            if len(graphs) == episode.window or step == len(episode.actions) - 1:
                yield _window(graphs, actions, within, settings)
                graphs, actions, within = [], [], []
                starts.pop(0)
        before, last = seen, CjsAction(*map(int, episode.actions[step]))


def _window(graphs: list[Graph], actions: list[Array], labels: list[Candidates], settings: LabelSettings) -> Window:
    sizes = np.array([len(graph.stages) for graph in graphs])
    first = np.cumsum(sizes) - sizes
    able = [np.minimum(label.executors, graph.can_take[label.stage]) for label, graph in zip(labels, graphs, strict=True)]
    return Window(
        joined(graphs, actions),
        np.concatenate([label.stage + at for label, at in zip(labels, first, strict=True)]),
        np.concatenate(able),
        np.concatenate([chances_of(label, settings) for label in labels]).astype(np.float32),
        np.concatenate([costs_of(label, settings) for label in labels]).astype(np.float32),
        np.repeat(np.arange(len(labels)), [len(label.stage) for label in labels]),
    )


@dataclass(frozen=True)
class Batch:
    """Windows of equal length, and their labels."""

    seen: Decisions
    tried_row: torch.Tensor
    tried_executors: torch.Tensor
    tried_chance: torch.Tensor
    tried_cost: torch.Tensor
    tried_decision: torch.Tensor


def stack(windows: Sequence[Window]) -> Batch:
    """A batch of windows of equal length."""
    jobs = np.array([len(each.arrays["jobs"]) for each in windows])
    stages = np.array([len(each.arrays["stages"]) for each in windows])
    decisions = np.array([each.decisions for each in windows])
    first_job, first_stage = np.cumsum(jobs) - jobs, np.cumsum(stages) - stages
    shift = {"stage_job": first_job, "job_decision": np.cumsum(decisions) - decisions, "edges": first_stage}
    arrays: dict[str, Array] = {}
    for name in GRAPHS:
        parts = [each.arrays[name] for each in windows]
        if name == "shortest":
            parts = [np.where(part == count, jobs.sum(), part + at) for part, count, at in zip(parts, jobs, first_job, strict=True)]
        elif name in shift:
            parts = [part + at for part, at in zip(parts, shift[name], strict=True)]
        arrays[name] = np.concatenate(parts)
    rows = np.concatenate([each.tried_row + at for each, at in zip(windows, first_stage, strict=True)])
    decision = np.concatenate([each.tried_decision + at for each, at in zip(windows, shift["job_decision"], strict=True)])
    told = (np.concatenate([getattr(each, name) for each in windows]) for name in ("tried_executors", "tried_chance", "tried_cost"))
    return Batch(to_tensors(arrays, len(windows)), *(torch.from_numpy(each) for each in (rows, *told, decision)))


def loss_of(model: CjsModel, batch: Batch, settings: LabelSettings) -> torch.Tensor:
    """Mean over all decisions of the batch: cross-entropy against the candidates' chances, in nats, and what a choice among the candidates
    is expected to cost, so many times.
    """
    seen = batch.seen
    encoded, queries = model(seen)
    chosen, log_chance = model.head.stage_log_chances(seen, encoded, queries)
    of_row = torch.full((len(seen.stages),), -torch.inf).index_put((chosen,), log_chance)
    rows, pair = torch.unique(batch.tried_row, return_inverse=True)
    executors = model.head.executor_log_chances(seen, encoded, queries, rows)
    found = of_row[batch.tried_row] + executors[pair, batch.tried_executors - 1]
    decisions = len(seen.cluster)
    loss = -(batch.tried_chance * found).sum() / decisions
    if not settings.expected:
        return loss
    most = found.detach().new_full((decisions,), -torch.inf).scatter_reduce(0, batch.tried_decision, found.detach(), "amax")
    weight = torch.exp(found - most[batch.tried_decision])
    total = weight.new_zeros(decisions).index_add(0, batch.tried_decision, weight)
    return loss + settings.expected * (weight / total[batch.tried_decision] * batch.tried_cost).sum() / decisions
