"""The table that a run prints at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.drawing.words import p_value, sample

_WIDE = 100
"""Columns from which the metric's components fit, too."""
MODELLED = "modelled, not measured"
"""What every table and report says of traces that were drawn from a model."""
OPTIMUM = "optimum: the offline one, which knows the whole trace, simulated; share: mean over the optimum's on the same traces"
"""What the last row and the column on the offline optimum are."""
_METRICS = {"qoe_lin": "QoE", "avg_jct_s": "JCT, s", "mae_deg": "MAE, degrees"}
_COMPONENTS = {
    "bitrate_mbps": ("bitrate\nMbit/s", 2),
    "rebuffer_s": ("stall\ns/chunk", 3),
    "switch_mbps": ("change\nMbit/s", 3),
    "startup_s": ("start-up\ns", 2),
    "quality_mbps": ("in view\nMbit/s", 2),
    "blank_share": ("blank\nshare", 3),
    "wasted_share": ("unseen\nbytes", 3),
    "mae_deg": ("MAE\ndegrees", 2),
    "p50_jct_s": ("JCT p50\ns", 1),
    "p95_jct_s": ("JCT p95\ns", 1),
    "makespan_s": ("makespan\ns", 0),
    "busy_share": ("busy\nshare", 3),
    "shuffled_mb": ("shuffled\nMB", 1),
}


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a summary (the content of `summary.json`): policies, differences, what to know before believing them."""
    console = console or Console()
    console.print(_policies(summary, console.width >= _WIDE))
    if summary["optimum"]:
        console.print(f"[dim]{OPTIMUM}[/]", highlight=False, soft_wrap=True)
    over = sample(summary["task"], summary["metric"])
    for pair in summary["comparisons"]:
        console.print(f"{escape(pair['a'])} - {escape(pair['b'])}: {_difference(pair, over)}", highlight=False, soft_wrap=True)
    verdict, fidelity = summary["fidelity"]["verdict"], summary["fidelity"]
    if verdict:
        colour = "green" if verdict == "pass" else "red"
        lateness = "" if fidelity["lateness_ms_p99"] is None else f", worst p99 lateness {fidelity['lateness_ms_p99']:.2f} ms"
        losses = "" if fidelity["uncounted_losses"] is None else f", {fidelity['uncounted_losses']} uncounted losses"
        repeated = f", {_trials(fidelity['repeated'])} played again" if fidelity["repeated"] else ""
        host = "" if fidelity["steal_pct"] is None else f", {fidelity['steal_pct']:.1f} % of CPU time stolen"
        console.print(f"link fidelity: [{colour}]{verdict}[/]{lateness}{losses}{host}{repeated}", highlight=False, soft_wrap=True)
    for note in summary["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)


def _policies(summary: Mapping[str, Any], wide: bool) -> Table:
    trace = summary["trace"]
    where = "/".join(str(part) for part in (trace["name"], trace["split"]) if part) or "no emulated link"
    modelled = f", {MODELLED}" if "model" in str(trace["source"]).split("+") else ""
    title = f"{summary['task']} over {escape(where)}{modelled}, {summary['mode']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", overflow="fold", min_width=8)
    metric = _METRICS.get(summary["metric"], summary["metric"])
    shown = list(dict.fromkeys(c for row in summary["policies"].values() for c in row["components"] if wide))
    parts = [_COMPONENTS.get(c, (c, 2))[0] for c in shown]
    share = ["share"] if summary["optimum"] else []
    for heading in (metric, *share, "95 % interval", *parts, "decision\np50, p99 ms", "fallbacks", "valid\ntrials"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in summary["policies"].items():
        table.add_row(escape(name), *_cells(row, shown, bool(share)))
    if summary["optimum"]:
        table.add_row("[dim]optimum[/]", *_optimum_cells(summary["optimum"], shown))
    return table


def _optimum_cells(optimum: Mapping[str, Any], components: Sequence[str]) -> list[str]:
    parts = [_number(optimum["components"].get(c), _COMPONENTS.get(c, (c, 2))[1]) for c in components]
    return [f"[dim]{cell}[/]" for cell in (_number(optimum["mean"]), "", _interval(optimum["ci95"]), *parts, "", "", "")]


def _cells(row: Mapping[str, Any], components: Sequence[str], share: bool) -> list[str]:
    valid = row["trials"] - row["invalid"]
    trials = f"[red]{valid} of {row['trials']}[/]" if row["invalid"] else str(valid)
    fallbacks = f"[yellow]{row['fallbacks']}[/]" if row["fallbacks"] else "0"
    decision = row["decision_ms"]
    parts = [_number(row["components"].get(c), _COMPONENTS.get(c, (c, 2))[1]) for c in components]
    waits = "-" if decision["p50"] is None else f"{_ms(decision['p50'])}, {_ms(decision['p99'])}"
    of_optimum = [_percent(row["share_of_optimum"])] if share else []
    return [f"[bold]{_number(row['mean'])}[/]", *of_optimum, _interval(row["ci95"]), *parts, waits, fallbacks, trials]


def _difference(pair: Mapping[str, Any], over: str) -> str:
    spread = f", 95 % interval {_interval(pair['ci95'], 3)}, p {p_value(pair['p_holm'])} (Holm)" if pair["ci95"] else ""
    return f"{pair['mean_difference']:+.3f}{spread}, better on {pair['wins']} and worse on {pair['losses']} of {pair['traces']} {over}s"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _interval(ci95: Sequence[float] | None, digits: int = 2) -> str:
    return f"{ci95[0]:.{digits}f} to {ci95[1]:.{digits}f}" if ci95 else "-"


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
