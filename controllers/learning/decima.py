"""Decima's network to learn with: what `controllers.cjs.decima` computes, for many decisions at once; weights bear the same names."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from controllers.api import CjsObservation
from controllers.cjs.decima import BLOCKS, HEADS, JOB_FEATURES, SLOPE, features

CLUSTER_FEATURES = 10


@dataclass(frozen=True)
class Graphs:
    """D decisions end to end: R stages, Q jobs, E edges in all."""

    stages: torch.Tensor
    """(R, 5)"""
    stage_job: torch.Tensor
    """(R,)"""
    job_decision: torch.Tensor
    """(Q,)"""
    first_stage: torch.Tensor
    """Of each job, (Q,)."""
    edges: torch.Tensor
    """(E, 2): rows of parent and child."""
    level: torch.Tensor
    """Of each edge's parent, (E,): the longest path to it."""
    rows: torch.Tensor
    """Stages that may be chosen, (C,)."""
    caps: torch.Tensor
    """Executors that each job may be given, (Q,)."""
    executors: torch.Tensor
    """Size of each decision's cluster, (D,)."""

    @property
    def stage_decision(self) -> torch.Tensor:
        """(R,)"""
        return self.job_decision[self.stage_job]


@dataclass(frozen=True)
class Seen:
    """One decision's part of `Graphs`, as arrays."""

    stages: np.ndarray
    stage_job: np.ndarray
    first_stage: np.ndarray
    edges: np.ndarray
    level: np.ndarray
    rows: np.ndarray
    caps: np.ndarray
    executors: int
    cluster: np.ndarray
    """What the critic is told of it, (CLUSTER_FEATURES,)."""


def seen_by(observation: CjsObservation) -> Seen:
    """What the network and the critic are told."""
    depth = [0] * observation.stages
    for parent, child in sorted(observation.edges.tolist()):
        depth[child] = max(depth[child], depth[parent] + 1)
    return Seen(
        stages=features(observation),
        stage_job=observation.stage_job,
        first_stage=observation.job_first[:-1],
        edges=observation.edges,
        level=np.array(depth)[observation.edges[:, 0]] if len(observation.edges) else np.zeros(0, np.int64),
        rows=np.flatnonzero(observation.schedulable),
        caps=observation.commit_caps,
        executors=observation.session.executors,
        cluster=_cluster(observation),
    )


def _cluster(seen: CjsObservation) -> np.ndarray:
    """Work here, who runs, how many: what the time to come depends on."""
    executors = seen.session.executors
    work_s = np.bincount(seen.stage_job, seen.mean_task_s * (seen.unstarted + 0.5 * seen.running), seen.jobs) / executors
    order = np.sort(work_s)
    waiting_s = float((np.arange(len(order), 0, -1) * order).sum())
    told = [
        seen.jobs / 10,
        np.log1p(seen.jobs),
        work_s.sum() / 100,
        np.log1p(work_s.sum()),
        waiting_s / 1000,
        np.log1p(waiting_s) / 3,
        seen.running.sum() / executors,
        seen.committable / executors,
        np.log(executors) / 4,
        np.log1p(seen.job_age_s).mean(),
    ]
    return np.array(told, np.float32)


def joined(parts: Sequence[Seen]) -> Graphs:
    """Decisions end to end."""
    jobs, stages = np.array([len(each.caps) for each in parts]), np.array([len(each.stages) for each in parts])
    first_job, first_stage = np.cumsum(jobs) - jobs, np.cumsum(stages) - stages

    def shifted(name: str, by: np.ndarray) -> np.ndarray:
        return np.concatenate([getattr(each, name) + at for each, at in zip(parts, by, strict=True)])

    def plain(name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in parts])

    arrays = (
        plain("stages"),
        shifted("stage_job", first_job),
        np.repeat(np.arange(len(parts)), jobs),
        shifted("first_stage", first_stage),
        shifted("edges", first_stage),
        plain("level"),
        shifted("rows", first_stage),
        plain("caps"),
        np.array([each.executors for each in parts], np.float32),
    )
    return Graphs(*(torch.from_numpy(each) for each in arrays))


class Block(nn.Module):
    """Linear, activation, linear, activation, linear."""

    def __init__(self, name: str) -> None:
        super().__init__()
        widths = BLOCKS[name]
        self.layer0, self.layer1, self.layer2 = (nn.Linear(a, b) for a, b in pairwise(widths))
        self._tanh = name in HEADS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., first width) to (..., last width)."""
        for layer in (self.layer0, self.layer1):
            x = layer(x)
            x = torch.tanh(x) if self._tanh else nn.functional.leaky_relu(x, SLOPE)
        made: torch.Tensor = self.layer2(x)
        return made


class NodeEncoder(nn.Module):
    """The three blocks of message passing."""

    def __init__(self) -> None:
        super().__init__()
        self.prep, self.message, self.update = (Block(f"node_encoder.{name}") for name in ("prep", "message", "update"))


class Network(nn.Module):
    """Both heads for many decisions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.node_encoder = NodeEncoder()
        self.dag_encoder, self.global_encoder = Block("dag_encoder"), Block("global_encoder")
        self.stage_score, self.exec_score = Block("stage_score"), Block("exec_score")
        for head in (self.stage_score, self.exec_score):
            nn.init.zeros_(head.layer2.weight)

    def embed(self, seen: Graphs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings of stages (R, 16), jobs (Q, 16) and of everything (D, 16)."""
        stages = self._embed_stages(seen)
        encoded = self.dag_encoder(torch.cat([seen.stages, stages], -1))
        jobs = encoded.new_zeros(len(seen.caps), encoded.shape[1]).index_add(0, seen.stage_job, encoded)
        everything = jobs.new_zeros(len(seen.executors), jobs.shape[1]).index_add(0, seen.job_decision, self.global_encoder(jobs))
        return stages, jobs, everything

    def _embed_stages(self, seen: Graphs) -> torch.Tensor:
        """Messages go from children to parents, the deepest parents first, each from all its children at once."""
        prepared = self.node_encoder.prep(seen.stages)
        parents, children = seen.edges.unbind(-1)
        leaf = torch.ones(len(prepared), dtype=torch.bool).index_fill(0, parents, False)
        has_edges = torch.zeros(len(seen.executors), dtype=torch.bool).index_fill(0, seen.stage_decision[parents], True)
        bare = ~has_edges[seen.stage_decision]  # a decision without any edge: no message, and no update either
        embedded = torch.where(bare[:, None], prepared, self.node_encoder.update(prepared) * (leaf & ~bare)[:, None])
        for level in range(int(seen.level.max()) if len(seen.level) else -1, -1, -1):
            edges = (seen.level == level).nonzero().squeeze(1)
            receivers, place = torch.unique(parents[edges], return_inverse=True)
            heard = prepared.new_zeros(len(receivers), prepared.shape[1])
            heard = heard.index_add(0, place, self.node_encoder.message(embedded[children[edges]]))
            embedded = embedded.index_add(0, receivers, prepared[receivers] + self.node_encoder.update(heard))
        return embedded

    def stage_log_chances(self, seen: Graphs, embedded: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Log-probability of each stage in `seen.rows` within its decision, (C,)."""
        stages, jobs, everything = embedded
        rows = seen.rows
        job, decision = seen.stage_job[rows], seen.stage_decision[rows]
        told = torch.cat([seen.stages[rows], stages[rows], jobs[job], everything[decision]], -1)
        scores: torch.Tensor = self.stage_score(told).squeeze(1)
        most = scores.detach().new_full((len(seen.executors),), -torch.inf).scatter_reduce(0, decision, scores.detach(), "amax")
        total = scores.new_zeros(len(seen.executors)).index_add(0, decision, torch.exp(scores - most[decision]))
        return scores - most[decision] - torch.log(total)[decision]

    def executor_log_chances(
        self, seen: Graphs, embedded: tuple[torch.Tensor, torch.Tensor, torch.Tensor], jobs: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of 1, 2, ... executors for one job of each decision, (D, most); minus infinity beyond its cap."""
        caps = seen.caps[jobs]
        most = int(caps.max())
        shared = torch.cat([seen.stages[seen.first_stage[jobs], :JOB_FEATURES], embedded[1][jobs], embedded[2]], -1)
        counts = torch.arange(most).expand(len(jobs), -1)
        share = counts / seen.executors[:, None]
        # the first layer sees the shared part once a job, not once a number
        first, width = self.exec_score.layer0, shared.shape[1]
        hidden = torch.tanh((shared @ first.weight[:, :width].T + first.bias)[:, None] + share[..., None] * first.weight[:, width])
        hidden = torch.tanh(self.exec_score.layer1(hidden))
        scores = self.exec_score.layer2(hidden).squeeze(-1)
        return torch.log_softmax(scores.masked_fill(counts >= caps[:, None], -torch.inf), -1)


class Critic(nn.Module):
    """Time to come, discounted, and how far it strays."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(D, features) to value (D,), in the reward's unit, and spread (D,)."""
        value, log_spread = self.layers(told).unbind(-1)
        return value * 10, torch.exp(log_spread.clamp(-5, 5))
