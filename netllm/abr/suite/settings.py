"""The settings of an evaluation: which traces, which video, which path; and what of them training never saw.

All play 48 chunks from the trace's beginning, without noise, chunk 0 at level 0 (`testbed/sim/abr.py`). What policies were trained on is
their matter: `SETTINGS` says what is not in our train splits, and a report says what its adapters were really trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import sin

import numpy as np

from controllers.api import AbrSession, Manifest
from players.media import CHUNK_S, CHUNKS, check_length, is_video_file, load_manifest, video_names
from testbed.errors import UserError, suggestion
from testbed.units import bytes_per_s_from_bps
from traces.leakage import measured_at
from traces.store import resolve
from traces.synthetic_test import COUNT, SEED, wide_traces
from traces.trace import Trace

DEFAULT, UNSEEN = "default", "unseen"
"""`default` is a setting; `unseen` stands for all others."""
WIDE, LTE = "wide", "lte/down"
STARTS = 8
"""An LTE file is shorter than a session and is played from so many starts, evenly spaced."""
QUICK_TRACES = 6
DOUBLING = "doubling"
DOUBLING_BPS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)


@dataclass(frozen=True)
class Setting:
    """A named setting."""

    name: str
    title: str
    traces: str
    """What `traces.store.resolve` takes, or `wide`."""
    video: str
    unseen: str
    """What differs from training, in words; empty: nothing but the traces themselves."""
    rtt_s: float = 0.08
    buffer_cap_s: float = 60.0
    note: str = ""
    """What the reader must know of its figures."""


_LTE_NOTE = (
    f"three files of 120 to 140 s, shorter than a session, each played from {STARTS} starts and repeated; the file is the unit of "
    "sampling, so n is 3 and intervals are wide; on average each carries more than the ladder's top"
)
_WIDE_NOTE = f"{COUNT} traces of 320 s drawn by traces/synthetic_test.py (after Mao et al., SIGCOMM 2017) from seed {SEED}"
_LADDER_NOTE = "a video by arithmetic: five bitrates that double from 250 kbit/s, chunk sizes that swing by 15 %"

SETTINGS: dict[str, Setting] = {
    each.name: each
    for each in (
        Setting(DEFAULT, "FCC, video1", "fcc/test", "video1", ""),
        Setting("video2", "FCC, video2", "fcc/test", "video2", "the video"),
        Setting("norway", "Norway 3G, video1", "norway/test", "video1", "the traces; 60 of the 70 are of rides that norway/train knows"),
        Setting(
            "norway-apart",
            "Norway 3G, norway/apart, video1",
            "norway/apart",
            "video1",
            "the traces; 21 of the 31 are of rides that norway/train knows",
        ),
        Setting("norway-video2", "Norway 3G, video2", "norway/test", "video2", "the traces, as above, and the video"),
        Setting(
            "lte", "US LTE, video1", LTE, "video1", "the kind of network: packet-delivery opportunities of cellular links", note=_LTE_NOTE
        ),
        Setting("wide", "Wide synthetic, video1", WIDE, "video1", "the generator and its range", note=_WIDE_NOTE),
        Setting("wide-video2", "Wide synthetic, video2", WIDE, "video2", "the generator and the video", note=_WIDE_NOTE),
        Setting(
            "ladder",
            "FCC, five-level ladder",
            "fcc/test",
            DOUBLING,
            "this ladder and its sizes; training may vary ladders, but not to this one",
            note=_LADDER_NOTE,
        ),
        Setting(
            "path",
            "FCC, video1, 300 ms, 20 s",
            "fcc/test",
            "video1",
            "round trip 300 ms (elsewhere 80), buffer cap 20 s (elsewhere 60); training may vary both, too",
            0.3,
            20.0,
        ),
    )
}


@dataclass(frozen=True)
class Playback:
    """One session to play. `unit` is what is sampled: playbacks of one unit are averaged first. `group` was measured together."""

    trace: Trace
    offset_s: float
    unit: str
    group: str


@dataclass(frozen=True)
class Prepared:
    """A setting with its traces read."""

    setting: Setting
    session: AbrSession
    playbacks: tuple[Playback, ...]
    source: str
    """Of the traces: `store`, `path`, `model` (modelled, not measured) or `synthetic`."""
    sha256: str
    """Of the trace set, as in the catalogue."""
    note: str

    @property
    def units(self) -> tuple[str, ...]:
        """What is sampled, in order."""
        return tuple(dict.fromkeys(playback.unit for playback in self.playbacks))

    @property
    def measured(self) -> tuple[str, ...]:
        """The measurement unit, log or file of each of `units`."""
        return tuple({playback.unit: playback.group for playback in self.playbacks}.values())

    @property
    def identity(self) -> str:
        """Hash of everything that decides what is played."""
        session = self.session
        path = (session.chunks, session.rtt_s, session.buffer_cap_s, session.first_level)
        played = [(each.trace.sha256, each.offset_s) for each in self.playbacks]
        return hashlib.sha256(repr((session.video.sha256, path, played)).encode()).hexdigest()


def chosen(names: Sequence[str]) -> tuple[Setting, ...]:
    """The settings that `--settings` names: `default`, `unseen`, one of the table, or `TRACES@VIDEO` of the user's own."""
    found: dict[str, Setting] = {}
    for name in names:
        if name == UNSEEN:
            found |= {key: setting for key, setting in SETTINGS.items() if key != DEFAULT}
        elif name in SETTINGS:
            found[name] = SETTINGS[name]
        elif "@" in name:
            found[name] = _own(name)
        else:
            near = suggestion(name, (*SETTINGS, UNSEEN))
            raise UserError(f"setting {name!r} is unknown, {near}, or traces with a video (fcc/valid@video1)")
    if not found:
        raise UserError("no setting is given, wanted at least one (default, unseen, ...)")
    return tuple(found.values())


def _own(name: str) -> Setting:
    traces, _, video = name.rpartition("@")
    return Setting(name, f"{traces}, {video}", traces, video, "unknown: the user's own choice")


@cache
def prepare(setting: Setting, quick: bool = False, chunks: int = CHUNKS - 1) -> Prepared:
    """Read the traces and the video. With `quick`, a few playbacks spread over the set."""
    if setting.traces == WIDE:
        traces: tuple[Trace, ...] = wide_traces()
        source, sha256, note = "synthetic", _hash_of(traces), ""
    else:
        found = resolve(setting.traces)
        traces, source, sha256, note = found.traces, found.source, found.sha256, found.note
    playbacks = _from_starts(traces) if setting.traces == LTE else tuple(_playback(trace) for trace in traces)
    if quick and len(playbacks) > QUICK_TRACES:
        at = np.linspace(0, len(playbacks) - 1, QUICK_TRACES).round().astype(int)
        playbacks = tuple(playbacks[i] for i in at)
    video = _video(setting.video)
    check_length(video, chunks)
    session = AbrSession("evaluate", video, chunks, setting.buffer_cap_s, setting.rtt_s)
    return Prepared(setting, session, _distinct(playbacks), source, sha256, note)


def _playback(trace: Trace) -> Playback:
    return Playback(trace, 0.0, trace.name, ":".join(measured_at(trace.name) or ("trace", trace.name)))


def _from_starts(traces: Sequence[Trace]) -> tuple[Playback, ...]:
    return tuple(
        Playback(trace, start * trace.duration_s / STARTS, trace.name, f"file:{trace.name}") for trace in traces for start in range(STARTS)
    )


def _distinct(playbacks: tuple[Playback, ...]) -> tuple[Playback, ...]:
    """A user's folder may hold equal names in subfolders: units are told apart by content then."""
    contents: dict[str, set[str]] = {}
    for each in playbacks:
        contents.setdefault(each.unit, set()).add(each.trace.sha256)
    return tuple(
        replace(each, unit=f"{each.unit} ({each.trace.sha256[:8]})") if len(contents[each.unit]) > 1 else each for each in playbacks
    )


def _video(name: str) -> Manifest:
    if name == DOUBLING:
        return doubling_video()
    if name not in video_names() and not is_video_file(name):
        raise UserError(f"video {name!r} is unknown, {suggestion(name, (*video_names(), DOUBLING))}")
    return load_manifest(name)


@cache
def doubling_video() -> Manifest:
    """Bitrates that double; chunk k is 1 + 0.15 sin(2.4 k + 0.2 level) times as large as nominal, which never repeats in a session."""
    sizes_bytes = tuple(
        tuple(
            round(bytes_per_s_from_bps(bps) * CHUNK_S * (1 + 0.15 * sin(2.4 * chunk + 0.2 * level)))
            for level, bps in enumerate(DOUBLING_BPS)
        )
        for chunk in range(CHUNKS)
    )
    return Manifest(DOUBLING, CHUNK_S, DOUBLING_BPS, sizes_bytes)


def _hash_of(traces: Sequence[Trace]) -> str:
    return hashlib.sha256("".join(trace.sha256 for trace in traces).encode()).hexdigest()
