"""Numbers and sentences for people, the same in the page, in Markdown and in the terminal."""

from netllm.suite.analysis import Analysis, Difference, SettingResult
from testbed.stats import Estimate

DASH = "\N{EN DASH}"
QUICK = "A quick look at a few traces of each set: not a result."
QOE = "QoE of a chunk is its bitrate in Mbit/s, less 4.3 a second of stall, less the change of bitrate in Mbit/s; chunk 0 is not rated."


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """With a real minus sign; a dash for what is unknown."""
    if value is None:
        return DASH
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def within(estimate: Estimate, digits: int = 3, sign: bool = False) -> str:
    """`1.046 ± 0.131`; without an interval only the mean."""
    half = f" ± {estimate.half_width:.{digits}f}" if estimate.ci95 else ""
    return number(estimate.mean, digits, sign) + half


def interval(estimate: Estimate, digits: int = 3, sign: bool = True) -> str:
    """`+0.040 to +0.126`."""
    return f"{number(estimate.ci95[0], digits, sign)} to {number(estimate.ci95[1], digits, sign)}" if estimate.ci95 else DASH


def percent(estimate: Estimate) -> str:
    """`90.2 ± 1.4 %`."""
    if estimate.mean is None:
        return DASH
    half = f" ± {100 * estimate.half_width:.1f}" if estimate.ci95 else ""
    return f"{number(100 * estimate.mean, 1)}{half} %"


def p_value(p: float | None) -> str:
    """`0.012`, or `<0.001`."""
    if p is None:
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def sampled(result: SettingResult) -> str:
    """`100 traces of 45 groups`, or `3 files, 24 sessions`."""
    prepared = result.prepared
    units, sessions, groups = len(prepared.units), len(prepared.playbacks), prepared.groups
    if sessions > units:
        return f"{units} files, {sessions} sessions"
    return f"{units} traces" + (f" of {groups} units or logs" if groups < units else "")


def which(analysis: Analysis, result: SettingResult, found: Difference) -> str:
    """The rule of a difference, and why it was taken when it is not the strongest of the setting."""
    there = found.b == result.strongest_rule(analysis.main)
    return f"`{found.b}`" if there else f"`{found.b}` (strongest on {analysis.first().name})"


def finding(analysis: Analysis) -> str:
    """The result in a few sentences, no stronger than the intervals allow."""
    label = analysis.named(analysis.main).label
    first = analysis.first()
    if analysis.main not in first.outcomes:
        return f"{label} can't play {first.prepared.setting.title}: {first.refused[analysis.main]}."
    own, share = first.outcomes[analysis.main].qoe, first.share(analysis.main)
    said = f"{label} averages {within(own)} QoE per chunk on {first.prepared.setting.title}"
    said += f", {100 * share.mean:.0f} % of the offline optimum." if share.mean is not None else "."
    rule = first.against(first.strongest_rule(analysis.main))
    if rule is not None:
        said += f" {_against(analysis, rule)}"
    return f"{said} {_elsewhere(analysis, first)}".strip()


def _against(analysis: Analysis, found: Difference) -> str:
    rival = analysis.named(found.b).label
    size = (
        f"{number(found.estimate.mean, 3, True)} ({interval(found.estimate)})"
        if found.estimate.ci95
        else number(found.estimate.mean, 3, True)
    )
    if found.verdict == "not clear":
        return f"Its difference from the strongest rule there, {rival}, is not clear: {size}."
    return f"It is {found.verdict} than the strongest rule there, {rival}: {size}."


def _elsewhere(analysis: Analysis, first: SettingResult) -> str:
    """How the main policy fares against the strongest rule of each other setting."""
    found = {each.name: each.against(each.strongest_rule(analysis.main)) for each in analysis.settings if each is not first}
    verdicts = {name: each.verdict for name, each in found.items() if each is not None}
    if not verdicts:
        return ""
    parts = [
        f"{word} in {', '.join(names)}"
        for word in ("better", "worse", "not clear")
        if (names := [n for n, v in verdicts.items() if v == word])
    ]
    return f"Against the strongest rule of each other setting it is {'; '.join(parts)}."
