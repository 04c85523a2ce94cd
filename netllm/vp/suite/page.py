"""An evaluation of predictors as tables, in the terminal and in Markdown (docs/vp.md, docs/vp_ablations.md)."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from netllm.ablations import TRAINED
from netllm.evaluation.tables import print_table, table
from netllm.vp.suite.analysis import PUBLISHED, RMSE, SPHERE, AblationResult, Difference, Evaluation, Outcome, SettingResult
from netllm.vp.suite.header import VpHeader
from netllm.vp.suite.settings import VpSetting
from testbed.drawing import words
from testbed.units import ms_from_s
from traces.viewport_splits import find_split
from traces.viewports import ANGLES

_INTRO = """
Made by `scripts/evaluate vp --write`; don't edit. Recorded head movement of 84 viewers on 27 videos (Jin2022, 5 samples a second), NetLLM's
split: no viewer and no video of the test is trained on. At each window a policy is told a history of roll, pitch and yaw, and answers all
samples of the horizon. *MAE* is the mean over samples and the three axes of the error around the circle (0 to 180 degrees), averaged over
windows, with a 95 % interval that takes the viewer as the unit of sampling. Less is better.

*Great circle* is the mean angle between the true and the predicted line of sight. The data set's three angles are not a head's own: at
the front, `roll` is how high one looks and `pitch` how far one tilts the head (`traces/viewports.py`, tested against the data). *Published
rule* is MAE as NetLLM's code computes it: it takes off one turn at most, which makes extrapolations that pass 180 degrees look worse
(`testbed/vp_metrics.py`).

[vp_ablations.md](vp_ablations.md) says what the language model owes to its parts.
"""
_PAIRED = """
Differences are paired on each window; below zero the policy is better than the one it is compared with. Intervals over viewers and over
videos take those as the unit of sampling; p is over viewers, adjusted by Holm for the comparisons of one table, and the verdict needs
p < 0.05.
"""
_PUBLISHED = """
What NetLLM's figure shows for these windows (heights of its bars), and what the same methods score here by the published rule. The paper
does not say how its windows lie: that they are these is inferred from linear regression and velocity.
"""
_ABLATIONS = """
Made by `scripts/evaluate vp --adapters ... --write`; don't edit. `scripts/ablate vp`: one training, repeated with one thing changed, with
equal steps, batches and cost. Each row is the mean over its training seeds, window by window; *random* backbones have the sizes and scales
of the pre-trained one, and were never trained.

Intervals and p say what other training seeds would give, too: they add the variance of each row's mean over its k seeds, sd² / k, to that
over viewers or videos (Welch and Satterthwaite's degrees of freedom; who has one seed takes the sd pooled over the rows that have several).
Where no row has several seeds there is neither, and no verdict but "not clear".
"""
_THAN = {"better": "better than", "worse": "worse than", "not clear": "not clearly different from"}
_MEASURES = (*ANGLES, RMSE, SPHERE, PUBLISHED)
_AGAINST = ("minus it", "95 % interval over viewers", "over videos", "p (Holm)", "better on viewers, videos", "verdict")


def document(evaluation: Evaluation, header: VpHeader) -> str:
    """The whole page."""
    results, seeds = evaluation.results, evaluation.seeds
    parts = [
        "# Viewport prediction: how policies compare",
        _INTRO,
        *finding(results),
        "",
        "## Settings",
        "",
        *_settings(results),
        *(f"\n{_left_out(each)}" for each in evaluation.left_out),
        _PAIRED.rstrip(),
    ]
    for result in results:
        parts += ["", f"## {result.setting.name}: {result.setting.title}", "", *_errors(result)]
        parts += ["", result.setting.note] if result.setting.note else []
        for reference, found in result.differences.items():
            parts += ["", *_differences(result, found, result.outcomes[reference].policy.label)]
        if result.setting.published:
            parts += [_PUBLISHED, *_published(result)]
    if seeds:
        parts += ["", "## Training seeds", "", *_seeds(seeds)]
    if evaluation.times_s:
        parts += ["", "## Cost of a decision", "", *_times(evaluation.times_s)]
    return "\n".join([*parts, "", "## How it was made", "", *_made(header)]) + "\n"


def ablations_document(evaluation: Evaluation, header: VpHeader) -> str:
    """What the language model owes to what: the evaluation's adapters against their reference."""
    parts = ["# Viewport prediction: ablations of the language model", _ABLATIONS]
    for each in evaluation.ablations:
        parts += [f"## {each.result.setting.name}: {each.result.setting.title}", "", *_ablations(each), ""]
    parts += table(TRAINED, evaluation.trainings) if evaluation.trainings else []
    return "\n".join([*parts, "", "## How it was made", "", *_made(header)]) + "\n"


def card(results: Sequence[SettingResult], name: str, header: VpHeader) -> str:
    """Results of the policy `name`, for the adapter's card."""
    rows = []
    for result in results:
        if name not in result.outcomes:
            continue
        found = {reference: each for reference, all_of in result.differences.items() for each in all_of if each.a == name}
        against = [f"{words.number(each.over_users.mean, 2, True)} to `{key}`: {each.verdict}" for key, each in found.items()]
        rows.append((result.setting.title, words.within(result.outcomes[name].mae_deg, 2), "; ".join(against)))
    said = (
        f"{header.split.capitalize()} viewings, `{header.command}` at commit `{header.commit[:12]}`; docs/vp.md has the whole evaluation."
    )
    return "\n".join(["## Results", said, "", *table(("setting", "MAE, degrees", "paired, degrees"), rows)])


def finding(results: Sequence[SettingResult]) -> list[str]:
    """The result of each setting in a sentence, no stronger than the intervals allow."""
    return [f"- {_found(result)}" for result in results]


def _found(result: SettingResult) -> str:
    ranked = result.ranked()
    best, error = ranked[0], words.within(ranked[0].mae_deg, 2)
    equal = [each.policy.label for each in ranked if words.within(each.mae_deg, 2) == error]  # as far as the table shows
    said = f"{result.setting.title}: {' and '.join(equal)} {'have' if equal[1:] else 'has'} the least error, {error} degrees"
    for reference, found in result.differences.items():
        for each in found:
            if each.a == best.policy.name:
                by = f"{words.number(each.over_users.mean, 2, True)} ({words.interval(each.over_users, 2)})"
                said += f"; {_THAN[each.verdict]} {result.outcomes[reference].policy.label}: {by}"
    return f"{said}."


def _published(result: SettingResult) -> list[str]:
    shown = dict(result.setting.published)
    names = [*shown, *(each.policy.name for each in result.ranked() if each.policy.name not in shown)]
    here = {name: f"{each.parts_deg[PUBLISHED]:.2f}" for name, each in result.outcomes.items()}
    rows = [(f"`{name}`" if name in here else name, shown.get(name, words.DASH), here.get(name, words.DASH)) for name in names]
    return table(("method", "NetLLM's figure", "here, published rule"), rows)


def _settings(results: Sequence[SettingResult]) -> list[str]:
    rows = []
    for result in results:
        setting, rule = result.setting, result.setting.rule
        where = f"from sample {rule.head}, every {rule.step}, to {rule.tail} before the end"
        lengths = f"{setting.history_s:g} s", f"{setting.horizon_s:g} s"
        rows.append((setting.name, *lengths, where, f"{result.windows}", f"{result.users}", f"{result.videos}"))
    return table(("setting", "history", "horizon", "first future sample", "windows", "viewers", "videos"), rows)


def _left_out(setting: VpSetting) -> str:
    fetched = f"`scripts/fetch_data {find_split(setting.split).dataset}`"
    return f"`{setting.name}` ({setting.title}) was left out: its data were not there ({fetched} fetches them). {setting.note}"


def _row(each: Outcome) -> tuple[str, ...]:
    parts = each.parts_deg
    return f"`{each.policy.name}`", words.within(each.mae_deg, 2), *(f"{parts[name]:.2f}" for name in _MEASURES)


def _errors(result: SettingResult) -> list[str]:
    lines = table(("policy", "MAE", *_MEASURES), [_row(each) for each in result.ranked()])
    return [*lines, *(f"\n`{name}` can't serve it: {why}" for name, why in result.refused.items())]


def _against(found: Difference) -> tuple[str, ...]:
    better = f"{found.better_users} of {found.users}, {found.better_videos} of {found.videos}"
    intervals = words.interval(found.over_users, 2), words.interval(found.over_videos, 2)
    return words.number(found.over_users.mean, 2, True), *intervals, words.p_value(found.p_holm), better, found.verdict


def _differences(result: SettingResult, found: Sequence[Difference], label: str) -> list[str]:
    order = [each.policy.name for each in result.ranked()]
    rows = [(f"`{each.a}`", *_against(each)) for each in sorted(found, key=lambda each: order.index(each.a))]
    return table(("policy", f"it minus {label}", *_AGAINST[1:]), rows)


def _seeds(results: Sequence[SettingResult]) -> list[str]:
    rows = []
    for result in results:
        families: dict[str, list[float]] = {}
        for name, each in result.outcomes.items():
            families.setdefault(name.partition("+")[0], []).append(float(each.errors.mae_deg.mean()))
        for name, means in families.items():
            spread = words.number(float(np.std(means, ddof=1)), 3) if len(means) > 1 else words.DASH
            rows.append((f"`{name}`", result.setting.name, ", ".join(f"{mean:.2f}" for mean in means), f"{np.mean(means):.2f}", spread))
    return table(("policy", "setting", "MAE of each seed", "mean", "sd"), rows)


def _ablations(ablation: AblationResult) -> list[str]:
    ((reference, found),) = ablation.result.differences.items()
    by_name = {each.a: each for each in found}
    rows = []
    for name, each in ablation.result.outcomes.items():
        seeds = ", ".join(f"{mean:.2f}" for mean in ablation.seeds_deg[name])
        other = by_name.get(name)
        said = (f"`{name}`", f"{each.mae_deg.mean:.2f}", seeds)
        rows.append((*said, *(_against(other) if other else [words.DASH] * len(_AGAINST))))
    return table(("trained with", "MAE", "of each seed", f"it minus {reference}", *_AGAINST[1:]), rows)


def _times(times_s: Mapping[str, Sequence[float]]) -> list[str]:
    rows = []
    for name, times in sorted(times_s.items(), key=lambda each: float(np.median(each[1]))):
        ms = [ms_from_s(float(np.quantile(times, share))) for share in (0.5, 0.99)]
        rows.append((f"`{name}`", f"{ms[0]:.2f}", f"{ms[1]:.2f}", f"{len(times)}"))
    return table(("policy", "p50, ms", "p99, ms", "decisions, one by one"), rows)


def _made(header: VpHeader) -> list[str]:
    weights = [f"{name} `{sha256[:12]}`" for name, sha256 in header.weights.items()]
    rows = [
        ("date, commit", f"{header.utc}, `{header.commit}`"),
        ("command", f"`{header.command}`"),
        ("data", f"viewports/{header.split}, sha256 of the whole set `{header.data_sha256[:16]}`"),
        ("hardware", header.hardware),
        ("versions", ", ".join(f"{name} {version}" for name, version in header.versions.items())),
        ("weights, sha256", "; ".join(weights) or "none"),
    ]
    return table(("", ""), rows)


def show(evaluation: Evaluation, console: Console) -> None:
    """Errors and differences of each setting, ablations, times, and the finding."""
    for result in evaluation.results:
        counted = f"{result.windows} windows, {result.users} viewers, {result.videos} videos"
        print_table(console, f"{result.setting.name}: {result.setting.title}; {counted}; degrees", ("policy", "MAE", *_MEASURES), [
            _row(each) for each in result.ranked()
        ])  # fmt: skip
        for name, why in result.refused.items():
            console.print(f"{name} can't serve it: {why}", style="yellow", markup=False)
        for reference, found in result.differences.items():
            rows = [(each.a, *_against(each)) for each in found]
            print_table(console, f"{result.setting.name}: each policy minus {reference}", ("policy", *_AGAINST), rows)
    for ablation in evaluation.ablations:
        for reference, found in ablation.result.differences.items():
            rows = [(each.a, *_against(each)) for each in found]
            print_table(console, f"{ablation.result.setting.name}: each ablation minus {reference}", ("trained with", *_AGAINST), rows)
    for name, times in evaluation.times_s.items():
        console.print(f"{name}: a decision takes {ms_from_s(float(np.median(times))):.2f} ms (p50 of {len(times)})", markup=False)
    for sentence in finding(evaluation.results):
        console.print(sentence, markup=False)
