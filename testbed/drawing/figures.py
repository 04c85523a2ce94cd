"""The figures of a report, each a function from numbers to SVG. A policy has one look (colour, marker) in all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from testbed.drawing.svg import Frame, Scale, figure, line, line_path, marker, num, padded, path, rect, signed, text, tick_label
from testbed.metrics import REBUF_PENALTY
from testbed.stats import Estimate

WIDTH = 560
HEIGHT = 330
_TOP = 28
LEAST_RATIO_FOR_LOG = 8
"""Abscissae that spread over more than this factor get a logarithmic axis."""
STRIP_WIDTH = 230
WIDE_STRIP_WIDTH = 480
STRIP_HEIGHT = 34
LABEL_CHARACTER = 7
"""Width of a character of an axis label, pixels, about."""


@dataclass(frozen=True)
class Look:
    """How a policy appears: its number chooses marker and CSS class `pN`, which holds the colour."""

    number: int
    name: str
    label: str
    colour: str
    citation: str = ""
    dashed: bool = False
    """The offline optimum's, which is no policy."""

    @property
    def line(self) -> str:
        """CSS classes of its lines."""
        return "ln upper" if self.dashed else "ln"

    def group(self, body: str) -> str:
        """SVG in this policy's colour, hidden when the reader switches the policy off."""
        return f'<g class="p{self.number}" data-p="{self.number}">{body}</g>'


def strip_scale(
    estimates: Sequence[Estimate], values: Sequence[Sequence[float]], include: Sequence[float] = (), width: float = STRIP_WIDTH
) -> Scale:
    """One scale for a column of strips: all intervals fit, and all dots but the farthest few of a hundred."""
    ends = [v for e in estimates for v in (*(e.ci95 or ()), e.mean) if v is not None]
    pooled = [v for part in values for v in part]
    core = [float(np.quantile(pooled, q)) for q in (0.03, 0.97)] if pooled else []
    low, high = padded([*ends, *core], include=include)
    return Scale(low, high, 8, width - 8)


def strip_axis(scale: Scale, label: str) -> str:
    """The axis above a column of strips; of labels that would run into each other only some are written."""
    ticks = scale.ticks(5)
    widest = max((len(tick_label(t)) for t in ticks), default=0) * LABEL_CHARACTER + LABEL_CHARACTER
    every = math.ceil(widest / (scale(ticks[1]) - scale(ticks[0]))) if len(ticks) > 1 else 1
    labels = [text(scale(t), 12, tick_label(t), anchor="middle") for t in ticks[::every]]
    return figure(scale.end + 8, 22, label, [*labels, *(line(scale(t), 17, scale(t), 22, "tick") for t in ticks)], "strip")


def strip(look: Look, estimate: Estimate, values: Sequence[float], scale: Scale, zero: bool = False, upper: float | None = None) -> str:
    """A table cell: one faint dot a trace, the 95 % interval as a bar, the mean as the policy's marker; `upper`: the optimum's mean."""
    y = STRIP_HEIGHT / 2
    grid = "".join(line(scale(t), 0, scale(t), STRIP_HEIGHT, "zero" if zero and abs(t) < 1e-12 else "grid") for t in scale.ticks(5))
    spots = ((scale(v), y + 5 * math.sin(7.3 * i)) for i, v in enumerate(values))
    dots = "".join(f'<circle class="dot" cx="{num(cx)}" cy="{num(cy)}" r="2.4"/>' for cx, cy in spots)
    bar = line(scale(estimate.ci95[0]), y, scale(estimate.ci95[1]), y, "ci") if estimate.ci95 else ""
    mean = marker(scale(estimate.mean), y, look.number, "mean", 4.6) if estimate.mean is not None else ""
    grid += "" if upper is None else line(scale(upper), 0, scale(upper), STRIP_HEIGHT, "bound")
    said = "no mean" if estimate.mean is None else f"{look.label}: mean {estimate.mean:.3f}"
    return figure(scale.end + 8, STRIP_HEIGHT, said, [grid, f'<g class="p{look.number}">{dots}{bar}{mean}</g>'], "strip")


def cdf(series: Mapping[Look, Sequence[float]], x_label: str, of: str, title: str) -> str:
    """Cumulative distributions as steps; the worst hundredth may lie left of the axis."""
    pooled = [v for values in series.values() for v in values]
    if not pooled:
        return ""
    low, high = padded([float(np.quantile(pooled, 0.01)), max(pooled)], 0.03)
    frame = Frame(Scale(low, high, 46, WIDTH - 14), Scale(0, 1, HEIGHT - 46, _TOP))
    parts = [frame.axes(x_label, f"share of {of} at or below")]
    for look, values in series.items():
        if values:
            parts.append(look.group(frame.line(_cdf_points(sorted(values), low, high), look.line)))
    return figure(WIDTH, HEIGHT, title, parts)


def _cdf_points(values: Sequence[float], low: float, high: float) -> list[tuple[float, float]]:
    n = len(values)
    points: list[tuple[float, float]] = []
    below = 0.0
    for i, value in enumerate(values, 1):
        if value >= low:
            points += [(value, below), (value, i / n)] if points else [(low, below), (value, below), (value, i / n)]
        below = i / n
    return [*points, (high, 1.0)]


def components(rows: Mapping[Look, Mapping[str, float | None]], title: str) -> str:
    """What QoE is made of: the bar is the bitrate, what stalls and switches cost is cut off its right end, the rest is QoE."""
    known = {look: (c["bitrate_mbps"], c["rebuffer_s"], c["switch_mbps"]) for look, c in rows.items()}
    bars = {look: (b, REBUF_PENALTY * r, s) for look, (b, r, s) in known.items() if b is not None and r is not None and s is not None}
    if not bars:
        return ""
    low = min(0.0, *(b - r - s for b, r, s in bars.values()))
    row = min(max(44.0, (HEIGHT - 66) / len(bars)), 64.0)
    height = 62 + row * len(bars)
    scale = Scale(low * 1.08, max(b for b, _, _ in bars.values()) * 1.06, 16, WIDTH - 16)
    parts = [line(scale(t), 14, scale(t), height - 40, "zero" if t == 0 else "grid") for t in scale.ticks(6)]
    parts += [text(scale(t), height - 24, tick_label(t), anchor="middle") for t in scale.ticks(6)]
    parts.append(text(WIDTH - 16, height - 6, "Mbit/s and QoE per chunk", "ax lab", "end"))
    for i, (look, (bitrate, stall, switch)) in enumerate(bars.items()):
        parts.append(_component_bar(look, bitrate, stall, switch, scale, 18 + row * (i + 0.5) - 18))
    return figure(WIDTH, height, title, parts)


def _component_bar(look: Look, bitrate: float, stall: float, switch: float, scale: Scale, y: float) -> str:
    qoe, before_stall = bitrate - stall - switch, bitrate - switch
    zero, end = scale(0.0), scale(bitrate)
    said = f"{look.label}\nbitrate {bitrate:.3f} Mbit/s\nstalls {signed(-stall, 3)}\nchanges {signed(-switch, 3)}\nQoE {signed(qoe, 3)}"
    tip = f'data-tip="{escape(said)}"'
    solid = rect(min(zero, scale(qoe)), y + 16, abs(scale(qoe) - zero), 16, "solid" if qoe >= 0 else "debt")
    stalls = rect(scale(qoe), y + 16, scale(before_stall) - scale(qoe), 16, "lost-stall")
    switches = rect(scale(before_stall), y + 16, end - scale(before_stall), 16, "lost-switch")
    label = text(zero + 1, y + 10, look.label, "lbl") + text(max(end, zero) + 6, y + 28, signed(qoe, 2), "lbl num")
    hit = rect(16, y, WIDTH - 32, 40, "hit", tip)
    return look.group(solid + stalls + switches + label + hit)


def scatter(
    points: Mapping[Look, Sequence[tuple[float, float, str]]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    diagonal: bool = False,
    band: tuple[float, float] | None = None,
) -> str:
    """Points (x, y, name) per policy; a diagonal where both axes mean the same; a band of (share, least) around it."""
    pooled = [p for part in points.values() for p in part]
    if not pooled:
        return ""
    xs, ys = [p[0] for p in pooled], [p[1] for p in pooled]
    log_x = not diagonal and min(xs) > 0 and max(xs) / min(xs) > LEAST_RATIO_FOR_LOG
    if diagonal:
        x_range = y_range = padded([*xs, *ys])
    else:
        x_range, y_range = ((min(xs) / 1.15, max(xs) * 1.15) if log_x else padded(xs)), padded(ys)
    frame = Frame(Scale(*x_range, 50, WIDTH - 14, log_x), Scale(*y_range, HEIGHT - 46, _TOP))
    parts = [_band(frame, *band)] if band else []
    parts.append(frame.axes(x_label, y_label))
    if diagonal:
        parts.append(frame.line([(x_range[0], x_range[0]), (x_range[1], x_range[1])], "diagonal"))
    for look, part in points.items():
        marks = (marker(frame.x(x), frame.y(y), look.number, "pt", 3.6, f"{look.label}\n{name}\n{x:.3f} → {y:.3f}") for x, y, name in part)
        parts.append(look.group("".join(marks)))
    return figure(WIDTH, HEIGHT, title, parts)


def _band(frame: Frame, share: float, least: float) -> str:
    xs = np.linspace(frame.x.low, frame.x.high, 60)
    upper = [(float(x), float(x + max(share * abs(x), least))) for x in xs]
    lower = [(float(x), float(x - max(share * abs(x), least))) for x in xs[::-1]]
    return path(line_path((frame.x(x), frame.y(y)) for x, y in (*upper, *lower)) + "z", "band")


def latency(waits_ms: Mapping[Look, Sequence[float]], deadline_ms: float | None, title: str, x_label: str) -> str:
    """How long decisions took: cumulative shares on a logarithmic axis, and the deadline."""
    pooled = [v for part in waits_ms.values() for v in part]
    if not pooled:
        return ""
    low = 10.0 ** math.floor(math.log10(max(min(pooled), 1e-3)))
    high = max(*pooled, deadline_ms or 0, low * 10) * 1.5
    frame = Frame(Scale(low, high, 46, WIDTH - 14, log=True), Scale(0, 1, HEIGHT - 46, _TOP))
    parts = [frame.axes(x_label, "share of decisions at or below")]
    for look, values in waits_ms.items():
        ordered = sorted(values)
        shown = [ordered[i] for i in np.unique(np.linspace(0, len(ordered) - 1, 200).astype(int))] if ordered else []
        parts.append(look.group(frame.line(_cdf_points(shown, low, high))))
    if deadline_ms is not None:
        x = frame.x(deadline_ms)
        parts += [line(x, _TOP, x, HEIGHT - 46, "deadline"), text(x - 6, HEIGHT - 56, "deadline", "ax warn", "end")]
    return figure(WIDTH, HEIGHT, title, parts)
