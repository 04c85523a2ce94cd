"""The sessions that learned baselines are chosen on."""

import hashlib
from collections.abc import Sequence

import numpy as np

from controllers.api import Manifest
from controllers.learning.playbacks import Playbacks, Pool, Videos
from players.ladders import VALIDATION_VIDEOS, find_video
from traces.training import Sources, validation

CHUNKS = 48
VALIDATION = 256
"""Validation traces a family. With 64, the ranking of two policies changes with the draw (measured: by 0.02)."""


class ValidationSessions:
    """Every trace of `traces.training.validation` with each of the videos."""

    def __init__(
        self, sources: Sources, seed: int = 1, count: int = VALIDATION, videos: Sequence[Manifest] = (), chunks: int = CHUNKS
    ) -> None:
        self._found = validation(sources, count, seed)
        self._pool = Pool([each.trace for each in self._found])
        self._videos = Videos(videos or [find_video(name) for name in VALIDATION_VIDEOS], chunks)

    def playbacks(self) -> Playbacks:
        """All sessions, at their beginning."""
        count, videos = len(self._found), len(self._videos.manifests)
        offsets_s = np.tile([each.offset_s for each in self._found], videos)
        return Playbacks(self._pool, self._videos, np.tile(np.arange(count), videos), offsets_s, np.repeat(np.arange(videos), count))

    @property
    def sha256(self) -> str:
        """Of traces, offsets and videos: scores on others can't be compared."""
        traces = [(each.family, each.trace.sha256, each.offset_s) for each in self._found]
        videos = [(each.bitrates_bps, each.sizes_bytes) for each in self._videos.manifests]
        return hashlib.sha256(repr((traces, videos, self._videos.session.chunks)).encode()).hexdigest()

    def by_family(self, qoe: np.ndarray) -> dict[str, float]:
        """Mean of `qoe` (sessions,) in each family."""
        families = np.tile([each.family for each in self._found], len(self._videos.manifests))
        return {name: float(qoe[families == name].mean()) for name in dict.fromkeys(families.tolist())}
