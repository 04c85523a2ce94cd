"""Drawings of an evaluation that a run's report doesn't have: a panel per setting, and shares of the optimum over settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.drawing.figures import Look
from testbed.drawing.svg import Scale, figure, line, marker, padded, text, tick_label
from testbed.stats import Estimate

PANEL_WIDTH = 370
LABEL_WIDTH = 96
ROW = 19
WIDTH = 1150
HEIGHT = 360
LEAST_SHARE = 0.3
"""Shares below are drawn at the edge: the interesting ones are near 1."""


@dataclass(frozen=True)
class Point:
    """A policy's mean and interval."""

    look: Look
    estimate: Estimate


def panel(points: Sequence[Point], optimum: float | None, title: str) -> str:
    """One setting: a policy a row, its mean and interval along QoE; the optimum as a line that nobody passes."""
    ends = [value for each in points for value in (*(each.estimate.ci95 or ()), each.estimate.mean) if value is not None]
    low, high = padded(ends, include=() if optimum is None else (optimum,))
    scale = Scale(low, high, LABEL_WIDTH + 8, PANEL_WIDTH - 12)
    bottom = 14 + ROW * len(points)
    parts = []
    for tick in scale.ticks(4):
        parts += [line(scale(tick), 8, scale(tick), bottom, "grid"), text(scale(tick), bottom + 16, tick_label(tick), anchor="middle")]
    if optimum is not None:
        parts += [line(scale(optimum), 4, scale(optimum), bottom, "bound")]
    for i, each in enumerate(points):
        y = 14 + ROW * (i + 0.5)
        parts.append(each.look.group(text(LABEL_WIDTH, y + 4, each.look.label, "lbl", "end") + _mark(each, scale, y)))
    return figure(PANEL_WIDTH, bottom + 24, title, parts, "panel")


def _mark(point: Point, scale: Scale, y: float) -> str:
    found = point.estimate
    if found.mean is None:
        return ""
    bar = line(scale(found.ci95[0]), y, scale(found.ci95[1]), y, "ci") if found.ci95 else ""
    said = f"{point.look.label}\n{found.mean:.4f}" + (f" ± {found.half_width:.4f}" if found.ci95 else "")
    return bar + marker(scale(found.mean), y, point.look.number, "mean", 4.4, said)


def shares(columns: Sequence[tuple[str, Sequence[Point]]], title: str) -> str:
    """Share of the offline optimum: settings side by side, policies within each in the same order."""
    known = [
        value
        for _, points in columns
        for each in points
        for value in (*(each.estimate.ci95 or ()), each.estimate.mean)
        if value is not None
    ]
    if not known:
        return ""
    low = max(min(known) - 0.02, LEAST_SHARE)
    y = Scale(low, 1.02, HEIGHT - 34, 14)
    width = (WIDTH - 60) / len(columns)
    parts = []
    for tick in y.ticks(6):
        parts += [line(52, y(tick), WIDTH, y(tick), "grid"), text(44, y(tick) + 4, f"{100 * tick:.0f} %", anchor="end")]
    parts.append(line(52, y(1.0), WIDTH, y(1.0), "bound"))
    for i, (name, points) in enumerate(columns):
        left = 56 + i * width
        parts.append(text(left + width / 2, HEIGHT - 10, name, anchor="middle"))
        if i:
            parts.append(line(left, 14, left, HEIGHT - 34, "tick"))
        for k, each in enumerate(points):
            parts.append(each.look.group(_upright(each, left + width * (k + 1) / (len(points) + 1), y)))
    return figure(WIDTH, HEIGHT, title, parts, "shares")


def _upright(point: Point, x: float, y: Scale) -> str:
    found = point.estimate
    if found.mean is None:
        return ""
    bar = line(x, y(found.ci95[0]), x, y(found.ci95[1]), "ci") if found.ci95 else ""
    half = f" ± {100 * found.half_width:.1f}" if found.ci95 else ""
    said = f"{point.look.label}\n{100 * found.mean:.1f}{half} % of the optimum"
    return bar + marker(x, y(found.mean), point.look.number, "mean", 4.4, said)
