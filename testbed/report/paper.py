"""Figures for a paper, by matplotlib, with embedded TrueType fonts as publishers ask for; the same numbers and colours as the report's."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from testbed.drawing.figures import Look
from testbed.drawing.typography import COLUMN_INCHES, DASHES, FORMATS, STYLE, save
from testbed.errors import UserError
from testbed.events import Run
from testbed.report.page import Page
from testbed.report.summary import summarise
from testbed.terminal import MODELLED


def export(run: Run, folder: Path, form: str) -> list[Path]:
    """Write `qoe_mean`, `qoe_cdf`, `qoe_difference` and `decision_latency` into `folder`; returns the paths."""
    if form not in FORMATS:
        raise UserError(f"--figures is {form}, wanted one of {', '.join(FORMATS)}")
    folder.mkdir(exist_ok=True)
    page = Page(run, summarise(run))
    name = {"qoe_lin": "qoe", "viewport_qoe": "qoe", "avg_jct_s": "jct", "mae_deg": "mae"}.get(run.header.metric, "metric")
    plots: dict[str, Callable[[Page, Axes], bool]] = {
        f"{name}_mean": _means,
        f"{name}_cdf": _cdf,
        f"{name}_difference": _differences,
        "decision_latency": _latency,
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for stem, plot in plots.items():
            figure = Figure(figsize=(COLUMN_INCHES, 2.1), layout="constrained")
            axes = figure.add_subplot()
            if plot(page, axes):
                if page.modelled:
                    axes.set_title(MODELLED, fontsize=7, color="#a04000")
                written.append(save(figure, folder / f"{stem}.{form}"))
    return written


def _said(look: Look) -> str:
    """A policy's label. A dollar is a dollar: what stands between two might be no formula."""
    return look.label.replace("$", r"\$")


def _metric(page: Page) -> str:
    return f"{page.metric} {page.run.header.unit}".strip()


def _means(page: Page, axes: Axes) -> bool:
    rows = [(look, page.summary["policies"][name]) for name, look in page.looks.items()]
    rows = [(look, row) for look, row in rows if row["mean"] is not None]
    for i, (look, row) in enumerate(rows):
        axes.bar(i, row["mean"], 0.62, color=look.colour)
        if row["ci95"]:
            low, high = row["ci95"]
            axes.errorbar(i, row["mean"], [[row["mean"] - low], [high - row["mean"]]], color="#222222", capsize=2.5, linewidth=1)
    if page.upper and rows:
        bound = page.summary["optimum"]["mean"]
        axes.axhline(bound, color=page.upper.colour, linewidth=1, linestyle="--")
        axes.annotate(
            "offline\noptimum",
            (1, bound),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    turned = len(rows) > 5
    axes.set_xticks(range(len(rows)), [_said(look) for look, _ in rows], rotation=20 if turned else 0, ha="right" if turned else "center")
    axes.set_ylabel(_metric(page))
    axes.grid(axis="x", visible=False)
    return bool(rows)


def _cdf(page: Page, axes: Axes) -> bool:
    drawn = False
    for name, look in page.looks.items():
        values = [t.value for t in page.trials[name] if t.value is not None]
        if values:
            axes.ecdf(values, color=look.colour, linestyle=DASHES[look.number % len(DASHES)], label=_said(look))
            drawn = True
    if page.upper and drawn:
        axes.ecdf(page.optimal_qoe, color=page.upper.colour, linestyle="--", linewidth=1, label=page.upper.label)
    axes.set_xlabel(f"{_metric(page)}, mean of a trial")
    axes.set_ylabel("share of trials")
    if drawn:
        axes.legend(fontsize=7, handlelength=1.8)
    return drawn


def _differences(page: Page, axes: Axes) -> bool:
    pairs = page.pairs
    for i, pair in enumerate(reversed(pairs)):
        look = page.looks[pair.b]
        axes.plot(list(pair.differences.values()), [i] * len(pair.differences), "|", color=look.colour, alpha=0.35, markersize=7)
        if pair.estimate.ci95:
            axes.plot(pair.estimate.ci95, [i, i], color=look.colour, linewidth=3, solid_capstyle="butt")
        if pair.estimate.mean is not None:
            axes.plot([pair.estimate.mean], [i], "o", color=look.colour, markeredgecolor="white", markersize=6)
    if pairs:
        axes.axvline(0, color="#222222", linewidth=0.8)
        axes.set_yticks(range(len(pairs)), [_said(page.looks[p.b]) for p in reversed(pairs)])
        axes.set_ylim(-0.6, len(pairs) - 0.4)
        axes.set_xlabel(f"{_said(page.looks[pairs[0].a])} minus the other, {_metric(page)}")
    return bool(pairs)


def _latency(page: Page, axes: Axes) -> bool:
    waits = page.waits_ms()
    for look, values in waits.items():
        if values:
            axes.ecdf(values, color=look.colour, linestyle=DASHES[look.number % len(DASHES)], label=_said(look))
    if not any(waits.values()):
        return False
    deadline_ms = page.deadline_ms
    if deadline_ms is not None:
        axes.axvline(deadline_ms, color="#a04000", linewidth=0.8, linestyle="--")
        axes.annotate("deadline", (deadline_ms, 0.03), xytext=(-3, 0), textcoords="offset points", ha="right", fontsize=7, color="#a04000")
    axes.set_xscale("log")
    axes.set_xlabel("decision latency, ms")
    axes.set_ylabel("share of decisions")
    axes.legend(fontsize=7, handlelength=1.8)
    return True
