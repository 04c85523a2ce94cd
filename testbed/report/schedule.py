"""The part of a report that shows schedules: job completion times, executors over time, jobs in the system, what executors exchanged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from testbed.drawing import figures
from testbed.drawing.figures import Look
from testbed.drawing.svg import Frame, Scale, figure, line, num, padded, rect, text, tick_label
from testbed.events import Run
from testbed.records import AnyTrialRow, ScheduleRow

WIDTH = 1120
ROW = 12
MOST_ROW_HEIGHT_PX = 340
MOST_DRAWN = 24
"""Schedules that are drawn one by one."""
SAME_SPAN_S = 1.0
"""Gaps up to this between tasks of one job on one executor are not drawn; they are of the emulation, or too short to see."""
_LEFT, _RIGHT = 56, WIDTH - 12
_TURN = 0.6180339887498949
MB = 1e6


@dataclass(frozen=True)
class Drawn:
    """One schedule with its drawings."""

    look: Look
    trial: ScheduleRow
    gantt: Markup
    traffic: Markup


@dataclass(frozen=True)
class Workload:
    """The schedules of one workload, side by side."""

    title: str
    in_system: Markup
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class SchedulePage:
    """A run's schedules, seen as what the template shows."""

    run: Run
    looks: Mapping[str, Look]
    counted: Mapping[str, Sequence[AnyTrialRow]]
    """The trials by policy that means are taken over (`Page.trials`)."""

    def jct_cdf(self) -> Markup:
        """Over all jobs of the trials that count."""
        jobs = self.run.tables["jobs"]
        ids = {look: [trial.trial_id for trial in self.counted[name]] for name, look in self.looks.items()}
        series = {look: jobs.filter(pl.col("trial_id").is_in(ids[look]))["jct_s"].drop_nulls().to_list() for look in ids}
        return Markup(figures.cdf(series, "job completion time, s", "jobs", "Job completion times"))

    def workloads(self) -> list[Workload]:
        """Of the first workloads, as many as there is room for."""
        by_name: dict[tuple[str, str], list[ScheduleRow]] = {}
        for trial in self.run.trials:
            if isinstance(trial, ScheduleRow):
                by_name.setdefault((trial.trace, trial.trace_sha256), []).append(trial)
        room = max(MOST_DRAWN // max(len(self.looks), 1), 1)
        return [self._workload(key[0], trials) for key, trials in list(by_name.items())[:room]]

    def omitted(self) -> int:
        """Workloads that are not drawn."""
        return len({(trial.trace, trial.trace_sha256) for trial in self.run.trials}) - len(self.workloads())

    def _workload(self, title: str, trials: Sequence[ScheduleRow]) -> Workload:
        ordered = sorted(trials, key=lambda trial: (self.looks[trial.policy].number, trial.attempt))
        end_s = max([1.0, *(trial.makespan_s or 0.0 for trial in ordered)])
        drawn = tuple(self._drawn(trial, end_s) for trial in ordered)
        jobs = {self.looks[trial.policy]: self._table("jobs", trial) for trial in ordered}
        return Workload(title, Markup(in_system(jobs, end_s)), drawn)

    def _drawn(self, trial: ScheduleRow, end_s: float) -> Drawn:
        look, executors = self.looks[trial.policy], int(self.run.header.spec.get("executors", 1))
        chart = gantt(self._table("tasks", trial), self._table("executors", trial), executors, end_s, f"{look.label}: executors over time")
        return Drawn(look, trial, Markup(chart), Markup(traffic(self._table("transfers", trial), executors, look)))

    def _table(self, name: str, trial: ScheduleRow) -> pl.DataFrame:
        return self.run.tables[name].filter(pl.col("trial_id") == trial.trial_id)

    def losses(self) -> list[dict[str, Any]]:
        """Executors that were lost or came back."""
        return self.run.tables["executors"].to_dicts()


def job_colour(job: int) -> str:
    """Neighbours in number are far apart in hue."""
    return f"hsl({360 * (job * _TURN % 1):.0f} {55 + 20 * (job % 2)}% {48 + 12 * (job % 3)}%)"


def spans(tasks: pl.DataFrame) -> list[tuple[int, int, float, float, bool]]:
    """Executor, job, beginning and end of each stretch of work for one job; whether it came to nothing."""
    found: list[tuple[int, int, float, float, bool]] = []
    for executor, job, start_s, end_s, outcome in (
        tasks.sort("executor", "start_s").select("executor", "job", "start_s", "end_s", "outcome").iter_rows()
    ):
        lost = outcome != "done"
        if found and (last := found[-1])[:2] == (executor, job) and start_s - last[3] <= SAME_SPAN_S and last[4] == lost:
            found[-1] = (*last[:3], max(end_s, last[3]), lost)
        else:
            found.append((executor, job, start_s, end_s, lost))
    return found


def gantt(tasks: pl.DataFrame, events: pl.DataFrame, executors: int, end_s: float, title: str) -> str:
    """One row an executor, coloured by job; hatched where tasks came to nothing, a mark where an executor was lost or came back."""
    row = min(ROW, MOST_ROW_HEIGHT_PX / executors)
    top, height = 18, row * executors
    x = Scale(0, end_s, _LEFT, _RIGHT)
    parts = [text(_LEFT - 8, top - 6, "executor", "ax lab", "end")]
    for executor in range(0, executors, max(1, round(14 / row))):
        parts.append(text(_LEFT - 8, top + row * (executor + 0.5) + 4, str(executor), anchor="end"))
    for executor, job, start_s, stop_s, lost in spans(tasks):
        tip = escape(f"job {job}, executor {executor}\n{start_s:.1f} to {stop_s:.1f} s{', ran again' if lost else ''}")
        style = f'fill="{job_colour(job)}"' + (' fill-opacity="0.35" stroke="currentColor"' if lost else "")
        width = max(x(stop_s) - x(start_s), 0.3)
        parts.append(rect(x(start_s), top + row * executor + 0.5, width, max(row - 1, 0.5), "job", f'{style} data-tip="{tip}"'))
    for event in events.to_dicts():
        at = x(min(event["at_s"], end_s))
        y = top + row * (event["executor"] + 0.5)
        tip = escape(f"executor {event['executor']} {event['what']} at {event['at_s']:.1f} s\n{event['reason']}")
        turn = "l4 8h-8z" if event["what"] == "joined" else "l-4 -8h8z"
        parts.append(f'<path class="fallback" d="M{num(at)} {num(y)}{turn}" data-tip="{tip}"/>')
    parts.append(line(_LEFT, top + height, _RIGHT, top + height, "tick"))
    for tick in x.ticks(12):
        parts += [
            line(x(tick), top + height, x(tick), top + height + 4, "tick"),
            text(x(tick), top + height + 18, f"{tick:g} s", anchor="middle"),
        ]
    return figure(WIDTH, top + height + 26, title, parts, "timeline")


def in_system(jobs: Mapping[Look, pl.DataFrame], end_s: float) -> str:
    """How many jobs had arrived and were not done, over time."""
    lines = {look: _steps(table, end_s) for look, table in jobs.items()}
    most = max((value for points in lines.values() for _, value in points), default=1.0)
    frame = Frame(Scale(0, end_s, _LEFT, _RIGHT), Scale(0, max(most, 1.0) * 1.08, 150, 24))
    parts = [frame.axes("", "jobs in the system", x_ticks=12)]
    parts += [look.group(frame.line(points, "ln thin")) for look, points in lines.items()]
    return figure(WIDTH, 178, "Jobs in the system over time", parts, "timeline")


def _steps(jobs: pl.DataFrame, end_s: float) -> list[tuple[float, float]]:
    changes = [(at_s, 1) for at_s in jobs["arrived_s"]] + [(at_s, -1) for at_s in jobs["done_s"].drop_nulls()]
    points, level = [(0.0, 0.0)], 0.0
    for at_s, change in sorted(changes):
        points += [(at_s, level), (at_s, level + change)]
        level += change
    return [*points, (end_s, level)]


def traffic(transfers: pl.DataFrame, executors: int, look: Look) -> str:
    """What each executor sent (left bar) and received (right bar); nothing when nothing travelled."""
    if transfers.is_empty():
        return ""
    sent, received = np.zeros(executors), np.zeros(executors)
    np.add.at(sent, transfers["sender"].to_numpy(), transfers["size_bytes"].to_numpy() / MB)
    np.add.at(received, transfers["receiver"].to_numpy(), transfers["size_bytes"].to_numpy() / MB)
    x = Scale(0, executors, _LEFT, _RIGHT)
    y = Scale(0, padded([0.0, float(max(sent.max(), received.max()))])[1], 96, 20)
    slot = (_RIGHT - _LEFT) / executors
    parts = [text(_LEFT - 8, 12, "MB", "ax lab", "end")]
    for tick in y.ticks(3):
        parts += [line(_LEFT, y(tick), _RIGHT, y(tick), "grid"), text(_LEFT - 8, y(tick) + 4, tick_label(tick), anchor="end")]
    bars = []
    for executor in range(executors):
        tip = f'data-tip="executor {executor}&#10;sent {sent[executor]:.3f} MB&#10;received {received[executor]:.3f} MB"'
        for place, value in enumerate((sent[executor], received[executor])):
            left = x(executor) + slot * (0.12 + 0.4 * place)
            bars.append(rect(left, y(value), slot * 0.36, y(0) - y(value), "solid" if place else "lost-switch", tip))
        if executor % max(1, round(18 / slot)) == 0:
            parts.append(text(x(executor) + slot / 2, 112, str(executor), anchor="middle"))
    return figure(WIDTH, 118, f"{look.label}: what executors exchanged", [*parts, look.group("".join(bars))], "timeline")
