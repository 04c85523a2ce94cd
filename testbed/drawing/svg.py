"""Compact SVG by hand: scales, axes and paths. Colours and type come from the page's style sheet by class, so figures follow its theme."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` .. `high` to pixels from `start` to `end`; values outside are clamped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        low, high = self._unit(self.low), self._unit(self.high)
        share = (self._unit(value) - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _unit(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range: 1, 2 or 5 times a power of ten; decades when logarithmic."""
        if self.log:
            first, last = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
            mantissas = (1.0,) if last - first > 2 else (1.0, 2.0, 5.0)
            return [t for k in range(first, last + 1) for m in mantissas if self.low * 0.999 <= (t := m * 10.0**k) <= self.high * 1.001]
        step = nice_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(raw: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten, in ratio."""
    power = 10.0 ** math.floor(math.log10(raw))
    return min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw))) * power


LEAST_SPAN = 1e-3
"""Of an axis, about; a billionth of it, or of the values, is rounding."""


def padded(values: Iterable[float], share: float = 0.06, include: Sequence[float] = ()) -> tuple[float, float]:
    """A range that holds `values` (and `include`) with a margin; never empty."""
    known = [v for v in (*values, *include) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    rounding = max(abs(low), abs(high), LEAST_SPAN) * 1e-9
    margin = (high - low) * share if high - low > rounding else max(abs(high) * 0.1, 0.1)
    return low - margin, high + margin


def num(value: float) -> str:
    """A coordinate: one decimal at most, no trailing zero."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def tick_label(value: float) -> str:
    """A tick's text, with a real minus sign."""
    text = f"{value:.6g}".replace("e+0", "e").replace("e-0", "e-")
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int) -> str:
    """A number with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def line_path(points: Iterable[Point]) -> str:
    """A path through `points`, in relative coordinates, each rounded so that errors don't add up."""
    parts: list[str] = []
    x0 = y0 = 0.0
    for x, y in points:
        x, y = round(x, 1), round(y, 1)
        if not parts:
            parts.append(f"M{num(x)} {num(y)}")
        elif x == x0 and y == y0:
            continue
        elif y == y0:
            parts.append(f"h{num(x - x0)}")
        elif x == x0:
            parts.append(f"v{num(y - y0)}")
        else:
            parts.append(f"l{num(x - x0)} {num(y - y0)}")
        x0, y0 = x, y
    return "".join(parts)


def step_points(edges: Sequence[float], values: Sequence[float]) -> list[Point]:
    """Corners of a step function: `values[i]` from `edges[i]` to `edges[i+1]`."""
    points: list[Point] = []
    for left, right, value in zip(edges, edges[1:], values, strict=False):
        points += [(left, value), (right, value)]
    return points


def path(d: str, css: str, extra: str = "") -> str:
    """A path element."""
    return f'<path class="{css}" d="{d}"{" " + extra if extra else ""}/>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<path class="{css}" d="M{num(x1)} {num(y1)}L{num(x2)} {num(y2)}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, extra: str = "") -> str:
    """A rectangle."""
    size = f'width="{num(max(width, 0))}" height="{num(max(height, 0))}"'
    return f'<rect class="{css}" x="{num(x)}" y="{num(y)}" {size}{" " + extra if extra else ""}/>'


def text(x: float, y: float, content: str, css: str = "ax", anchor: str = "start") -> str:
    """A label; `content` is escaped."""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{num(x)}" y="{num(y)}"{where}>{escape(content)}</text>'


def marker(x: float, y: float, shape: int, css: str, radius: float = 4.0, tip: str = "") -> str:
    """A point in one of six shapes, so that colour is never the only difference."""
    corners = {1: 4, 2: 3, 3: 4, 4: 3, 5: 6}
    turn = {1: 45, 2: -90, 3: 0, 4: 90, 5: 0}
    extra = f' data-tip="{escape(tip)}"' if tip else ""
    kind = shape % 6
    if kind == 0:
        return f'<circle class="{css}" cx="{num(x)}" cy="{num(y)}" r="{num(radius)}"{extra}/>'
    angles = [math.radians(turn[kind]) + k * math.tau / corners[kind] for k in range(corners[kind])]
    around = [(x + 1.2 * radius * math.cos(angle), y + 1.2 * radius * math.sin(angle)) for angle in angles]
    return f'<path class="{css}" d="{line_path(around)}z"{extra}/>'


def figure(width: float, height: float, title: str, body: Iterable[str], css: str = "", extra: str = "") -> str:
    """The whole drawing. `title` is what a screen reader says."""
    return (
        f'<svg class="fig {css}" viewBox="0 0 {num(width)} {num(height)}" role="img" aria-label="{escape(title)}"'
        f"{' ' + extra if extra else ''}>{''.join(body)}</svg>"
    )


@dataclass(frozen=True)
class Frame:
    """Two scales and the axes around them."""

    x: Scale
    y: Scale

    def axes(self, x_label: str = "", y_label: str = "", x_ticks: int = 6, y_ticks: int = 4) -> str:
        """Horizontal grid lines with their values, about `x_ticks` ticks below (0: none), and labels."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = []
        for tick in self.y.ticks(y_ticks):
            y = self.y(tick)
            parts += [line(left, y, right, y, "grid"), text(left - 8, y + 4, tick_label(tick), anchor="end")]
        for tick in self.x.ticks(x_ticks) if x_ticks else ():
            x = self.x(tick)
            parts += [line(x, bottom, x, bottom + 4, "tick"), text(x, bottom + 18, tick_label(tick), anchor="middle")]
        parts.append(line(left, bottom, right, bottom, "tick"))
        if x_label:
            parts.append(text(right, bottom + 36, x_label, "ax lab", "end"))
        if y_label:
            parts.append(text(left - 8 if left < 60 else left, top - 10, y_label, "ax lab"))
        return "".join(parts)

    def line(self, points: Iterable[Point], css: str = "ln") -> str:
        """A line through points given in the axes' units."""
        return path(line_path((self.x(x), self.y(y)) for x, y in points), css)
