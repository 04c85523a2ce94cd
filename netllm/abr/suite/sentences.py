"""Sentences for people, the same in the page, in Markdown and in the terminal."""

from netllm.abr.suite.analysis import Analysis, Difference, SettingResult
from netllm.abr.suite.contenders import LEARNED, RULE
from testbed.drawing.words import interval, number, within

QUICK = "A quick look at a few traces of each set: not a result."
QOE = "QoE of a chunk is its bitrate in Mbit/s, less 4.3 a second of stall, less the change of bitrate in Mbit/s; chunk 0 is not rated."


def sampled(result: SettingResult) -> str:
    """`100 traces of 45 groups`, or `3 files, 24 sessions`."""
    prepared = result.prepared
    units, sessions, groups = len(prepared.units), len(prepared.playbacks), len(set(prepared.measured))
    if sessions > units:
        return f"{units} files, {sessions} sessions"
    return f"{units} traces" + (f" of {groups} units or logs" if groups < units else "")


def finding(analysis: Analysis) -> str:
    """The result in a few sentences, no stronger than the intervals allow."""
    label = analysis.named(analysis.main).label
    first = analysis.first()
    if analysis.main not in first.outcomes:
        return f"{label} can't play {first.prepared.setting.title}: {first.refused[analysis.main]}."
    own, share = first.outcomes[analysis.main].qoe, first.share(analysis.main)
    said = f"{label} averages {within(own)} QoE per chunk on {first.prepared.setting.title}"
    said += f", {100 * share.mean:.0f} % of the offline optimum." if share.mean is not None else "."
    for kind, word in ((RULE, "strongest rule"), (LEARNED, "strongest learned policy")):
        found = first.against(first.strongest(kind, analysis.main))
        said += f" {_against(analysis, found, word)}" if found else ""
    return f"{said} {_elsewhere(analysis, first)}".strip()


def _against(analysis: Analysis, found: Difference, word: str) -> str:
    rival, mean = analysis.named(found.b).label, number(found.estimate.mean, 3, True)
    size = f"{mean} ({interval(found.estimate)})" if found.estimate.ci95 else mean
    if found.verdict == "not clear":
        return f"Its difference from the {word} there, {rival}, is not clear: {size}."
    return f"It is {found.verdict} than the {word} there, {rival}: {size}."


def _elsewhere(analysis: Analysis, first: SettingResult) -> str:
    """How the main policy fares against the strongest policies of each other setting."""
    said = []
    for kind, word in ((RULE, "rule"), (LEARNED, "learned policy")):
        found = {each.name: each.against(each.strongest(kind, analysis.main)) for each in analysis.settings if each is not first}
        verdicts = {name: each.verdict for name, each in found.items() if each is not None}
        parts = [
            f"{verdict} in {'all' if len(names) == len(verdicts) > 1 else ', '.join(names)}"
            for verdict in ("better", "worse", "not clear")
            if (names := [name for name, seen in verdicts.items() if seen == verdict])
        ]
        said += [f"Against the strongest {word} of each other setting it is {'; '.join(parts)}."] if parts else []
    return " ".join(said)
