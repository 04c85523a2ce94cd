"""One trial over time: what the link could carry, what the player measured and chose, its buffer, stalls, decisions and fallbacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import msgspec
import numpy as np

from testbed.drawing.figures import Look
from testbed.drawing.svg import Frame, Point, Scale, figure, line, line_path, num, path, rect, step_points, text
from testbed.records import ChunkRow, DecisionRow, OptimumRow, StallRow, TraceRow, TrialRow
from testbed.results import as_trace
from testbed.units import bits_from_bytes, mbps_from_bps, ms_from_s

WIDTH = 1120
HEIGHT = 262
_LEFT, _RIGHT = 46, WIDTH - 12
_RATE_TOP, _RATE_BOTTOM = 20, 150
_BUFFER_TOP, _BUFFER_BOTTOM = 186, 238
_UP_TOP, _UP_BOTTOM = 286, 326
_UP_HEIGHT = _UP_BOTTOM + 10
_MOST_SEGMENTS = 10_000
"""As many of a trace's segments are drawn one by one: five laps of the 2000 that are stored of it."""
_LEAST_S = 1e-6
"""An edge this close to the beginning or end of the drawing is not one."""


@dataclass(frozen=True)
class Session:
    """All that was recorded of one trial."""

    trial: TrialRow
    chunks: Sequence[ChunkRow]
    decisions: Sequence[DecisionRow]
    stalls: Sequence[StallRow]
    trace: TraceRow | None
    delivered: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Edges (s) and rates (bit/s) of what the link delivered towards the client; empty in simulation."""
    up_allowed: tuple[Sequence[float], Sequence[float]] = ((), ())
    """The same of what an uplink trace allowed; empty without one."""
    up_delivered: tuple[Sequence[float], Sequence[float]] = ((), ())
    optimum: OptimumRow | None = None
    """The best playback of the same trace and offset, in the simulator."""

    @property
    def end_s(self) -> float:
        """When the last chunk was there."""
        return max((c.end_s for c in self.chunks), default=1.0)


def capacity(row: TraceRow, offset_s: float, end_s: float) -> tuple[list[float], list[float]]:
    """Edges (s, from the trial's start) and rates (bit/s) of a trace that starts at `offset_s` and wraps, up to `end_s`.

    Where that were more segments than can be seen (a short period, often repeated), the rates are means over equal bins.
    """
    trace = as_trace(row)
    laps = int(end_s / trace.duration_s) + 2
    if laps * len(trace.rates_bps) > _MOST_SEGMENTS:
        edges_s = np.linspace(0.0, end_s, WIDTH + 1)
    else:
        inner_s = np.add.outer(np.arange(laps) * trace.duration_s, trace.edges_s[:-1]).ravel() - offset_s % trace.duration_s
        edges_s = np.array([0.0, *inner_s[(inner_s > _LEAST_S) & (inner_s < end_s - _LEAST_S)], end_s])
    bits = bits_from_bytes(np.diff(trace.bytes_by(offset_s + edges_s)))
    return edges_s.tolist(), (bits / np.diff(edges_s)).tolist()


def buffer_points(chunks: Sequence[ChunkRow]) -> list[Point]:
    """Media held over time: it drains in real time and jumps up when a chunk is added."""
    points: list[Point] = [(0.0, 0.0)]
    for chunk in chunks:
        before_s, held_s = points[-1]
        dry_s = before_s + held_s
        if held_s > 0 and dry_s < chunk.end_s:
            points.append((dry_s, 0.0))
        points += [(chunk.end_s, max(dry_s - chunk.end_s, 0.0)), (chunk.end_s, chunk.buffer_s)]
    return points


@dataclass(frozen=True)
class Extent:
    """How far the axes reach. The trials of a group share one, so that they can be compared by eye."""

    end_s: float
    rate_mbps: float
    buffer_s: float


def extent(sessions: Sequence[Session]) -> Extent:
    """Room for all `sessions`; the rate axis ends above the highest bitrate, and a faster link runs off its top."""
    chunks = [c for s in sessions for c in s.chunks]
    highest = max((c.bitrate_bps for c in chunks), default=1_000_000)
    fastest = max((max(s.trace.rates_bps) for s in sessions if s.trace), default=highest)
    rate_mbps = mbps_from_bps(max(highest * 1.15, min(fastest * 1.05, highest * 1.7)))
    return Extent(max((s.end_s for s in sessions), default=1.0), rate_mbps, max([8.0, *(c.buffer_s * 1.1 for c in chunks)]))


def timeline(look: Look, session: Session, reach: Extent, upper: Look | None = None) -> str:
    """The drawing of one trial; `upper` is how the offline optimum looks."""
    x = Scale(0, reach.end_s, _LEFT, _RIGHT)
    rate = Frame(x, Scale(0, reach.rate_mbps, _RATE_BOTTOM, _RATE_TOP))
    buffer = Frame(x, Scale(0, reach.buffer_s, _BUFFER_BOTTOM, _BUFFER_TOP))
    parts = [_grid(rate, "Mbit/s", 4), _grid(buffer, "buffer, s", 2), _time_axis(x)]
    parts.append(_link(session, rate))
    parts += [_stall(stall, x) for stall in session.stalls]
    if upper and session.optimum:
        parts.append(upper.group(_optimum(session.optimum, rate)))
    parts.append(look.group(_buffer(session, buffer) + _levels(session.chunks, rate)))
    parts.append(_measured(session.chunks, rate))
    parts.append(_decisions(session.decisions, x))
    parts.append(_up(session, x))
    parts.append('<path class="cursor" d=""/>')
    extra = f'data-x="{num(_LEFT)},{num(_RIGHT)},{reach.end_s:.3f}" data-chunks="{_hover(session)}"'
    return figure(WIDTH, _UP_HEIGHT if session.up_allowed[1] else HEIGHT, _said(look, session), parts, "timeline", extra)


def _grid(frame: Frame, label: str, ticks: int) -> str:
    left, right = frame.x.start, frame.x.end
    parts = [text(left, frame.y.end - 7, label, "ax lab")]
    for tick in frame.y.ticks(ticks):
        y = frame.y(tick)
        parts += [line(left, y, right, y, "grid"), text(left - 8, y + 4, f"{tick:g}", anchor="end")]
    return "".join(parts)


def _time_axis(x: Scale) -> str:
    parts = [line(x.start, _BUFFER_BOTTOM, x.end, _BUFFER_BOTTOM, "tick")]
    for tick in x.ticks(12):
        parts.append(line(x(tick), _BUFFER_BOTTOM, x(tick), _BUFFER_BOTTOM + 4, "tick"))
        parts.append(text(x(tick), _BUFFER_BOTTOM + 18, f"{tick:g} s", anchor="middle"))
    return "".join(parts)


def _area(frame: Frame, edges: Sequence[float], rates_bps: Sequence[float], css: str) -> str:
    points = [(frame.x(s), frame.y(mbps_from_bps(r))) for s, r in step_points(edges, rates_bps)]
    if not points:
        return ""
    bottom = frame.y.start
    return path(line_path([(points[0][0], bottom), *points, (points[-1][0], bottom)]) + "z", css)


def _link(session: Session, frame: Frame) -> str:
    parts = []
    if session.trace is not None:
        parts.append(_area(frame, *capacity(session.trace, session.trial.offset_s, session.end_s), "capacity"))
    parts.append(_area(frame, *session.delivered, "delivered"))
    return "".join(parts)


def _up(session: Session, x: Scale) -> str:
    """What the way back allowed and carried, where it has a trace."""
    edges, rates = session.up_allowed
    if not rates:
        return ""
    frame = Frame(x, Scale(0, max(mbps_from_bps(max(rates)), 0.01) * 1.1, _UP_BOTTOM, _UP_TOP))
    used = _area(frame, *session.up_delivered, "delivered")
    return _grid(frame, "way back, Mbit/s", 2) + _area(frame, edges, rates, "capacity") + used


def _stall(stall: StallRow, x: Scale) -> str:
    left, width = x(stall.start_s), x(stall.end_s) - x(stall.start_s)
    tip = f'data-tip="stall of {stall.end_s - stall.start_s:.2f} s"'
    return rect(left, _RATE_TOP, max(width, 1), _BUFFER_BOTTOM - _RATE_TOP, "stall", tip)


def _levels(chunks: Sequence[ChunkRow], frame: Frame) -> str:
    if not chunks:
        return ""
    edges = [*(c.request_s for c in chunks), chunks[-1].end_s]
    points = step_points(edges, [mbps_from_bps(c.bitrate_bps) for c in chunks])
    return frame.line(points, "ln level")


def _optimum(optimum: OptimumRow, frame: Frame) -> str:
    """The bitrates of the offline optimum, as far as the axis reaches."""
    end_s = min(optimum.wall_s or 0.0, frame.x.high)
    shown = [(s, mbps_from_bps(bps)) for s, bps in zip(optimum.request_s, optimum.bitrates_bps, strict=True) if s < end_s]
    return frame.line(step_points([*(s for s, _ in shown), end_s], [mbps for _, mbps in shown]), "ln upper thin")


def _measured(chunks: Sequence[ChunkRow], frame: Frame) -> str:
    d = ""
    for chunk in chunks:
        y = frame.y(mbps_from_bps(bits_from_bytes(chunk.size_bytes) / chunk.download_s)) if chunk.download_s > 0 else frame.y.end
        d += f"M{num(frame.x(chunk.request_s))} {num(y)}H{num(frame.x(chunk.end_s))}"
    return path(d, "measured")


def _buffer(session: Session, frame: Frame) -> str:
    points = [(frame.x(s), frame.y(b)) for s, b in buffer_points(session.chunks)]
    if len(points) < 2:
        return ""
    area = line_path([*points, (points[-1][0], frame.y.start)]) + "z"
    return path(area, "buffer") + path(line_path(points), "ln thin")


def _decisions(decisions: Sequence[DecisionRow], x: Scale) -> str:
    """A tick where the policy answered, a triangle where the player's own rule did."""
    y = _RATE_BOTTOM + 8
    ticks = "".join(f"M{num(x(d.at_s))} {num(y - 4)}v6" for d in decisions if d.source == "policy")
    parts = [path(ticks, "decision")] if ticks else []
    for d in decisions:
        if d.source != "policy":
            tip = f'data-tip="fallback: {escape(d.reason)}&#10;chunk {d.chunk_index}, waited {ms_from_s(d.latency_s):.0f} ms"'
            parts.append(path(f"M{num(x(d.at_s))} {num(y - 6)}l5 9h-10z", "fallback", tip))
    return "".join(parts)


def _hover(session: Session) -> str:
    """Per chunk what the cursor tells: request, end, level, bitrate, throughput, buffer, stall, QoE, decision ms, fallback."""
    by_chunk = {d.chunk_index: d for d in session.decisions}
    rows = []
    for c in session.chunks:
        d = by_chunk.get(c.index)
        mbps = mbps_from_bps(bits_from_bytes(c.size_bytes) / c.download_s) if c.download_s > 0 else 0.0
        stall_s = c.rebuffer_s if c.index else 0.0
        decided = [round(ms_from_s(d.latency_s), 2), int(d.source != "policy")] if d else []
        numbers = (c.request_s, c.end_s, mbps_from_bps(c.bitrate_bps), mbps, c.buffer_s, stall_s, c.qoe)
        rows.append([c.index, c.level, *(round(float(v), 2) for v in numbers), *decided])
    return escape(msgspec.json.encode(rows).decode())


def _said(look: Look, session: Session) -> str:
    stalled = sum(s.end_s - s.start_s for s in session.stalls)
    fallbacks = sum(d.source != "policy" for d in session.decisions)
    mean = np.mean([mbps_from_bps(c.bitrate_bps) for c in session.chunks]) if session.chunks else 0.0
    return f"{look.label}: {len(session.chunks)} chunks at {mean:.2f} Mbit/s on average, {stalled:.1f} s stalled, {fallbacks} fallbacks"
