"""Figures on the links and the host they ran on: lateness, what a link did with its capacity per 100 ms, and the host over the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from testbed.drawing.svg import Frame, Scale, figure, line, line_path, num, path, rect, step_points, text
from testbed.records import HostRow, LatenessRow
from testbed.records_trial import TrialBase
from testbed.units import bits_from_bytes, kilobytes_from_bytes, mbps_from_bps

WIDTH = 1120
_LEFT, _RIGHT = 52, WIDTH - 12
HALF_WIDTH, HALF_HEIGHT = 560, 330
_TOP = 28
MOST_COLUMNS = 1050
"""A figure has about so many pixels; finer windows are put together."""
WINDOW_S = 0.1
"""What one `LinkRow` covers."""
CLOSE_UP_WINDOWS = 100
_LANE_PX = 9
_LEAST_BAR_PX = 2.0
"""A drop that is small beside the queue must be seen nevertheless."""

Numbers = NDArray[np.float64]


def lateness(series: Mapping[str, Sequence[LatenessRow]], limits_ms: Mapping[str, float], title: str) -> str:
    """How late packets were, both axes logarithmic: the tail decides. `series` by CSS class: first bars, then outlines."""
    bins = {css: counted for css, rows in series.items() if any((counted := _bins(rows)).values())}
    if not bins:
        return ""
    edges = sorted({edge for counted in bins.values() for edge, count in counted.items() if count} | set(limits_ms.values()))
    shares = {css: {e: 100 * n / sum(counted.values()) for e, n in counted.items() if n} for css, counted in bins.items()}
    least = min(min(part.values()) for part in shares.values())
    frame = Frame(
        Scale(edges[0] / 2, edges[-1] * 1.2, 46, HALF_WIDTH - 14, log=True),
        Scale(10.0 ** np.floor(np.log10(least) - 1e-9), 100.0, HALF_HEIGHT - 46, _TOP, log=True),
    )
    parts = [frame.axes("packets were about this late, ms", "per cent of packets")]
    for number, (css, part) in enumerate(shares.items()):
        parts += [_bin(frame, edge, share, css, number) for edge, share in sorted(part.items())]
    for number, (label, limit_ms) in enumerate(limits_ms.items()):
        x = frame.x(limit_ms)
        parts.append(line(x, _TOP, x, HALF_HEIGHT - 46, "deadline"))
        parts.append(text(x - 6, _TOP + 12 + 16 * number, label, "ax warn", "end"))
    return figure(HALF_WIDTH, HALF_HEIGHT, title, parts)


def _bins(rows: Sequence[LatenessRow]) -> dict[float, int]:
    """Packets by the upper edge of their bin, ms."""
    found: dict[float, int] = {}
    for row in rows:
        for edge, count in zip(row.upper_ms, row.counts, strict=True):
            found[edge] = found.get(edge, 0) + count
    return found


def _bin(frame: Frame, edge_ms: float, share: float, css: str, number: int) -> str:
    """One bin, which begins at half its upper edge; later series stand narrower in front of the first."""
    inset = 1 + 4 * number
    left, right, y = frame.x(edge_ms / 2) + inset, frame.x(edge_ms) - inset, frame.y(share)
    tip = f'data-tip="at most {edge_ms:g} ms late&#10;{share:.3g} % of packets"'
    return rect(left, y, max(right - left, 1), max(frame.y.start - y, 1), css, tip)


@dataclass(frozen=True)
class Windows:
    """Windows of one direction of a link, in bytes, put together so that there are few enough to draw."""

    begin_s: float
    width_s: float
    allowed: Numbers
    delivered: Numbers
    dropped: Numbers
    lost: Numbers
    queue: Numbers

    @property
    def edges_s(self) -> list[float]:
        """Where windows begin and end."""
        return (self.begin_s + self.width_s * np.arange(len(self.allowed) + 1)).tolist()

    def rate_mbps(self, size_bytes: Numbers) -> list[float]:
        """Bytes a window as a rate."""
        return mbps_from_bps(bits_from_bytes(size_bytes) / self.width_s).tolist()

    def close_up(self) -> "Windows":
        """The stretch around most drops; where nothing was dropped, around the fullest queue or the most bytes."""
        n = len(self.allowed)
        telling = next((v for v in (self.dropped + self.lost, self.queue, self.delivered) if v.any()), self.allowed)
        first = min(max(int(np.argmax(telling)) - CLOSE_UP_WINDOWS // 3, 0), max(n - CLOSE_UP_WINDOWS, 0))
        part = slice(first, first + CLOSE_UP_WINDOWS)
        columns = (self.allowed, self.delivered, self.dropped, self.lost, self.queue)
        return Windows(self.begin_s + first * self.width_s, self.width_s, *(column[part] for column in columns))

    def drawable(self) -> "Windows":
        """The same in at most `MOST_COLUMNS` windows: bytes added up, of queues the longest."""
        k = -(-len(self.allowed) // MOST_COLUMNS)
        allowed, delivered, dropped, lost = (_folded(c, k).sum(axis=1) for c in (self.allowed, self.delivered, self.dropped, self.lost))
        longest = _folded(self.queue, k).max(axis=1, initial=0.0)
        return Windows(self.begin_s, k * self.width_s, allowed, delivered, dropped, lost, longest)


def _folded(column: Numbers, k: int) -> Numbers:
    """Rows of `k` values, the last filled up with zeros."""
    k = max(k, 1)
    return np.pad(column, (0, -len(column) % k)).reshape(-1, k)


def capacity_use(windows: Windows, title: str) -> str:
    """Above: what the trace allowed, as used and wasted; below: the queue, and what was dropped or lost."""
    edges_s = windows.edges_s
    x = Scale(edges_s[0], edges_s[-1], _LEFT, _RIGHT)
    allowed, delivered = windows.rate_mbps(windows.allowed), windows.rate_mbps(windows.delivered)
    rates = Frame(x, Scale(0, max([*allowed, 0.1]) * 1.06, 150, 20))
    dropped, lost, waiting = (kilobytes_from_bytes(column) for column in (windows.dropped, windows.lost, windows.queue))
    highest = max(float(column.max(initial=0.0)) for column in (dropped + lost, waiting))
    queue = Frame(x, Scale(0, max(highest, 1.0) * 1.1, 236, 184))
    parts = [rates.axes(y_label="Mbit/s", x_ticks=0), queue.axes("seconds since the first media request", "queue and losses, kB", 10, 2)]
    parts += [_area(rates, edges_s, allowed, "idle"), _area(rates, edges_s, delivered, "used")]
    for column, below, css in ((dropped, 0 * dropped, "gone-queue"), (lost, dropped, "gone-lost")):
        parts += [_bar(queue, edges_s[i], windows.width_s, below[i], column[i], css) for i in np.flatnonzero(column)]
    parts.append(queue.line(step_points(edges_s, waiting.tolist()), "queue"))
    return figure(WIDTH, 274, title, parts, "capacity-use")


def _area(frame: Frame, edges: Sequence[float], values: Sequence[float], css: str, floor: Numbers | None = None) -> str:
    """Between a step function and another one, else zero."""
    top = [(frame.x(s), frame.y(v)) for s, v in step_points(edges, values)]
    if not top:
        return ""
    steps = step_points(edges, floor.tolist()) if floor is not None else [(edges[0], 0.0), (edges[-1], 0.0)]
    return path(line_path([*top, *((frame.x(s), frame.y(v)) for s, v in reversed(steps))]) + "z", css)


def _bar(frame: Frame, begin_s: float, width_s: float, below: float, height: float, css: str) -> str:
    left, top = frame.x(begin_s), frame.y(below + height)
    return rect(left, top, max(frame.x(begin_s + width_s) - left, _LEAST_BAR_PX), max(frame.y(below) - top, _LEAST_BAR_PX), css)


def host(rows: Sequence[HostRow], trials: Sequence[TrialBase], title: str) -> str:
    """The host over the run, and below it who played when: whether a link that failed was the host's fault, by eye."""
    zero_s = min(row.at_s - row.window_s for row in rows)
    end_s = max([*(row.at_s for row in rows), *(t.ended_at_s for t in trials if t.ended_at_s is not None)]) - zero_s
    x = Scale(0, end_s, _LEFT, _RIGHT)
    shown = [(t, t.began_at_s, t.ended_at_s) for t in trials if t.began_at_s is not None and t.ended_at_s is not None]
    share = Frame(x, Scale(0, 100, 120, 20))
    parts = [share.axes(y_label="cores busy, and stolen on top, %", x_ticks=0)]
    columns = _Columns(rows, zero_s, end_s)
    busy, stolen = columns.means("busy_share"), columns.means("steal_share")
    parts += [_area(share, columns.edges_s, busy.tolist(), "busy"), _area(share, columns.edges_s, (busy + stolen).tolist(), "stolen", busy)]
    bottom = 120
    for name, label in (("cpu_pressure_share", "some task waited for a core, %"), ("relay_wait_share", "the relay waited for a core, %")):
        if not columns.known(name):
            continue
        panel = Frame(x, Scale(0, max(100.0 * max(columns.worst(name)), 1.0) * 1.08, bottom + 84, bottom + 34))
        parts += [panel.axes(y_label=label + " (line: worst sample)", x_ticks=0, y_ticks=2)]
        parts.append(_area(panel, columns.edges_s, columns.means(name).tolist(), "pressure"))
        parts.append(panel.line(step_points(columns.edges_s, (100 * columns.worst(name)).tolist()), "worst"))
        bottom += 84
    lanes = sorted({t.lane for t, _, _ in shown})
    base = bottom + 30 + _LANE_PX * len(lanes)
    for trial, began_at_s, ended_at_s in shown:
        left, right = x(began_at_s - zero_s), x(ended_at_s - zero_s)
        if trial.fidelity == "fail":
            parts.append(rect(left, 20, right - left, bottom - 20, "failed-band"))
        top = bottom + 30 + _LANE_PX * lanes.index(trial.lane)
        parts.append(rect(left, top, max(right - left - 1, 1), _LANE_PX - 2, _state(trial), f'data-tip="{escape(_told(trial))}"'))
    parts.append(text(_LEFT, bottom + 22, "trials, a row a lane", "ax lab"))
    for tick in x.ticks(10):
        parts += [line(x(tick), base, x(tick), base + 4, "tick"), text(x(tick), base + 18, f"{num(tick)} s", anchor="middle")]
    return figure(WIDTH, base + 26, title, parts, "host")


def _state(trial: TrialBase) -> str:
    return "lane-fail" if trial.fidelity == "fail" else "lane-pass" if trial.valid else "lane-invalid"


def _told(trial: TrialBase) -> str:
    verdict = f"link {trial.fidelity or 'not judged'}" + (f"\n{trial.invalid_reason}" if trial.invalid_reason else "")
    return f"{trial.trial_id}: {trial.policy} on {trial.trace}\n{verdict}"


class _Columns:
    """Host rows put into equal columns of the run's time."""

    def __init__(self, rows: Sequence[HostRow], zero_s: float, end_s: float) -> None:
        self._rows = rows
        self._ends_s = np.array([row.at_s - zero_s for row in rows])
        self._widths_s = np.array([row.window_s for row in rows])
        count = max(min(MOST_COLUMNS, len(rows)), 1)
        self.edges_s = np.linspace(0.0, end_s, count + 1).tolist()

    def known(self, name: str) -> bool:
        """Whether the host told this at all."""
        return any(getattr(row, name) is not None for row in self._rows)

    def _values(self, name: str) -> Numbers:
        return np.array([getattr(row, name) or 0.0 for row in self._rows])

    def means(self, name: str) -> Numbers:
        """In per cent: differences of the integral over time, so that a row counts in each column that it reaches into."""
        integral = np.concatenate([[0.0], np.cumsum(self._widths_s * self._values(name))])
        times_s = np.concatenate([[self._ends_s[0] - self._widths_s[0]], self._ends_s])
        return 100 * np.diff(np.interp(self.edges_s, times_s, integral)) / np.diff(self.edges_s)

    def worst(self, name: str) -> Numbers:
        """As a share."""
        count, end_s = len(self.edges_s) - 1, self.edges_s[-1]
        first, last = (np.clip(s / end_s * count, 0, count - 1).astype(int) for s in (self._ends_s - self._widths_s, self._ends_s))
        found = np.zeros(count)
        for begin, end, value in zip(first, last, self._values(name), strict=True):
            found[begin : end + 1] = np.maximum(found[begin : end + 1], value)
        return found
