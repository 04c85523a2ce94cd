"""Figures of an evaluation for a paper, by matplotlib, with embedded TrueType fonts as publishers ask for."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netllm.abr.suite.analysis import Analysis, SettingResult, many_units
from netllm.abr.suite.contenders import ABLATION
from testbed.drawing.typography import COLUMN_INCHES, DASHES, STYLE, save

_PER_ROW = 3


def export(analysis: Analysis, folder: Path, form: str) -> list[Path]:
    """Write `qoe_by_setting`, `qoe_difference`, `qoe_cdf` and, where there are ablations, `ablations`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [overview(analysis, folder / f"qoe_by_setting.{form}")]
    plots: dict[str, Callable[[Analysis, Axes], bool]] = {"qoe_difference": _differences, "qoe_cdf": _cdf, "ablations": _ablations}
    with matplotlib.rc_context(STYLE):
        for stem, plot in plots.items():
            figure = Figure(figsize=(COLUMN_INCHES, 2.4), layout="constrained")
            axes = figure.add_subplot()
            if plot(analysis, axes):
                written.append(save(figure, folder / f"{stem}.{form}"))
    return written


def overview(analysis: Analysis, path: Path) -> Path:
    """A panel per setting: means with their intervals, the optimum as a dashed line."""
    results = analysis.settings
    per_row = min(_PER_ROW, len(results))
    lines = -(-len(results) // per_row)
    most = max(len(each.compared()) for each in results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * per_row + 0.6, lines * (0.16 * most + 0.75)), layout="constrained")
        panels = figure.subplots(lines, per_row, squeeze=False).ravel()
        for axes, result in zip(panels, results, strict=False):
            _panel(axes, result)
        for axes in panels[len(results) :]:
            axes.set_visible(False)
        for axes in panels[max(len(results) - per_row, 0) : len(results)]:
            axes.set_xlabel("QoE per chunk")
        return save(figure, path)


def _panel(axes: Axes, result: SettingResult) -> None:
    ordered = sorted(result.compared(), key=lambda each: each.qoe.mean or 0.0)
    for i, each in enumerate(ordered):
        if each.qoe.ci95:
            axes.plot(each.qoe.ci95, [i, i], color=each.contender.colour, linewidth=2.2, alpha=0.5, solid_capstyle="butt")
        if each.qoe.mean is not None:
            axes.plot([each.qoe.mean], [i], "o", color=each.contender.colour, markersize=4)
    axes.axvline(float(result.optimum.mean()), color="#a04000", linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(ordered)), [each.contender.label for each in ordered])
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.set_title(result.prepared.setting.title[-40:], fontsize=8)


def _differences(analysis: Analysis, axes: Axes) -> bool:
    """The main policy minus those that are hardest to beat. An interval over few units may leave the axis."""
    rivals = analysis.hardest()
    axes.get_figure().set_figheight(0.7 + 0.16 * len(rivals))  # type: ignore[union-attr]
    for i, rival in enumerate(reversed(rivals)):
        found, colour = rival.difference.estimate, analysis.named(rival.difference.b).colour
        if found.ci95:
            axes.plot(found.ci95, [i, i], color=colour, linewidth=2.2, alpha=0.6, solid_capstyle="butt")
        if found.mean is not None:
            axes.plot([found.mean], [i], "o", color=colour, markersize=3.5)
    ends = [end for rival in many_units(rivals) for end in rival.difference.estimate.ci95 or ()]
    if ends:
        margin = 0.06 * (max(0.0, *ends) - min(0.0, *ends))
        axes.set_xlim(min(0.0, *ends) - margin, max(0.0, *ends) + margin)
    axes.axvline(0, color="#222222", linewidth=0.8)
    names = [f"{each.result.name[-24:]} ({analysis.named(each.difference.b).label[:16]})" for each in reversed(rivals)]
    axes.set_yticks(range(len(rivals)), names)
    axes.set_title(f"{analysis.named(analysis.main).label} minus the other", fontsize=8)
    axes.set_xlabel("difference in QoE per chunk")
    return bool(rivals)


def _ablations(analysis: Analysis, axes: Axes) -> bool:
    """Each variant minus the reference, settings side by side."""
    variants = [each for each in analysis.role(ABLATION) if each.name != analysis.reference]
    if not variants:
        return False
    for k, variant in enumerate(variants):
        found = [next((d for d in result.ablations if d.a == variant.name), None) for result in analysis.settings]
        at = [i + (k - (len(variants) - 1) / 2) * 0.8 / len(variants) for i in range(len(found))]
        for x, each in zip(at, found, strict=True):
            if each is not None and each.estimate.ci95:
                axes.plot([x, x], each.estimate.ci95, color=variant.colour, linewidth=1.6, alpha=0.6)
        known = [(x, each.estimate.mean) for x, each in zip(at, found, strict=True) if each is not None and each.estimate.mean is not None]
        axes.plot([x for x, _ in known], [mean for _, mean in known], "o", color=variant.colour, markersize=3.5, label=variant.label)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.set_xticks(range(len(analysis.settings)), [each.name[-24:] for each in analysis.settings], rotation=30, ha="right")
    axes.set_ylabel(f"minus {analysis.reference}, QoE per chunk")
    axes.legend(fontsize=6)
    return True


def _cdf(analysis: Analysis, axes: Axes) -> bool:
    result = analysis.first()
    for i, each in enumerate(result.compared()):
        axes.ecdf(each.by_unit, color=each.contender.colour, linestyle=DASHES[i % len(DASHES)], label=each.contender.label)
    axes.ecdf(result.optimum, color="#868e96", linestyle=":", label="offline optimum")
    axes.set_xlabel(f"QoE per chunk, mean of a trace, {result.name}")
    axes.set_ylabel("share of traces")
    axes.legend(fontsize=6)
    return True
