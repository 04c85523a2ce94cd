"""Experience: whole sessions from any mix of policies in the simulator, every state labelled by the teachers, kept in Parquet.

Leak-free by construction: traces come from train splits, or are drawn by `traces/synthetic.py` from those; a trace that shares content, a
run of samples, a measurement unit or a log with a catalogued test split is refused. Sessions are kept whole and never joined.
The file's header (Parquet metadata, key `netllm`) tells how it was made. Labels, not the recorded actions, are what a student learns:
imitating the actions of a mixed pool fails, since a good return is mostly a fast trace.
"""

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import tyro

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk
from controllers.loader import load
from netllm.abr.teaching import Teachers, story_of
from players.ladders import VALIDATION_VIDEOS, draw_video, find_video
from testbed.errors import UserError
from testbed.sim.abr import AbrSimulator
from traces.trace import RateTrace
from traces.training import HELD_OUT, REFERENCES, Grouped, Mix, Sources, load_sources, validation

HEADER = "netllm"
FORMAT = 2
NOISE = 0.15
"""Share of random levels of the behaviour `noisy`."""
EXPLORATION = 0.03
"""The same of `student`."""
OTHER_RTT_S, OTHER_CAP_S = (0.01, 0.4), (15.0, 60.0)
TOGETHER = ("student", "greedy")
"""Behaviours that are decided for a batch of sessions at once."""
BatchDecide = Callable[[Sequence[AbrObservation]], Sequence[int]]
"""Levels for sessions that are all at the same chunk."""


@dataclass(frozen=True)
class CollectSettings:
    """What to collect."""

    sessions: int = 1600
    """Sessions in all."""
    seed: int = 1
    """Of everything random (traces, offsets, noise) but which traces are held out, and what is validated on."""
    traces: tuple[str, ...] = REFERENCES
    """Trace sets, train splits only."""
    synthetic: float = 0.4
    """Share of sessions on synthetic traces built from the sets."""
    held_out: float = HELD_OUT
    """Share of measurement units (FCC) or logs (Norway) kept for validation."""
    videos: tuple[str, ...] = ("video1", "video1", "synthetic")
    """Drawn from with equal chance; `video2` is for tests."""
    validation_videos: tuple[str, ...] = VALIDATION_VIDEOS
    """Validation sessions play these in turn; without `video1` on this machine, say `synthetic`."""
    chunks: int = 48
    """Chunks per session."""
    sub_ladders: float = 0.2
    """Share of sessions whose video has only some of the levels."""
    scaled_ladders: float = 0.25
    """Share of sessions whose video has other bitrates, and sizes (see `players/ladders.py`)."""
    other_paths: float = 0.15
    """Share of sessions with another round trip (10 to 400 ms) and another buffer cap (15 to 60 s)."""
    noise: float = 0.1
    """Half of the sessions have download times off by up to this share (Pensieve's training environment)."""
    behaviours: tuple[str, ...] = (*("teacher",) * 8, *("noisy",) * 5, "bba", "robust_mpc", "robust_mpc", *("random",) * 4)
    """Who decides, in turn: policies (`bba`, `robust_mpc+jumps=adjacent`, `~/mine.py`); `teacher`; `noisy`, the teacher with 15 % random
    levels; `random`, a walk over neighbouring levels, which meets states that no policy seeks."""
    teachers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--teachers"])] = ("pensieve", "pensieve+weights=pensieve-2")
    """Policies whose probabilities label every state; of several, the geometric mean."""


@dataclass(frozen=True)
class Episode:
    """One whole session, and a probability per level for each of its chunks 1 .. N-1, labels (N - 1, levels)."""

    session: AbrSession
    chunks: tuple[Chunk, ...]
    labels: np.ndarray = field(repr=False)
    behaviour: str
    trace: str
    trace_sha256: str
    offset_s: float


@dataclass(frozen=True)
class Job:
    """A session to be played."""

    session: AbrSession
    trace: RateTrace
    offset_s: float
    behaviour: str
    noise: float
    seed: int
    family: str = ""
    """Of validation traces: where the trace is from."""


def collect(out: Path, settings: CollectSettings | None = None) -> Path:
    """Play and label sessions, write them to `out` (Parquet); returns `out`."""
    settings = settings or CollectSettings()
    sources = sources_of(settings)
    episodes = play(jobs(settings, sources), settings.teachers)
    write(out, episodes, header(settings, sources))
    return out


def sources_of(settings: CollectSettings) -> Sources:
    """The traces that the settings name."""
    return load_sources(settings.traces, settings.held_out)


def jobs(settings: CollectSettings, sources: Sources, behaviours: Sequence[str] = ()) -> list[Job]:
    """Sessions to play, all drawn from the seed."""
    rng = np.random.default_rng([settings.seed, 1])
    turns = behaviours or settings.behaviours
    mix = Mix(Grouped(sources.train), settings.synthetic)
    return [_job(settings, mix, rng, turns[i % len(turns)], i) for i in range(settings.sessions)]


def _job(settings: CollectSettings, mix: Mix, rng: np.random.Generator, behaviour: str, number: int) -> Job:
    trace, offset_s = mix.draw(rng)
    video = draw_video(rng, settings.videos, settings.scaled_ladders, settings.sub_ladders)
    session = AbrSession(f"{settings.seed}-{number}", video, settings.chunks)
    if rng.random() < settings.other_paths:
        session = replace(session, rtt_s=float(np.exp(rng.uniform(*np.log(OTHER_RTT_S)))), buffer_cap_s=float(rng.uniform(*OTHER_CAP_S)))
    noise = settings.noise if rng.random() < 0.5 else 0.0
    return Job(session, trace, offset_s, behaviour, noise, int(rng.integers(2**31)))


def play(batch: Sequence[Job], teachers: Sequence[str], student: BatchDecide | None = None) -> list[Episode]:
    """Play all jobs, those of a `student` in step so that it decides for all at once; the teachers label every state."""
    voice, rivals = Teachers(teachers), dict[str, AbrPolicy]()
    if student:
        return [_labelled(job, sim, voice) for job, sim in zip(batch, play_together(batch, student), strict=True)]
    return [_played(job, voice, rivals) for job in batch]


def play_together(batch: Sequence[Job], student: BatchDecide) -> list[AbrSimulator]:
    """The sessions that `student` plays, all in step; nothing is labelled."""
    sims, rngs = [_simulator(job) for job in batch], [np.random.default_rng([job.seed, 2]) for job in batch]
    for sim in sims:
        sim.step(sim.session.first_level)
    while not sims[0].done:
        for job, sim, rng, level in zip(batch, sims, rngs, student([sim.observation for sim in sims]), strict=True):
            explores = job.behaviour == "student" and rng.random() < EXPLORATION
            sim.step(int(rng.integers(sim.session.video.levels)) if explores else level)
    return sims


def _simulator(job: Job) -> AbrSimulator:
    return AbrSimulator(job.trace, job.session, job.offset_s, job.noise, np.random.default_rng(job.seed))


def _labelled(job: Job, sim: AbrSimulator, voice: Teachers) -> Episode:
    """What the teachers say of a session that was played."""
    voice.reset(job.session, job.seed)
    states = (_observed(sim, chunk) for chunk in range(1, len(sim.history)))
    return _episode(job, sim, [voice.probabilities(state) for state in states])


def _observed(sim: AbrSimulator, chunk: int) -> AbrObservation:
    before = sim.history[chunk - 1]
    return AbrObservation(sim.session, sim.history[:chunk], before.buffer_s - before.waited_s)


def _played(job: Job, voice: Teachers, rivals: dict[str, AbrPolicy]) -> Episode:
    """A session that the teachers, a policy or chance decide."""
    sim, rng, labels = _simulator(job), np.random.default_rng([job.seed, 2]), []
    voice.reset(job.session, job.seed)
    decide = _behaviour(job, rng, rivals)
    sim.step(job.session.first_level)
    while not sim.done:
        observation = sim.observation
        labels.append(voice.probabilities(observation))
        sim.step(decide(observation, labels[-1]))
    return _episode(job, sim, labels)


def _behaviour(job: Job, rng: np.random.Generator, rivals: dict[str, AbrPolicy]) -> Callable[[AbrObservation, np.ndarray], int]:
    """How the job's levels are chosen from the observation and the teachers' label."""
    levels = job.session.video.levels
    match job.behaviour:
        case "teacher":
            return lambda _, label: int(np.argmax(label))
        case "noisy":
            return lambda _, label: int(rng.integers(levels)) if rng.random() < NOISE else int(np.argmax(label))
        case "random":
            return lambda observation, _: int(np.clip(observation.last_level + rng.integers(-1, 2), 0, levels - 1))
        case name if name in TOGETHER:
            raise UserError(f"behaviour {name!r} needs a student, wanted a policy, teacher, noisy or random")
        case name:
            policy = rivals[name] = rivals.get(name) or load(name)()
            policy.reset(job.session, job.seed)
            return lambda observation, _: policy.decide(observation)


def _episode(job: Job, sim: AbrSimulator, labels: Sequence[np.ndarray]) -> Episode:
    return Episode(job.session, sim.history, np.array(labels), job.behaviour, job.trace.name, job.trace.sha256, job.offset_s)


def header(settings: CollectSettings, sources: Sources, **more: Any) -> dict[str, Any]:
    """How an experience file was made."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "polars")}
    return {
        "format": FORMAT,
        "task": "abr",
        "settings": asdict(settings),
        "teachers": list(settings.teachers),
        "taught_by": {teacher: story_of(teacher) for teacher in settings.teachers},
        "sets": list(sources.sets),
        "held_out": sources.held_out_groups,
        "versions": versions,
        **more,
    }


def write(out: Path, episodes: Iterable[Episode], facts: dict[str, Any]) -> None:
    """One row a chunk; written beside the target and renamed."""
    rows = [row for number, episode in enumerate(episodes) for row in _rows(number, episode)]
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(scratch, metadata={HEADER: json.dumps(facts)})
    os.replace(scratch, out)


SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "episode": pl.Int32,
    "session_id": pl.String,
    "behaviour": pl.String,
    "trace": pl.String,
    "trace_sha256": pl.String,
    "offset_s": pl.Float64,
    "video": pl.String,
    "chunks": pl.Int32,
    "rtt_s": pl.Float64,
    "buffer_cap_s": pl.Float64,
    "index": pl.Int32,
    "level": pl.Int32,
    "size_bytes": pl.Int64,
    "download_s": pl.Float64,
    "rebuffer_s": pl.Float64,
    "buffer_s": pl.Float64,
    "waited_s": pl.Float64,
    "label": pl.List(pl.Float64),
}


def _rows(number: int, episode: Episode) -> Iterable[dict[str, Any]]:
    session = episode.session
    constants = {
        "episode": number,
        "session_id": session.session_id,
        "behaviour": episode.behaviour,
        "trace": episode.trace,
        "trace_sha256": episode.trace_sha256,
        "offset_s": episode.offset_s,
        "video": session.video.name,
        "chunks": session.chunks,
        "rtt_s": session.rtt_s,
        "buffer_cap_s": session.buffer_cap_s,
    }
    for chunk in episode.chunks:
        yield constants | asdict(chunk) | {"label": episode.labels[chunk.index - 1].tolist() if chunk.index else None}


def read_header(path: Path) -> dict[str, Any]:
    """The header of an experience file. Raises `UserError` when it is none."""
    try:
        facts: dict[str, Any] = json.loads(pl.read_parquet_metadata(path)[HEADER])
    except (OSError, KeyError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: is no experience file ({error!r}), wanted one written by scripts/adapt abr") from error
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: has format {facts.get('format')!r}, wanted {FORMAT}")
    return facts


def read(path: Path) -> list[Episode]:
    """The sessions of an experience file."""
    read_header(path)
    return [_from_rows(part.to_dicts()) for part in pl.read_parquet(path).partition_by("episode", maintain_order=True)]


def _from_rows(rows: list[dict[str, Any]]) -> Episode:
    first = rows[0]
    names = ("index", "level", "size_bytes", "download_s", "rebuffer_s", "buffer_s", "waited_s")
    chunks = tuple(Chunk(**{name: row[name] for name in names}) for row in rows)
    session = AbrSession(first["session_id"], find_video(first["video"]), first["chunks"], first["buffer_cap_s"], first["rtt_s"])
    labels = np.array([row["label"] for row in rows[1:]])
    return Episode(session, chunks, labels, first["behaviour"], first["trace"], first["trace_sha256"], first["offset_s"])


def validation_jobs(settings: CollectSettings, sources: Sources, count: int = 32) -> list[Job]:
    """Sessions for choosing a model: `count` of each family of `traces.training.validation`; never on test."""
    videos = [find_video(name) for name in settings.validation_videos]
    return [
        Job(AbrSession(f"valid-{i}", videos[i % len(videos)], settings.chunks), each.trace, each.offset_s, "greedy", 0.0, i, each.family)
        for i, each in enumerate(validation(sources, count))
    ]


def as_teacher(batch: Sequence[Job]) -> list[Job]:
    """The same sessions, decided by the teachers."""
    return [replace(job, behaviour="teacher") for job in batch]
