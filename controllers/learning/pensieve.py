"""Pensieve's part of the training: its network, the sessions it learns on, and those it is chosen on."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from controllers.abr import pensieve
from controllers.abr.pensieve import FEATURES, SAMPLES, SLOTS, Seen, ahead_of, relative_sizes
from controllers.api import AbrSession
from controllers.learning.playbacks import Playbacks, Pool, Videos
from controllers.learning.ppo import Learner
from controllers.learning.validation import CHUNKS, VALIDATION, ValidationSessions
from players.ladders import draw_video
from players.media import load_manifest
from testbed.sim.batch import Integers
from traces.training import Grouped, Mix, Sources, load_sources

HIDDEN = 128
TRACES = 384
"""Traces in a pool."""
PARTS = 4
"""Parts of a batch of sessions; in the last one round trip and buffer cap vary."""
REBUILT = 10
"""Iterations on one pool."""
VIDEOS = ("video1", "video1", "synthetic")
"""`video2` is for tests."""
OTHERS = 24
"""Other ladders in a pool."""
VARIED = 0.3
"""Share of sessions whose video has another ladder."""


class Actor(nn.Module):
    """Two hidden layers, as `controllers.abr.pensieve.log_probabilities` computes them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, SLOTS)]
        for layer, gain in zip(layers, (1.0, 1.0, 0.01), strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        self.actor = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, FEATURES) to logits (N, SLOTS)."""
        for layer in self.actor[:-1]:
            x = layer(x).relu()
        return self.actor[-1](x)


class PensieveDesign:
    """Any level, from the features of `controllers.abr.pensieve`."""

    actions, features = SLOTS, FEATURES

    def network(self) -> nn.Module:
        """A new actor."""
        return Actor()

    def inputs(self, plays: Playbacks) -> np.ndarray:
        """(N, FEATURES)."""
        return pensieve.features(seen_by(plays))

    def allowed(self, plays: Playbacks) -> np.ndarray:
        """Every level there is."""
        return plays.exists

    def slots(self, plays: Playbacks, actions: Integers) -> Integers:
        """An action is a slot."""
        return actions


def seen_by(plays: Playbacks) -> Seen:
    """What the policy would be told of each session."""
    videos, session = plays.videos, plays.session
    relative = relative_sizes(videos.sizes_bytes, videos.bitrates_bps, videos.chunk_s)  # (videos, chunks)
    return Seen(
        past_bytes=plays.past(plays.sizes_bytes, SAMPLES),
        past_s=plays.past(plays.download_s, SAMPLES),
        buffer_s=plays.buffer_s,
        last_slot=plays.slots[plays.chunk - 1],
        slot_mbps=plays.slot_mbps,
        next_bytes=plays.next_bytes,
        ahead=ahead_of(relative, plays.chunk, session.chunks)[plays.video],
        chunk=plays.chunk,
        chunks=session.chunks,
        chunk_s=videos.chunk_s,
        rtt_s=session.rtt_s,
        buffer_cap_s=session.buffer_cap_s,
    )


class PensieveWorld:
    """Sessions to learn on, without end, and those to choose on. The same seed and iteration give the same."""

    name = "pensieve"
    sampled = False

    def __init__(
        self, seed: int, sources: Sources | None = None, chunks: int = CHUNKS, traces: int = TRACES, count: int = VALIDATION
    ) -> None:
        self._seed, self._chunks, self._traces = seed, chunks, traces
        self._sources = sources or load_sources()
        self._mix = Mix(Grouped(self._sources.train))
        self._own = [load_manifest(name) for name in VIDEOS]
        self.validation = ValidationSessions(self._sources, count=count, chunks=chunks)
        self._number = -1

    def prepare(self, learner: Learner, iteration: int) -> None:
        """Draw new traces and ladders every `REBUILT` iterations."""
        number = iteration // REBUILT
        if number == self._number:
            return
        self._number = number
        rng = np.random.default_rng([self._seed, 2, number])
        other = [draw_video(rng, VIDEOS, scaled=1.0, sub_ladders=0.5) for _ in range(OTHERS)]
        self._pool = Pool([self._mix.draw(rng)[0] for _ in range(self._traces)])
        self._videos = Videos([*self._own, *other], self._chunks)

    def sessions(self, iteration: int, rng: np.random.Generator, count: int) -> list[Playbacks]:
        """`count` sessions on traces of the pool, in parts; in the last part round trip and buffer cap are others."""
        nominal = self._videos.session
        rtt_s, buffer_cap_s = np.exp(rng.uniform(np.log(0.01), np.log(0.4))), rng.uniform(15, 60)
        other = replace(nominal, rtt_s=float(rtt_s), buffer_cap_s=float(buffer_cap_s))
        return [self._part(rng, max(count // PARTS, 1), session) for session in [*[nominal] * (PARTS - 1), other]]

    def _part(self, rng: np.random.Generator, count: int, session: AbrSession) -> Playbacks:
        durations_s = self._pool.traces.durations_s
        which = rng.integers(len(durations_s), size=count)
        offsets_s = np.where(rng.random(count) < 0.8, rng.uniform(0, durations_s[which]), 0.0)
        own = len(self._own)
        another = rng.integers(own, len(self._videos.manifests), size=count)
        video = np.where(rng.random(count) < VARIED, another, rng.integers(own, size=count))
        return Playbacks(self._pool, self._videos, which, offsets_s, video, session)

    def facts(self) -> dict[str, Any]:
        """What it learns on."""
        return {
            "sets": list(self._sources.sets),
            "held_out": self._sources.held_out_groups,
            "synthetic": self._mix.synthetic,
            "videos": list(VIDEOS),
            "other_ladders": VARIED,
            "chunks": self._chunks,
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Nothing: all is drawn from the seed."""
