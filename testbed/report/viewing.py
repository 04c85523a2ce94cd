"""The part of a report that shows viewings: where a viewer looked and was expected to look, which tiles were high, what was in view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import polars as pl
from markupsafe import Markup

from players.tiles import BITRATES_BPS, COLUMNS, ROWS, SEGMENT_S
from testbed.drawing import figures
from testbed.drawing.figures import Look
from testbed.drawing.svg import Frame, Scale, figure, line, padded, rect, text
from testbed.events import Run
from testbed.records import AnyTrialRow
from testbed.records_vp import ViewingRow
from testbed.units import mbps_from_bps

WIDTH = 1120
MOST_DRAWN = 20
"""Viewings that are drawn one by one."""
_LEFT, _RIGHT = 56, WIDTH - 12
_ACROSS = (20, 140)
"""Top and bottom of the panel of longitudes, pixels; of latitudes, and of the quality:"""
_UP = (164, 234)
_QUALITY = (262, 332)
_JUMP_DEG = 180.0
"""Two samples farther apart than this lie on both sides of the picture's edge: no line joins them."""


@dataclass(frozen=True)
class Drawn:
    """One viewing with its drawing."""

    look: Look
    trial: ViewingRow
    svg: Markup


@dataclass(frozen=True)
class Group:
    """The viewings of one trace and viewer, side by side."""

    title: str
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class ViewingPage:
    """A run's viewings, seen as what the template shows."""

    run: Run
    looks: Mapping[str, Look]
    counted: Mapping[str, Sequence[AnyTrialRow]]
    """The trials by policy that means are taken over (`Page.trials`)."""

    @property
    def live(self) -> bool:
        """Whether tiles were fetched."""
        return self.run.header.mode != "simulation"

    def distribution(self) -> dict[str, object]:
        """CDF of the QoE of seconds, or of the errors of predictions."""
        if self.live:
            rated = self.run.tables["segments"].filter(pl.col("index") > 0)
            return {"of": "seconds", "svg": self._cdf(rated, "qoe", "QoE of a second, first ones left out", "seconds")}
        errors = self.run.tables["decisions"]
        return {"of": "predictions", "svg": self._cdf(errors, "mae_deg", "mean absolute error of a prediction, degrees", "predictions")}

    def errors(self) -> Markup:
        """CDF of the errors of live predictions."""
        return self._cdf(self.run.tables["decisions"], "mae_deg", "mean absolute error of a prediction, degrees", "predictions")

    def _cdf(self, table: pl.DataFrame, column: str, label: str, of: str) -> Markup:
        ids = {name: [trial.trial_id for trial in self.counted[name]] for name in self.looks}
        series = {
            look: table.filter(pl.col("trial_id").is_in(ids[name]))[column].drop_nulls().to_list() for name, look in self.looks.items()
        }
        return Markup(figures.cdf(series, label, of, f"Distribution over {of}"))

    def groups(self) -> list[Group]:
        """Of the first traces, as many as there is room for."""
        by_cell: dict[tuple[str, int, int], list[ViewingRow]] = {}
        for trial in self.run.trials:
            if isinstance(trial, ViewingRow) and self.live:
                by_cell.setdefault((trial.trace, trial.viewer, trial.seed), []).append(trial)
        room = max(MOST_DRAWN // max(len(self.looks), 1), 1)
        return [self._group(trials) for trials in list(by_cell.values())[:room]]

    def _group(self, trials: Sequence[ViewingRow]) -> Group:
        first = trials[0]
        ordered = sorted(trials, key=lambda trial: (self.looks[trial.policy].number, trial.attempt))
        drawn = tuple(Drawn(self.looks[trial.policy], trial, self._drawn(trial)) for trial in ordered)
        return Group(f"{first.trace}, viewer {first.viewer} on video {first.video}", drawn)

    def _drawn(self, trial: ViewingRow) -> Markup:
        heads, segments = (self.run.tables[name].filter(pl.col("trial_id") == trial.trial_id) for name in ("heads", "segments"))
        if segments.is_empty():
            return Markup()
        return Markup(picture(heads.sort("media_s"), segments.sort("index"), self.looks[trial.policy]))


def picture(heads: pl.DataFrame, segments: pl.DataFrame, look: Look) -> str:
    """Longitude and latitude over the video's time, on tiles that are darker the higher they were fetched; below, what was in view."""
    end_s = max((segments["index"].to_list()[-1] + 1) * SEGMENT_S, 1.0)
    x = Scale(0, end_s, _LEFT, _RIGHT)
    across = Scale(-180, 180, _ACROSS[1], _ACROSS[0])
    up = Scale(-90, 90, _UP[1], _UP[0])
    parts = _tiles(segments, x, across, up)
    for scale, name, ticks in ((across, "longitude", (-90, 0, 90)), (up, "latitude", (-45, 0, 45))):
        parts.append(text(_LEFT - 8, scale.end - 6, f"{name}, degrees", "ax lab"))
        parts += [line(_LEFT, scale(tick), _RIGHT, scale(tick), "grid") for tick in ticks]
        parts += [text(_LEFT - 8, scale(tick) + 4, f"{tick:g}".replace("-", "\N{MINUS SIGN}"), anchor="end") for tick in ticks]
    for column, scale in (("longitude_deg", across), ("latitude_deg", up)):
        frame = Frame(x, scale)
        parts.append(look.group("".join(frame.line(piece) for piece in _pieces(heads, f"expected_{column}"))))
        parts += [frame.line(piece, "measured") for piece in _pieces(heads, column)]
    return figure(
        WIDTH, _QUALITY[1] + 26, f"{look.label}: predicted and actual viewport", [*parts, *_quality(segments, x, look)], "timeline"
    )


def _tiles(segments: pl.DataFrame, x: Scale, across: Scale, up: Scale) -> list[str]:
    """One strip a segment: columns of tiles over the longitudes, rows over the latitudes."""
    parts = []
    top = len(BITRATES_BPS) - 1
    for index, levels in segments.select("index", "levels").iter_rows():
        grid = [[int(levels[row * COLUMNS + column], 16) for column in range(COLUMNS)] for row in range(ROWS)]
        left, width = x(index * SEGMENT_S), x((index + 1) * SEGMENT_S) - x(index * SEGMENT_S)
        for column in range(COLUMNS):
            level = max(grid[row][column] for row in range(ROWS))
            high, low = across(-180 + 360 * (column + 1) / COLUMNS), across(-180 + 360 * column / COLUMNS)
            parts.append(_tile(left, high, width, low - high, level / top))
        for row in range(ROWS):
            level = max(grid[row])
            high, low = up(90 - 180 * row / ROWS), up(90 - 180 * (row + 1) / ROWS)
            parts.append(_tile(left, high, width, low - high, level / top))
    return [part for part in parts if part]


def _tile(left: float, top: float, width: float, height: float, share: float) -> str:
    return rect(left, top, width, height, "tile", f'fill-opacity="{0.08 + 0.24 * share:.2f}"') if share else ""


def _pieces(heads: pl.DataFrame, column: str) -> list[list[tuple[float, float]]]:
    """The line, cut where it crosses the picture's edge."""
    pieces: list[list[tuple[float, float]]] = []
    for media_s, angle_deg in heads.select("media_s", column).iter_rows():
        if not pieces or abs(angle_deg - pieces[-1][-1][1]) > _JUMP_DEG:
            pieces.append([])
        pieces[-1].append((media_s, angle_deg))
    return [piece for piece in pieces if len(piece) > 1]


def _quality(segments: pl.DataFrame, x: Scale, look: Look) -> list[str]:
    """Mbit/s in view of each segment, stalls before it in red, its numbers on hover."""
    mbps = [mbps_from_bps(value) for value in segments["quality_bps"].to_list()]
    frame = Frame(x, Scale(0, padded([0.0, *mbps])[1], _QUALITY[1], _QUALITY[0]))
    points, hits = [], []
    for row, value in zip(segments.iter_rows(named=True), mbps, strict=True):
        begin_s, end_s = row["index"] * SEGMENT_S, (row["index"] + 1) * SEGMENT_S
        points += [(begin_s, value), (end_s, value)]
        stalled = row["index"] and row["rebuffer_s"] > 0
        if stalled:
            hits.append(rect(x(begin_s) - 1.5, _QUALITY[0], 3, _QUALITY[1] - _QUALITY[0], "stall"))
        tip = (
            f"second {row['index']}\n{value:.2f} Mbit/s in view\nblank {100 * row['blank_share']:.1f} %\nstall {row['rebuffer_s']:.3f} s\n"
        )
        tip += f"{row['size_bytes'] / 1000:.0f} kB, never seen {row['wasted_bytes'] / 1000:.0f} kB"
        extra = f'data-tip="{escape(tip)}"'
        hits.append(rect(x(begin_s), _ACROSS[0], x(end_s) - x(begin_s), _QUALITY[1] - _ACROSS[0], "hit", extra))
    axes = frame.axes("", "Mbit/s in view", x_ticks=12, y_ticks=2)
    return [axes, look.group(frame.line(points)), *hits]
