"""ABR as the language model sees it: one token a chunk (or one per modality); the answer is a level.

| modality | content |
| --- | --- |
| action | the level chosen for the chunk before, or that none was chosen yet |
| return | the return still wanted: the session's target QoE less what was reached so far, over 100 |
| scalars | buffer, last level, progress, stalls, summaries of the throughput, sizes of the chunks ahead |
| history | throughput and download time of the last 8 chunks, in logs |
| sizes | per level: bitrate, size relative to nominal, expected download time, and that time over the buffer |

Features are relative to the ladder: a level is known by its bitrate, placed at the nearest slot of the ladder trained on
(`controllers/ladder.py`), so that other ladders work too. Rates are in logs of Mbit/s. The past is also in the context: no feature has to
carry it all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from controllers.api import AbrObservation, AbrSession, Chunk, Manifest
from controllers.ladder import LADDER_BPS, places
from netllm.encoders import ChoiceEncoder, ScalarEncoder, SeriesEncoder, TableEncoder
from netllm.heads import ALLOWED, ChoiceHead
from netllm.model import STEP, Reader, TaskModel
from testbed.errors import UserError
from testbed.metrics import chunk_qoe
from testbed.units import bits_from_bytes, mbps_from_bps

SAMPLES = 8
"""Chunks in the history (more gains nothing: the context has them)."""
HARMONIC = 5
"""Chunks in the harmonic mean of throughput (Yin et al., SIGCOMM 2015, section 6.1)."""
AHEAD = 5
"""Chunks ahead whose relative sizes are told: the horizon of MPC (same section)."""
RETURN_SCALE = 100.0
NO_RATE_LOG = -4.0
"""Log Mbit/s where there is no sample."""
SCALARS = 16 + AHEAD
CHANNELS = 3
ROWS = 5
ACTION, RETURN = "action", "return"
MODALITIES = (ACTION, RETURN, "scalars", "history", "sizes")


@dataclass(frozen=True)
class AbrTask:
    """The task's settings, kept in the adapter."""

    ladder_bps: tuple[int, ...] = LADDER_BPS
    """The ladder trained on (Pensieve, section 5.1): the slots of action, sizes and head."""
    hidden: int = 256
    """Width inside the encoders (feature size of NetLLM's ABR code)."""
    max_steps: int = 64
    """Decisions with a step embedding of their own; later ones share the last."""
    target_qoe: float = 2.0
    """QoE wanted per decided chunk; in training, too, the return is the session's sum of it less what was reached."""
    tokens: Literal["fused", "separate"] = "fused"
    """`fused`: a chunk is one token, the sum of its modalities; `separate`: a token per modality, as in NetLLM (a fifth of the speed)."""
    context_steps: int = 0
    """Chunks that each layer lets a token look back on, its own included; 0: the whole session. With 1 a decision knows its own step only;
    with w > 1 what lies further back may still come through L layers, up to L (w - 1) + 1 chunks, as in any sliding window."""
    return_token: bool = True
    """Tell the return still wanted (the conditioning of NetLLM, section 4.3)."""
    name: ClassVar[str] = "abr"

    @property
    def choices(self) -> int:
        """Slots of the head."""
        return len(self.ladder_bps)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The tokens of a step, each with the modalities added up in it."""
        told = tuple(name for name in MODALITIES if name != RETURN or self.return_token)
        return (told,) if self.tokens == "fused" else tuple((name,) for name in told)

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """One per modality that is told."""
        made: dict[str, Callable[[], nn.Module]] = {
            ACTION: lambda: ChoiceEncoder(self.choices + 1, width, self.hidden),
            RETURN: lambda: ScalarEncoder(1, width, self.hidden),
            "scalars": lambda: ScalarEncoder(SCALARS, width, self.hidden),
            "history": lambda: SeriesEncoder(CHANNELS, SAMPLES, width, self.hidden),
            "sizes": lambda: TableEncoder(ROWS, self.choices, width, self.hidden),
        }
        return {name: made[name]() for group in self.groups for name in group}

    def head(self, width: int) -> nn.Module:
        """One slot per level of the ladder."""
        return ChoiceHead(width, self.choices)


@dataclass(frozen=True)
class _Video:
    """A manifest as arrays, in what the features need. Of a ladder longer than the task's some levels are not used."""

    slots: np.ndarray
    """Slots that hold a level, (used,)."""
    used: np.ndarray
    """The level in each, (used,)."""
    slot_of_level: np.ndarray
    """(levels,)"""
    log_mbps: np.ndarray
    """Log of each level's bitrate in Mbit/s, (levels,)."""
    mbit: np.ndarray
    """Size of every chunk at every level in Mbit, (chunks, levels)."""
    log_relative: np.ndarray
    """Log of size over nominal size, (chunks, levels)."""


@lru_cache(maxsize=256)
def _video(video: Manifest, ladder_bps: tuple[int, ...]) -> _Video:
    bitrates_mbps = mbps_from_bps(np.array(video.bitrates_bps, dtype=float))
    mbit = mbps_from_bps(bits_from_bytes(1)) * np.array(video.sizes_bytes, dtype=float)
    place = places(video.bitrates_bps, ladder_bps)
    slots, used, slot_of_level = (np.array(each) for each in (place.slots, place.levels, place.slot_of_level))
    return _Video(slots, used, slot_of_level, np.log(bitrates_mbps), mbit, np.log(mbit / (bitrates_mbps * video.chunk_s)))


@dataclass(frozen=True)
class _Seen:
    """What had been seen when each decision was due; the steps of a session are rows, (T, ...)."""

    chunks: np.ndarray
    """Chunk to be decided, (T,)."""
    buffer_s: np.ndarray
    last_level: np.ndarray
    last_rebuffer_s: np.ndarray
    last_waited_s: np.ndarray
    log_mbps: np.ndarray
    """Log throughput of the last chunks, newest last, (T, SAMPLES)."""
    log_s: np.ndarray
    """Log download time of the same."""
    known: np.ndarray
    """Whether there was such a chunk, (T, SAMPLES)."""


def _seen(history: Sequence[Chunk], buffer_s: float | None, first: int) -> _Seen:
    """Steps for chunks `first` .. len(history), the last only when `buffer_s` is given."""
    start = max(first - SAMPLES, 0)
    names = ("level", "size_bytes", "download_s", "rebuffer_s", "buffer_s", "waited_s")
    recent = np.array([[getattr(chunk, name) for name in names] for chunk in history[start:]], dtype=float)
    levels, sizes, times, stalls, left, waited = recent.T
    chunks = np.arange(first, len(history) + (buffer_s is not None))
    before = chunks - 1 - start
    buffers = (left - waited)[before]  # the buffer at a decision is what the chunk before left, less the pause at a full buffer
    if buffer_s is not None:
        buffers[-1] = buffer_s
    rows = before[:, None] + np.arange(1 - SAMPLES, 1)  # (T, SAMPLES)
    known, rows = rows >= 0, np.maximum(rows, 0)
    log_s = np.log(times)
    log_mbps = np.log(mbps_from_bps(bits_from_bytes(1)) * sizes) - log_s
    return _Seen(chunks, buffers, levels[before].astype(int), stalls[before], waited[before], log_mbps[rows], log_s[rows], known)


def session_features(
    task: AbrTask, session: AbrSession, history: Sequence[Chunk], buffer_s: float | None = None, first: int = 1
) -> dict[str, np.ndarray]:
    """Steps for chunks `first` .. len(history), stacked, (T, ...); the last is still undecided, its buffer is `buffer_s`.

    Without `buffer_s` every chunk of `history` has been decided: steps are for chunks `first` .. len(history) - 1.
    """
    video, seen = _video(session.video, task.ladder_bps), _seen(history, buffer_s, first)
    steps, choices = len(seen.chunks), task.choices
    harmonic_mbps = 1 / _mean(np.exp(-seen.log_mbps), seen.known, HARMONIC)  # (T,)
    reached = np.concatenate([[0.0, 0.0], np.cumsum(chunk_qoe(history, session.video)[1:])])  # reached[c]: over chunks 1 .. c - 1
    allowed = np.zeros((steps, choices), dtype=bool)
    allowed[:, video.slots] = True
    wanted = task.target_qoe * (session.chunks - 1) - reached[seen.chunks]
    series = np.stack([np.where(seen.known, seen.log_mbps, NO_RATE_LOG), np.where(seen.known, seen.log_s, 0.0), seen.known], axis=1)
    return {
        ACTION: np.where(seen.chunks > 1, video.slot_of_level[seen.last_level], choices).astype(np.int64),
        RETURN: (wanted[:, None] / RETURN_SCALE).astype(np.float32),
        "scalars": _scalars(session, video, seen, harmonic_mbps, choices).astype(np.float32),
        "history": series.astype(np.float32),
        "sizes": _sizes(video, seen, harmonic_mbps, choices).astype(np.float32),
        ALLOWED: allowed,
        STEP: (seen.chunks - 1).astype(np.int64),
    }


def _mean(values: np.ndarray, known: np.ndarray, last: int = SAMPLES) -> np.ndarray:
    """Mean over the last known ones of each row."""
    values, known = values[:, -last:], known[:, -last:]
    return np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)


def _scalars(session: AbrSession, video: _Video, seen: _Seen, harmonic_mbps: np.ndarray, choices: int) -> np.ndarray:
    buffer_s, rates = seen.buffer_s, seen.log_mbps
    mean = _mean(rates, seen.known)
    spread = np.sqrt(_mean((rates - mean[:, None]) ** 2, seen.known))
    lowest = np.where(seen.known, rates, np.inf)[:, -HARMONIC:].min(axis=1)
    now = [buffer_s / 10, buffer_s / session.buffer_cap_s, np.log1p(buffer_s), video.slot_of_level[seen.last_level] / choices]
    now += [video.log_mbps[seen.last_level], np.minimum(session.chunks - seen.chunks, 10) / 10]
    now += [seen.chunks / session.chunks, np.log1p(seen.last_rebuffer_s), seen.last_waited_s / 4]
    now += [np.full(len(buffer_s), session.rtt_s * 10)]
    now += [rates[:, -1], np.log(harmonic_mbps), lowest, mean, spread, seen.log_s[:, -1]]
    return np.concatenate([np.stack(now, axis=1), _ahead(session, video, seen.chunks)], axis=1)


def _ahead(session: AbrSession, video: _Video, chunks: np.ndarray) -> np.ndarray:
    """Log size over nominal of the next chunks, averaged over levels, (T, AHEAD); 0 beyond the end of the session."""
    ahead = chunks[:, None] + np.arange(AHEAD)
    logs = video.log_relative.mean(axis=1)[np.minimum(ahead, len(video.log_relative) - 1)]
    return np.where(ahead < session.chunks, logs, 0.0)


def _sizes(video: _Video, seen: _Seen, harmonic_mbps: np.ndarray, choices: int) -> np.ndarray:
    """The next chunk per level, (T, ROWS, choices); zeros where the ladder has no level."""
    expected_s = video.mbit[seen.chunks][:, video.used] / harmonic_mbps[:, None]  # (T, used)
    over_buffer = np.clip(np.log(expected_s / (seen.buffer_s[:, None] + 0.1)), -3, 3)
    rows = [np.ones_like(expected_s), np.broadcast_to(video.log_mbps[video.used], expected_s.shape)]
    rows.append(video.log_relative[seen.chunks][:, video.used])
    table = np.zeros((len(expected_s), ROWS, choices))
    table[:, :, video.slots] = np.stack([*rows, np.log(expected_s), over_buffer], axis=1)
    return table


class AbrReader:
    """Decides for a batch of sessions that are at the same chunk. Reads chunks decided elsewhere, too, or rebuilds from the history."""

    def __init__(self, model: TaskModel, task: AbrTask) -> None:
        self._model, self._task = model, task
        self._reader = Reader(model)
        self._seen: list[tuple[int, ...]] = []

    def decide(self, observations: Sequence[AbrObservation]) -> np.ndarray:
        """Log-probabilities over slots, (B, choices)."""
        levels = [tuple(chunk.level for chunk in each.history) for each in observations]
        if [each[: self._reader.steps] for each in levels] != self._seen or not self._reader.steps < len(levels[0]):
            self._reader = Reader(self._model)
        first = self._reader.steps + 1
        parts = [session_features(self._task, each.session, each.history, each.buffer_s, first) for each in observations]
        self._seen = []  # a reading that is cut short leaves a context of no use: the next one begins anew
        result = self._reader.read({name: np.stack([part[name] for part in parts]) for name in parts[0]})
        self._seen = levels
        return result


def check_session(model: TaskModel, session: AbrSession) -> None:
    """Raise `UserError` when the session has more tokens than the backbone knows positions for."""
    if session.chunks * model.step_tokens > model.backbone.max_tokens:
        longest = model.backbone.max_tokens // model.step_tokens
        raise UserError(
            f"the session has {session.chunks} chunks, wanted at most the {longest} that fit the context of {model.backbone.name}"
        )


def choose(log_probabilities: np.ndarray, observation: AbrObservation, task: AbrTask) -> int:
    """The most probable level that the video has."""
    place = places(observation.video.bitrates_bps, task.ladder_bps)
    return place.levels[int(np.argmax(log_probabilities[list(place.slots)]))]


def student_of(model: TaskModel, task: AbrTask) -> Callable[[Sequence[AbrObservation]], list[int]]:
    """Greedy decisions for a batch of sessions, with a context of their own."""
    reader = AbrReader(model, task)

    def decide(observations: Sequence[AbrObservation]) -> list[int]:
        return [choose(row, each, task) for row, each in zip(reader.decide(observations), observations, strict=True)]

    return decide
