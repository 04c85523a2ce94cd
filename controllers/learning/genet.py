"""Genet's part of the training: its network, its action set, and sessions drawn from real traces and from the curriculum's environments."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from controllers.abr import genet
from controllers.abr.genet import ACTIONS, HIDDEN, ROWS, SAMPLES, WHOLE_ROWS, Seen
from controllers.learning.curriculum import Curriculum, Environment, Trial, environment_trace, hardest, search
from controllers.learning.genet_baseline import play_baseline
from controllers.learning.playbacks import Playbacks, Pool, Videos
from controllers.learning.ppo import Learner, PpoSettings, play_out
from controllers.learning.validation import CHUNKS, ValidationSessions
from players.media import load_manifest
from testbed.sim.batch import Integers
from traces.training import Grouped, Mix, Sources, load_sources

VIDEO = "video1"
PARTS = 16
"""Parts of a batch of sessions; each plays on real traces or in one environment."""
TRACE_PARTS = 12
"""Parts on traces of `traces.training.Mix`, mostly real, with the default round trip and buffer cap (as in Genet's code for real ones)."""
TRACES = 192
"""Traces drawn for those."""
ENVIRONMENT_TRACES = 8
"""Traces made for a part that plays in an environment."""
ROUNDS = 9
"""Environments promoted, at equal distances (the paper's number of rounds); before the first all of the box is trained on."""
GAP_SESSIONS = 32
"""Traces, each played once by model and baseline, that a gap is measured on (the paper: 10)."""
FLAT = len(ROWS) * SAMPLES
OPTIMISATION = PpoSettings(iterations=300, sessions=1024, minibatch=4096, entropy=0.01)
"""A fifth of the usual entropy bonus: what is sampled in use should not be noisier than it must."""


class Actor(nn.Module):
    """The network that `controllers.abr.genet.actor` computes; its weights bear the same names."""

    def __init__(self) -> None:
        super().__init__()
        for name in ROWS:
            setattr(self, name, nn.Linear(SAMPLES if name in WHOLE_ROWS else 1, HIDDEN))
        self.merge, self.out = nn.Linear(HIDDEN * len(ROWS), HIDDEN), nn.Linear(HIDDEN, ACTIONS)
        nn.init.orthogonal_(self.out.weight, 0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 36) to logits (N, 3). All branches are one matrix of blocks, several times as fast as six."""
        branches = [getattr(self, name) for name in ROWS]
        padded = [functional.pad(each.weight, (SAMPLES - each.in_features, 0)) for each in branches]
        blocks = torch.block_diag(*padded)  # type: ignore[no-untyped-call]  # (768, 36)
        hidden = functional.linear(x, blocks, torch.cat([each.bias for each in branches])).relu()
        logits: torch.Tensor = self.out(self.merge(hidden).relu())
        return logits


class GenetDesign:
    """Down, stay, up, from the state of `controllers.abr.genet`."""

    actions, features = ACTIONS, FLAT

    def network(self) -> nn.Module:
        """A new actor."""
        return Actor()

    def inputs(self, plays: Playbacks) -> np.ndarray:
        """(N, 36)."""
        return genet.features(seen_by(plays)).reshape(-1, FLAT)

    def allowed(self, plays: Playbacks) -> np.ndarray:
        """All: a move beyond the ladder stays."""
        return np.ones((len(plays.which), ACTIONS), bool)

    def slots(self, plays: Playbacks, actions: Integers) -> Integers:
        """A level from the last one; the videos must fill the ladder, so that slots are levels."""
        return np.clip(plays.slots[plays.chunk - 1] + actions - 1, 0, plays.slot_mbps.shape[1] - 1)


def seen_by(plays: Playbacks) -> Seen:
    """What the policy would be told of each session."""
    rows = np.arange(len(plays.which))
    last = plays.slot_mbps[rows, plays.slots[plays.chunk - 1]]
    return Seen(
        past_bytes=plays.past(plays.sizes_bytes, SAMPLES),
        past_s=plays.past(plays.download_s, SAMPLES),
        buffer_s=plays.buffer_s,
        last_share=last / plays.slot_mbps[:, -1],
        next_bytes=plays.next_bytes,
        chunks_left=plays.session.chunks - plays.chunk,
    )


class GenetWorld:
    """Sessions on real traces and in the curriculum's environments, and the curriculum's growth."""

    name = "genet"
    sampled = True

    def __init__(self, seed: int, iterations: int, sources: Sources | None = None, chunks: int = CHUNKS) -> None:
        self._seed, self._every = seed, max(iterations // (ROUNDS + 1), 1)
        self._sources = sources or load_sources()
        self._mix = Mix(Grouped(self._sources.train))
        self._videos = Videos([load_manifest(VIDEO)], chunks)
        self.validation = ValidationSessions(self._sources, videos=self._videos.manifests, chunks=chunks)
        self._promoted: list[Trial] = []

    @property
    def curriculum(self) -> Curriculum:
        """What environments are drawn from now."""
        return Curriculum(tuple(trial.environment for trial in self._promoted))

    def prepare(self, learner: Learner, iteration: int) -> None:
        """At the beginning of a round, find the environment where the model falls behind the baseline by most, and promote it."""
        number = iteration // self._every
        if iteration % self._every or not 1 <= number <= ROUNDS or len(self._promoted) >= number:
            return
        trials = search(lambda each: self.gap(learner, each, number), seed=self._seed * (ROUNDS + 1) + number)
        self._promoted.append(hardest(trials))

    def gap(self, learner: Learner, environment: Environment, number: int) -> float:
        """QoE per chunk of RobustMPC less that of the model, on the same traces."""
        rng = np.random.default_rng([self._seed, 6, number])
        pool = Pool([environment_trace(rng, environment) for _ in range(GAP_SESSIONS)])
        sides = [self._playbacks(pool, np.arange(GAP_SESSIONS), np.zeros(GAP_SESSIONS), environment) for _ in range(2)]
        model = play_out(GenetDesign(), learner.mean_actor, sides[0], rng)
        return float(np.mean(play_baseline(sides[1]) - model))

    def sessions(self, iteration: int, rng: np.random.Generator, count: int) -> Sequence[Playbacks]:
        """`count` sessions in `PARTS` parts, each from anywhere in its trace."""
        measured = Pool([self._mix.draw(rng)[0] for _ in range(TRACES)])
        curriculum, parts = self.curriculum, []
        for part in range(PARTS):
            environment = None if part < TRACE_PARTS else curriculum.draw(rng)
            pool = Pool([environment_trace(rng, environment) for _ in range(ENVIRONMENT_TRACES)]) if environment else measured
            which = rng.integers(len(pool.traces.durations_s), size=max(count // PARTS, 1))
            parts.append(self._playbacks(pool, which, rng.uniform(0, pool.traces.durations_s[which]), environment))
        return parts

    def _playbacks(self, pool: Pool, which: Integers, offsets_s: np.ndarray, environment: Environment | None) -> Playbacks:
        session = self._videos.session
        if environment:
            session = replace(session, rtt_s=environment.rtt_s, buffer_cap_s=environment.buffer_cap_s)
        return Playbacks(pool, self._videos, which, offsets_s, np.zeros(len(which), np.int64), session)

    def facts(self) -> dict[str, Any]:
        """Data, and the environments promoted with the gap that each was found with."""
        return {
            "sets": list(self._sources.sets),
            "held_out": self._sources.held_out_groups,
            "videos": [VIDEO],
            "trace_driven": TRACE_PARTS / PARTS,
            "synthetic": self._mix.synthetic,
            "baseline": "robust_mpc+jumps=adjacent",
            "promoted": [asdict(trial.environment) | {"gap": trial.gap} for trial in self._promoted],
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Take up the promoted environments."""
        names = [each.name for each in fields(Environment)]
        self._promoted = [Trial(Environment(**{name: row[name] for name in names}), row["gap"]) for row in facts["promoted"]]
