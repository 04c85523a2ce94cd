"""An evaluation of schedulers as tables: in the terminal, as a part of docs/cjs.md, in an adapter's model card."""

from collections.abc import Sequence

from rich.console import Console

from netllm.cjs.suite.analysis import Difference, Outcome, SettingResult
from netllm.cjs.suite.header import CjsHeader
from netllm.evaluation.tables import print_table, table
from testbed.drawing import words

START, END = "<!-- evaluation -->", "<!-- end of evaluation -->"
_MEASURES = ("policy", "mean JCT s", "median", "95th percentile", "busy", "decisions", "ms p50 / p99", "over published Decima")
_AGAINST = ("policy", "difference s", "95 % interval", "ratio", "95 % interval", "wins", "losses", "p (Holm)", "verdict")
_INTRO = """
Made by `scripts/evaluate cjs --write`. Every policy meets the same workloads; ± and intervals are 95 %, Student's t with the workload as
the unit of sampling. *Over published Decima* is the ratio of mean JCTs to what NetLLM's fork of spark-sched-sim scored on the same job
sequences with the published weights; the goal for NetLLM stands in brackets. Of differences, below 0 the first is better; p is of the
paired t test, adjusted by Holm over all comparisons with one reference; the verdict needs p < 0.05, the intervals are not adjusted. A
language model's sessions are played together, its time for a decision is that of one session alone.
"""


def section(results: Sequence[SettingResult], header: CjsHeader) -> str:
    """The part of docs/cjs.md between the marks."""
    parts = ["## How policies compare", _INTRO]
    for result in results:
        note = f" ({result.setting.note})" if result.setting.note else ""
        parts += [f"### {result.setting.name}: {result.setting.title}{note}, {_counted(result)}", "", *table(_MEASURES, _rows(result))]
        for reference in dict.fromkeys(each.b for each in result.differences):
            rows = [_against(each) for each in result.differences if each.b == reference]
            parts += ["", f"Against `{reference}`:", "", *table(_AGAINST, rows)]
        parts.append("")
    made = [("date, commit", f"{header.utc}, `{header.commit}`"), ("command", f"`{header.command}`"), ("rules", header.semantics)]
    made += [("hardware", header.hardware), ("weights, sha256", "; ".join(f"{name} `{sha[:12]}`" for name, sha in header.weights.items()))]
    return "\n".join([*parts, *table(("", ""), made)])


def card(results: Sequence[SettingResult], name: str, header: CjsHeader) -> str:
    """Results of the policy `name`, for the adapter's card."""
    rows = []
    for result in results:
        own = result.outcomes[name]
        goal = f" (goal {result.setting.goal})" if result.setting.goal else ""
        found = [each for each in result.differences if each.a == name]
        against = [f"{words.within(each.ratio)} of `{each.b}`: {each.verdict}" for each in found]
        over = words.within(own.over_decima) + goal if own.over_decima else words.DASH
        rows.append((result.setting.title, _counted(result), _mean(own), over, "; ".join(against)))
    headings = ("setting", "workloads", "mean JCT s", "over published Decima", "paired, as a ratio")
    said = f"Simulator, {header.semantics} rules; docs/cjs.md has the whole evaluation."
    return "\n".join(["## Results", said, "", *table(headings, rows)])


def _counted(result: SettingResult) -> str:
    seeds = result.setting.seeds
    run = list(seeds) == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    return f"seeds {seeds[0]} to {seeds[-1]}" if run else f"seeds {', '.join(map(str, seeds))}"


def _rows(result: SettingResult) -> list[tuple[str, ...]]:
    return [_row(each, result.setting.goal) for each in result.ranked()]


def _row(each: Outcome, goal: float | None) -> tuple[str, ...]:
    sessions = each.sessions
    timed = next((s for s in sessions if s.decision_ms_p50 is not None), None)
    took = f"{timed.decision_ms_p50:.2f} / {timed.decision_ms_p99:.2f}" if timed else words.DASH
    over = words.within(each.over_decima) if each.over_decima else words.DASH
    over += f" ({goal})" if goal and each.over_decima and each.policy.startswith("netllm") else ""

    def averaged(name: str, digits: int) -> str:
        return words.DASH if each.starved else f"{sum(getattr(session, name) for session in sessions) / len(sessions):.{digits}f}"

    figures = averaged("p50_jct_s", 1), averaged("p95_jct_s", 1), averaged("busy_share", 2), averaged("decisions", 0)
    return f"`{each.policy}`", _mean(each), *figures, took, over


def _mean(each: Outcome) -> str:
    return f"{each.starved} of {len(each.sessions)} starved" if each.mean_s is None else f"{each.mean_s:.1f}"


def _against(each: Difference) -> tuple[str, ...]:
    return (
        f"`{each.a}`",
        words.number(each.difference_s.mean, 2, True),
        words.interval(each.difference_s, 2),
        words.number(each.ratio.mean),
        words.interval(each.ratio, 3, False),
        f"{each.wins}",
        f"{each.losses}",
        words.p_value(each.p_holm),
        each.verdict,
    )


def show(results: Sequence[SettingResult], console: Console) -> None:
    """All tables."""
    for result in results:
        print_table(console, f"{result.setting.name}: {result.setting.title}, {_counted(result)}", _MEASURES, _rows(result))
        for reference in dict.fromkeys(each.b for each in result.differences):
            rows = [_against(each) for each in result.differences if each.b == reference]
            print_table(console, f"{result.setting.name}: against {reference}", _AGAINST, rows)
