"""The graph encoder, the heads that point, and the model around the shared backbone.

| step | |
| --- | --- |
| stages | features of the stage and of its job; twice, messages from children to parents |
| jobs | features of the job and the sum over its stages |
| token | cluster, sum over jobs, and the shortest jobs one by one |
| stage head | scores each stage that may be chosen from its embedding, its job's, and a query: of the token, and of the backbone's output |
| executor head | scores each number of executors that the stage can take, from the same and the number |

Graphs of all decisions lie end to end in one batch (`Decisions`), so that any number of stages costs just their rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn

from netllm.backbone import Backbone
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.cjs import CLUSTER_FEATURES, JOB_FEATURES, SHORTEST, STAGE_FEATURES, Array, CjsTask

ROUNDS = 2
"""Messages from children to parents; what lies deeper comes through the critical path."""
SUM_SCALE = 8.0
"""Sums over stages and over jobs are divided by this."""
COUNT_FEATURES = 8


@dataclass(frozen=True)
class Decisions:
    """B sessions of T decisions each, D = B x T in session order; graphs end to end: R stages, Q jobs, E edges in all."""

    batch: int
    stages: torch.Tensor
    """(R, STAGE_FEATURES)"""
    jobs: torch.Tensor
    """(Q, JOB_FEATURES)"""
    cluster: torch.Tensor
    """(D, CLUSTER_FEATURES)"""
    action: torch.Tensor
    """What was decided before, (D, ACTION_FEATURES)."""
    stage_job: torch.Tensor
    """(R,)"""
    job_decision: torch.Tensor
    """(Q,)"""
    edges: torch.Tensor
    """(E, 2)"""
    shortest: torch.Tensor
    """(D, SHORTEST): rows of jobs, Q where there is none."""
    can_take: torch.Tensor
    """Executors that a stage can be given, (R,); 0: it can't be chosen."""

    @property
    def stage_decision(self) -> torch.Tensor:
        """(R,)"""
        return self.job_decision[self.stage_job]

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Job and decision of stages."""
        return {"job": self.stage_job[rows], "decision": self.stage_decision[rows]}


class Encoded(NamedTuple):
    """What the encoder made of a batch."""

    stages: torch.Tensor
    """(R, hidden)"""
    jobs: torch.Tensor
    """(Q, hidden)"""
    token: torch.Tensor
    """(D, width)"""


def layers(*widths: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    made: list[nn.Module] = []
    for i in range(len(widths) - 1):
        made += [nn.Linear(widths[i], widths[i + 1]), nn.GELU()]
    return nn.Sequential(*made[:-1])


class GraphEncoder(nn.Module):
    """Stages, jobs and cluster to one token a decision, and embeddings for the heads."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.prepare = layers(STAGE_FEATURES + JOB_FEATURES, hidden, hidden)
        self.message = nn.ModuleList(layers(hidden, hidden) for _ in range(ROUNDS))
        self.update = nn.ModuleList(layers(2 * hidden, hidden, hidden) for _ in range(ROUNDS))
        self.job = layers(JOB_FEATURES + hidden, 2 * hidden, hidden)
        self.all = layers(hidden, hidden, hidden)
        self.token = layers(CLUSTER_FEATURES + hidden + SHORTEST * JOB_FEATURES, 4 * hidden, width)

    def forward(self, seen: Decisions) -> Encoded:
        """Messages go from child to parent along `seen.edges`."""
        stages = self.prepare(torch.cat([seen.stages, seen.jobs[seen.stage_job]], -1))  # (R, hidden)
        parents, children = seen.edges.unbind(-1)
        for message, update in zip(self.message, self.update, strict=True):
            heard = torch.zeros_like(stages).index_add(0, parents, message(stages)[children])
            stages = stages + update(torch.cat([stages, heard], -1))
        summed = stages.new_zeros(len(seen.jobs), stages.shape[1]).index_add(0, seen.stage_job, stages) / SUM_SCALE
        jobs = self.job(torch.cat([seen.jobs, summed], -1))  # (Q, hidden)
        decisions = len(seen.cluster)
        everything = jobs.new_zeros(decisions, jobs.shape[1]).index_add(0, seen.job_decision, self.all(jobs)) / SUM_SCALE
        table = torch.cat([seen.jobs, seen.jobs.new_zeros(1, JOB_FEATURES)])[seen.shortest].flatten(1)  # (D, SHORTEST x JOB_FEATURES)
        return Encoded(stages, jobs, self.token(torch.cat([seen.cluster, everything, table], -1)))


class PointerHead(nn.Module):
    """Points at a stage, then at a number of executors for it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.token_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.token_query = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden)
        self.stage = layers(3 * hidden + CLUSTER_FEATURES, 2 * hidden, hidden, 1)
        self.place = nn.Linear(3 * hidden + CLUSTER_FEATURES, hidden)
        self.count = nn.Linear(COUNT_FEATURES, hidden)
        self.executors = layers(hidden, hidden, 1)
        for last in (self.stage[-1], self.executors[-1], self.query):
            nn.init.zeros_(last.get_parameter("weight"))

    def queries(self, tokens: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """What decisions ask for, (D, hidden): the tokens (D, width), and what the backbone made of them, (D, width)."""
        asked: torch.Tensor = self.token_query(self.token_norm(tokens.float()))
        return asked if hidden is None else asked + self.query(self.norm(hidden.float()))

    def _told(self, seen: Decisions, encoded: Encoded, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        at = seen.at(rows)
        return torch.cat([encoded.stages[rows], encoded.jobs[at["job"]], queries[at["decision"]], seen.cluster[at["decision"]]], -1)

    def stage_log_chances(self, seen: Decisions, encoded: Encoded, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of all stages that may be chosen, (C,), and log-probabilities among those of the same decision, (C,)."""
        rows = seen.can_take.nonzero().squeeze(1)
        scores, decision = self.stage(self._told(seen, encoded, queries, rows)).squeeze(1), seen.stage_decision[rows]
        decisions = len(seen.cluster)
        most = scores.detach().new_full((decisions,), -torch.inf).scatter_reduce(0, decision, scores.detach(), "amax")
        total = scores.new_zeros(decisions).index_add(0, decision, torch.exp(scores - most[decision]))
        return rows, scores - most[decision] - torch.log(total)[decision]

    def executor_log_chances(self, seen: Decisions, encoded: Encoded, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of 1, 2, ... executors for the stages in `rows`, (len(rows), most); minus infinity beyond what one can take."""
        at, can_take = seen.at(rows), seen.can_take[rows]
        counts = torch.arange(1, int(can_take.max()) + 1)
        cluster, has = seen.cluster[at["decision"]], seen.jobs[at["job"], 2]
        size = torch.exp(4 * cluster[:, 0])
        told = _count_features(counts, can_take, size, cluster[:, 1] * size, has * size)
        place = self.place(self._told(seen, encoded, queries, rows))
        scores = self.executors(nn.functional.gelu(place[:, None] + self.count(told))).squeeze(-1)  # (rows, most)
        return torch.log_softmax(scores.masked_fill(counts > can_take[:, None], -torch.inf), -1)


def _count_features(
    counts: torch.Tensor, can_take: torch.Tensor, size: torch.Tensor, on_offer: torch.Tensor, has: torch.Tensor
) -> torch.Tensor:
    """What a number of executors means, (rows, most, COUNT_FEATURES)."""
    count = counts.float().expand(len(can_take), -1)
    most, size, on_offer, has = (each.float()[:, None] for each in (can_take, size, on_offer, has))
    told = [
        count / size,
        count / most,
        count / on_offer,
        (has + count) / size,
        torch.log(count) / 4,
        torch.log(has.clamp(min=0) + count) / 4,
    ]
    return torch.stack([*told, (count == most).float(), (count == 1).float()], -1)


class CjsModel(TaskModel):
    """Graph encoder and pointing heads around the shared, frozen backbone: one token a decision."""

    task: CjsTask
    head: PointerHead

    def __init__(self, backbone: Backbone, task: CjsTask, lora: LoraSettings, adapter_name: str | None = None) -> None:
        super().__init__(backbone, task, lora, adapter_name)
        self.bare = False
        """Let the heads see the tokens alone: encoder and heads learn so first, many times as quickly."""

    def encode(self, seen: Decisions) -> tuple[Encoded, torch.Tensor]:
        """What the encoder made, and the tokens in the backbone's type, (B, T, width)."""
        encoded = self.encoders["state"](seen)
        tokens = self.norm(encoded.token + self.encoders["action"](seen.action) + self.step.weight[0])
        return encoded, tokens.unflatten(0, (seen.batch, -1)).to(self.backbone.dtype)

    def forward(self, seen: Decisions) -> tuple[Encoded, torch.Tensor]:  # type: ignore[override]
        """What the heads need: embeddings, and queries (D, hidden) of every decision of whole windows, in one pass."""
        encoded, tokens = self.encode(seen)
        if self.bare:
            return encoded, self.head.queries(tokens.flatten(0, 1))
        with self.backbone.lock:
            self.switch.activate()
            hidden = self.backbone.model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return encoded, self.head.queries(tokens.flatten(0, 1), hidden.flatten(0, 1))


def to_tensors(arrays: Mapping[str, Array], batch: int) -> Decisions:
    """The same arrays as tensors, without copying; names are those of `Decisions`."""
    names = [field.name for field in fields(Decisions) if field.name != "batch"]
    return Decisions(batch, **{name: torch.from_numpy(arrays[name]) for name in names})
