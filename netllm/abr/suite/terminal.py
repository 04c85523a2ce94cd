"""An evaluation in the terminal: a table per setting."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from netllm.abr.suite import sentences
from netllm.abr.suite.analysis import Analysis, SettingResult
from netllm.abr.suite.header import Header
from testbed.drawing import words


def show(analysis: Analysis, header: Header, console: Console) -> None:
    """All settings, ablations, notes and the finding."""
    for result in analysis.settings:
        console.print(_table(analysis, result))
        if result.ablations:
            console.print(_ablations(analysis, result))
    for note in (sentences.QUICK,) if header.quick else ():
        console.print(note, style="yellow")
    for note in header.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(sentences.finding(analysis), markup=False)


def _table(analysis: Analysis, result: SettingResult) -> Table:
    title = f"{result.name}: {result.prepared.setting.title}, {sentences.sampled(result)}; offline optimum {result.optimum.mean():.3f}"
    main = analysis.named(analysis.main).label
    table = Table(title=escape(title), title_justify="left")
    table.add_column("policy")
    for heading in ("QoE per chunk", "of optimum", f"{escape(main)} minus it", "p (Holm)", "won, lost", "Mbit/s", "stall s", "change"):
        table.add_column(heading, justify="right")
    for each in sorted(result.compared(), key=lambda each: -(each.qoe.mean or 0.0)):
        name, parts = each.contender.name, each.parts
        found = result.against(name)
        against = (
            (words.within(found.estimate, 3, True), words.p_value(found.p_holm), f"{found.wins}, {found.losses}") if found else ("", "", "")
        )
        made_of = (f"{parts['bitrate_mbps']:.3f}", f"{parts['rebuffer_s']:.4f}", f"{parts['switch_mbps']:.3f}")
        table.add_row(escape(each.contender.label), words.within(each.qoe), words.percent(result.share(name)), *against, *made_of)
    for name, why in result.refused.items():
        table.add_row(escape(analysis.named(name).label), escape(why))
    return table


def _ablations(analysis: Analysis, result: SettingResult) -> Table:
    table = Table(title=escape(f"{result.name}: ablations against {analysis.reference}"), title_justify="left")
    table.add_column("variant")
    for heading in ("QoE per chunk", "training seeds, sd", "minus the reference", "p (Holm)"):
        table.add_column(heading, justify="right")
    for found in result.ablations:
        outcome = result.outcomes[found.a]
        seeds = f"{len(outcome.training.means)}, {words.number(outcome.training.sd)}"
        difference = words.within(found.estimate, 3, True)
        table.add_row(escape(outcome.contender.label), words.within(outcome.qoe), seeds, difference, words.p_value(found.p_holm))
    return table
