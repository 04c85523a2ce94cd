"""ABR as the language model sees it: five tokens a chunk (return, scalars, history, sizes, action); the answer is a level.

| token | content |
| --- | --- |
| return | the return still wanted: the session's target QoE less what was reached so far, over 100 |
| scalars | buffer, last level, progress, stalls, summaries of the throughput, sizes of the chunks ahead |
| history | throughput and download time of the last 8 chunks, in logs |
| sizes | per level: bitrate, size relative to nominal, expected download time, and that time over the buffer |
| action | the level chosen |

Features are relative to the ladder: a level is known by its bitrate, placed at the nearest slot of the ladder trained on, so that a video
with fewer levels works too. Rates are in logs of Mbit/s. The past is also in the context: no feature has to carry it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from torch import nn

from controllers.api import AbrObservation, AbrSession, Chunk
from netllm.encoders import ChoiceEncoder, ScalarEncoder, SeriesEncoder, TableEncoder
from netllm.model import ACTION, ALLOWED, STEP, Reader, TaskModel
from testbed.errors import UserError
from testbed.metrics import chunk_qoe
from testbed.units import bits_from_bytes, mbps_from_bps

SAMPLES = 8
"""Chunks in the history token (more gains nothing: the context has them)."""
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


@dataclass(frozen=True)
class AbrTask:
    """The task's settings, kept in the adapter."""

    ladder_bps: tuple[int, ...] = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
    """The ladder trained on (Pensieve, section 5.1): the slots of action, sizes and head."""
    hidden: int = 256
    """Width inside the encoders (feature size of NetLLM's ABR code)."""
    max_steps: int = 64
    """Decisions with a step embedding of their own; later ones share the last."""
    target_qoe: float = 2.0
    """QoE wanted per decided chunk; in training, too, the return token is the session's sum of it less what was reached."""
    name: str = "abr"

    @property
    def choices(self) -> int:
        """Slots of the head."""
        return len(self.ladder_bps)

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """The tokens of a step, in order."""
        return {
            "return": ScalarEncoder(1, width, self.hidden),
            "scalars": ScalarEncoder(SCALARS, width, self.hidden),
            "history": SeriesEncoder(CHANNELS, SAMPLES, width, self.hidden),
            "sizes": TableEncoder(ROWS, self.choices, width, self.hidden),
            ACTION: ChoiceEncoder(self.choices, width, self.hidden),
        }


@lru_cache(maxsize=64)
def slots(bitrates_bps: tuple[int, ...], ladder_bps: tuple[int, ...]) -> tuple[int, ...]:
    """The slot of each level: in order, no slot twice, nearest in log bitrate. Raises `UserError` when there are more levels than slots."""
    if bitrates_bps == ladder_bps:
        return tuple(range(len(ladder_bps)))
    if len(bitrates_bps) > len(ladder_bps):
        raise UserError(f"the video has {len(bitrates_bps)} levels, wanted at most the {len(ladder_bps)} that the adapter was trained with")
    logs, ladder = np.log(bitrates_bps), np.log(ladder_bps)
    return min(combinations(range(len(ladder_bps)), len(bitrates_bps)), key=lambda chosen: float(np.abs(ladder[list(chosen)] - logs).sum()))


def step_features(task: AbrTask, observation: AbrObservation, reached: float, action: int = 0) -> dict[str, np.ndarray]:
    """One step: what is observed before chunk `observation.chunk_index`, the QoE `reached` before and the level `action` taken then."""
    video, history, index = observation.video, observation.history, observation.chunk_index
    places = list(slots(video.bitrates_bps, task.ladder_bps))
    allowed = np.zeros(task.choices, dtype=bool)
    allowed[places] = True
    recent = history[-SAMPLES:]
    log_rates = np.log([mbps_from_bps(chunk.throughput_bps) for chunk in recent])
    log_times = np.log([chunk.download_s for chunk in recent])
    harmonic_mbps = 1 / float(np.mean(np.exp(-log_rates[-HARMONIC:])))
    series = np.zeros((CHANNELS, SAMPLES))
    series[:, SAMPLES - len(recent) :] = log_rates, log_times, np.ones(len(recent))
    series[0, : SAMPLES - len(recent)] = NO_RATE_LOG
    return {
        "return": np.array([(task.target_qoe * (observation.session.chunks - 1) - reached) / RETURN_SCALE], dtype=np.float32),
        "scalars": _scalars(observation, places, log_rates, log_times, harmonic_mbps, task.choices).astype(np.float32),
        "history": series.astype(np.float32),
        "sizes": _sizes(observation, places, harmonic_mbps, task.choices).astype(np.float32),
        ACTION: np.array(places[action], dtype=np.int64),
        ALLOWED: allowed,
        STEP: np.array(index - 1, dtype=np.int64),
    }


def _scalars(
    observation: AbrObservation, places: list[int], log_rates: np.ndarray, log_times: np.ndarray, harmonic_mbps: float, choices: int
) -> np.ndarray:
    session, history, buffer_s = observation.session, observation.history, observation.buffer_s
    last = history[-1]
    lowest, mean = float(log_rates[-HARMONIC:].min()), float(log_rates.mean())
    now = [buffer_s / 10, buffer_s / session.buffer_cap_s, np.log1p(buffer_s), places[last.level] / choices]
    now += [np.log(mbps_from_bps(observation.video.bitrates_bps[last.level])), min(observation.chunks_left, 10) / 10]
    now += [observation.chunk_index / session.chunks, np.log1p(last.rebuffer_s), last.waited_s / 4, session.rtt_s * 10]
    rates = [log_rates[-1], np.log(harmonic_mbps), lowest, mean, log_rates.std(), log_times[-1]]
    return np.array(now + rates + _ahead(observation), dtype=float)


def _ahead(observation: AbrObservation) -> list[float]:
    """Log size over nominal of the next chunks, averaged over levels; 0 beyond the end of the video."""
    end = min(observation.chunk_index + AHEAD, observation.session.chunks)
    sizes = np.array(observation.video.sizes_bytes[observation.chunk_index : end], dtype=float)  # (chunks, levels)
    logs = np.log(bits_from_bytes(1) * sizes / _nominal_bits(observation)).mean(axis=1)
    return [*logs.tolist(), *[0.0] * (AHEAD - len(logs))]


def _nominal_bits(observation: AbrObservation) -> np.ndarray:
    return np.array(observation.video.bitrates_bps, dtype=float) * observation.video.chunk_s


def _sizes(observation: AbrObservation, places: list[int], harmonic_mbps: float, choices: int) -> np.ndarray:
    """The next chunk per level, (ROWS, choices); zeros where the ladder has no level."""
    bits = np.array([bits_from_bytes(size) for size in observation.next_sizes_bytes], dtype=float)
    expected_s = mbps_from_bps(bits) / harmonic_mbps
    over_buffer = np.log(expected_s / (observation.buffer_s + 0.1))
    table = np.zeros((ROWS, choices))
    table[:, places] = (
        np.ones(len(places)),
        np.log(mbps_from_bps(np.array(observation.video.bitrates_bps))),
        np.log(bits / _nominal_bits(observation)),
        np.log(expected_s),
        np.clip(over_buffer, -3, 3),
    )
    return table


def session_features(
    task: AbrTask, session: AbrSession, history: Sequence[Chunk], buffer_s: float | None = None, first: int = 1
) -> dict[str, np.ndarray]:
    """Steps for chunks `first` .. len(history), stacked, (T, ...); the last is still undecided, its buffer is `buffer_s` if given.

    Without `buffer_s` every chunk of `history` has been decided: steps are for chunks `first` .. len(history) - 1.
    """
    reached = np.concatenate([[0.0, 0.0], np.cumsum(chunk_qoe(history, session.video)[1:])])  # reached[c]: over chunks 1 .. c - 1
    decided = [
        step_features(task, _observed(session, history, chunk), reached[chunk], history[chunk].level)
        for chunk in range(first, len(history))
    ]
    if buffer_s is not None:
        decided.append(step_features(task, AbrObservation(session, tuple(history), buffer_s), reached[len(history)]))
    return {name: np.stack([step[name] for step in decided]) for name in decided[0]}


def _observed(session: AbrSession, history: Sequence[Chunk], chunk: int) -> AbrObservation:
    """What was known before `chunk`: the buffer then is what the chunk before left, less the pause at a full buffer."""
    before = history[chunk - 1]
    return AbrObservation(session, tuple(history[:chunk]), before.buffer_s - before.waited_s)


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
        first = max(self._reader.steps, 1)
        parts = [session_features(self._task, each.session, each.history, each.buffer_s, first) for each in observations]
        result = self._reader.read({name: np.stack([part[name] for part in parts]) for name in parts[0]})
        self._seen = [each[: self._reader.steps] for each in levels]
        return result


def check_session(model: TaskModel, task: AbrTask, session: AbrSession) -> None:
    """Raise `UserError` when the ladder has too many levels, or the session more tokens than the backbone knows positions for."""
    slots(session.video.bitrates_bps, task.ladder_bps)
    tokens = session.chunks * model.layout.tokens
    if tokens > model.backbone.max_tokens:
        longest = model.backbone.max_tokens // model.layout.tokens
        raise UserError(
            f"the session has {session.chunks} chunks, wanted at most the {longest} that fit the context of {model.backbone.name}"
        )


def choose(log_probabilities: np.ndarray, observation: AbrObservation, task: AbrTask) -> int:
    """The most probable level that the video has."""
    places = slots(observation.video.bitrates_bps, task.ladder_bps)
    return int(np.argmax(log_probabilities[list(places)]))
