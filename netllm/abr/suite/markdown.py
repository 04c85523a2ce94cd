"""An evaluation in Markdown: the pages `docs/abr.md` and `docs/abr_ablations.md`, and the results in an adapter's model card."""

from pathlib import Path

from netllm import ablations
from netllm.abr.suite import sentences
from netllm.abr.suite.analysis import Analysis, Difference, SettingResult
from netllm.abr.suite.contenders import ABLATION, COMPARED
from netllm.abr.suite.header import Header
from netllm.cards import set_results
from netllm.evaluation.tables import table
from testbed.drawing import words

_INTRO = """
Made by `scripts/evaluate abr --write`; don't edit. Policies play whole sessions in the simulator ([sim.md](sim.md)), 48 chunks from each
trace's beginning, without noise. {qoe} Means are over traces; sampling and training seeds are averaged first. Intervals are Student's,
95 %, and take what was measured together for the unit of sampling: the traces of one household or ride are not independent.
The *offline optimum* is the best playback found with the whole trace known (dynamic programming through the same simulator), so a lower
bound of the true optimum. A policy that decides without that knowledge seldom equals it.
[abr_ablations.md](abr_ablations.md) says what the language model owes to its parts.
"""
_UNITS = "A unit is one household's FCC measurement box, a log one commute in Norway: traces of one were measured together."
_PAIRED = """
Paired on each trace. The strongest rule and the strongest learned policy of a setting are those with the highest means on these very
traces, chosen after the fact; where another rule is the strongest of the default setting, that one stands here, too. p is of the paired
t test; of {count} comparisons of {main} in this evaluation, those on one setting are adjusted by Holm. The verdict needs p < 0.05, the
intervals are not adjusted.
"""
_ABLATED = """
Made by `scripts/evaluate abr --adapters ... --write`; don't edit. Each variant is one training of the language model repeated with one
thing changed, measured as in [abr.md](abr.md). {qoe}

Differences are the variant minus `{reference}`, paired on each trace after averaging training seeds. Intervals are 95 % and say what other
traces and other training seeds would give: to the variance over traces, with what was measured together for the unit of sampling, they add
that of each one's mean over its k seeds, sd² / k (Welch and Satterthwaite's degrees of freedom; who has one seed takes the sd pooled over
those on the setting that have several). p is of the same t statistic, adjusted by Holm for the variants on one setting ({count} comparisons
in all). Where no variant has several seeds there is neither, and no verdict but "not clear": nobody knows how far seeds lie apart.
"""


def document(analysis: Analysis, header: Header) -> str:
    """How policies compare."""
    intro, main = _INTRO.format(qoe=sentences.QOE), analysis.named(analysis.main).label
    parts = ["# Adaptive bitrate streaming: how policies compare", intro, sentences.finding(analysis), "", *_notes(header)]
    parts += [
        "![QoE per setting and policy](abr.svg)",
        "",
        "## Settings",
        "",
        *_settings(analysis),
        "",
        "## QoE per chunk",
        "",
        *_means(analysis),
    ]
    parts += ["", "## Share of the offline optimum", "", *_shares(analysis), "", f"## {main} minus the policies that are hardest to beat"]
    parts += [_PAIRED.format(count=analysis.comparisons, main=main), *_forest(analysis)]
    for result in analysis.settings:
        parts += ["", f"## {result.name}: {result.prepared.setting.title}", "", *_policies(analysis, result)]
    parts += [*_seeds(analysis), "", "## How it was made", "", *_made(header)]
    return "\n".join(parts) + "\n"


def ablations_document(analysis: Analysis, header: Header) -> str:
    """What the language model owes to what: the evaluation's adapters against their reference."""
    said = _ABLATED.format(qoe=sentences.QOE, reference=analysis.reference, count=analysis.ablation_comparisons)
    parts = [
        "# Adaptive bitrate streaming: ablations of the language model",
        said,
        *_notes(header),
        *_ablations(analysis),
        *trainings(analysis),
    ]
    parts += ["", "## Settings", "", *_settings(analysis), "", "## How it was made", "", *_made(header)]
    return "\n".join(parts) + "\n"


def put_into_card(folder: Path, analysis: Analysis, header: Header) -> None:
    """The results in the adapter's model card. The main policy must be the adapter."""
    set_results(folder, card(analysis, header))


def card(analysis: Analysis, header: Header) -> str:
    """The results section of a model card."""
    main = analysis.named(analysis.main)
    parts = [
        "## Results",
        "",
        f"`{main.name}` is this adapter. {sentences.finding(analysis)}",
        "",
        *_notes(header),
        sentences.QOE + " Mean ± 95 % interval; its unit is what was measured together.",
        "",
        *_means(analysis),
    ]
    parts += [
        "",
        "Share of the offline optimum:",
        "",
        *_shares(analysis),
        "",
        f"{main.label} minus the policies that are hardest to beat, paired (p adjusted by Holm for the comparisons on one setting):",
    ]
    parts += ["", *_forest(analysis)]
    first = analysis.first()
    parts += [
        "",
        f"On {first.prepared.setting.title}:",
        "",
        *_policies(analysis, first),
        "",
        *_settings(analysis),
        "",
        *_made(header),
    ]
    return "\n".join(parts)


def _notes(header: Header) -> list[str]:
    said = [sentences.QUICK] if header.quick else []
    return [*(f"> {note}\n" for note in (*said, *header.notes))]


def _settings(analysis: Analysis) -> list[str]:
    rows = []
    for result in analysis.settings:
        setting = result.prepared.setting
        note = f" ({setting.note})" if setting.note else ""
        modelled = ", modelled, not measured" if result.prepared.source == "model" else ""
        traces = f"{setting.traces} (sha256 `{result.prepared.sha256[:16]}`{modelled})"
        rows.append((setting.name, traces, setting.video, sentences.sampled(result), (setting.unseen or "nothing but the traces") + note))
    return [*table(("setting", "traces", "video", "sampled", "unseen in training"), rows), "", _UNITS]


def _names(analysis: Analysis) -> list[str]:
    return [each.name for each in analysis.role(COMPARED)]


def _means(analysis: Analysis) -> list[str]:
    names = _names(analysis)
    rows = []
    for result in analysis.settings:
        best = max((each.qoe.mean or 0.0 for each in result.compared()), default=0.0)
        cells = []
        for name in names:
            outcome = result.outcomes.get(name)
            said = words.within(outcome.qoe) if outcome else "can't play"
            cells.append(f"**{said}**" if outcome and outcome.qoe.mean == best else said)
        rows.append((result.name, *cells, words.number(float(result.optimum.mean()))))
    return table(("setting", *names, "optimum"), rows)


def _shares(analysis: Analysis) -> list[str]:
    names = _names(analysis)
    rows = [
        (result.name, *(words.percent(result.share(name)) if name in result.outcomes else words.DASH for name in names))
        for result in analysis.settings
    ]
    return table(("setting", *names), rows)


_AGAINST = ("difference", "95 % interval", "p (Holm)", "won, lost, tied", "verdict")


def _against(found: Difference) -> tuple[str, ...]:
    counts = f"{found.wins}, {found.losses}, {found.ties}"
    mean = words.number(found.estimate.mean, 3, True)
    return mean, words.interval(found.estimate), words.p_value(found.p_holm), counts, found.verdict


def _forest(analysis: Analysis) -> list[str]:
    rows = [(each.result.name, f"`{each.difference.b}`", each.why, *_against(each.difference)) for each in analysis.hardest()]
    return table(("setting", "against", "which is the", *_AGAINST), rows)


def _policies(analysis: Analysis, result: SettingResult) -> list[str]:
    """Each policy with its components, and the main one minus it."""
    rows = []
    for each in sorted(result.compared(), key=lambda each: -(each.qoe.mean or 0.0)):
        name, parts = each.contender.name, each.parts
        found = result.against(name)
        against = _against(found) if found else (words.DASH,) * len(_AGAINST)
        made_of = (f"{parts['bitrate_mbps']:.3f}", f"{parts['rebuffer_s']:.4f}", f"{parts['switch_mbps']:.3f}")
        rows.append((f"`{name}`", words.within(each.qoe), *made_of, *against))
    label = analysis.named(analysis.main).label
    lines = table(("policy", "QoE", "Mbit/s", "stall s", "change Mbit/s", f"{label} minus it", *_AGAINST[1:]), rows)
    return [*lines, *(f"\n`{name}` can't play it: {why}" for name, why in result.refused.items())]


def _ablations(analysis: Analysis) -> list[str]:
    rows = []
    for result in analysis.settings:
        if result.ablations:
            rows.append((*_variant(result, analysis.reference), *[words.DASH] * 5))
            rows += [(*_variant(result, found.a), *_against(found)) for found in result.ablations]
    return table(("setting", "variant", "QoE", "training seeds, sd", *_AGAINST), rows)


def _variant(result: SettingResult, name: str) -> tuple[str, ...]:
    outcome = result.outcomes[name]
    return result.name, name, words.within(outcome.qoe), f"{len(outcome.training.means)}, {words.number(outcome.training.sd)}"


def trainings(analysis: Analysis) -> list[str]:
    """What each ablation changes, and the command that trains it."""
    ablated = {found.a for result in analysis.settings for found in result.ablations}
    if not ablated:
        return []
    from netllm.abr.ablate import CHANGES  # torch takes seconds: only who measures ablations pays

    measured = [analysis.named(analysis.reference), *(each for each in analysis.role(ABLATION) if each.name in ablated)]
    folders = {each.name: [path for member in each.members for path in member.weights[:1] if path.is_dir()] for each in measured}
    rows = ablations.trainings(folders, CHANGES)
    return ["", *table(ablations.TRAINED, rows)] if rows else []


def _seeds(analysis: Analysis) -> list[str]:
    rows = []
    for each in analysis.with_seeds():
        if each.role == ABLATION:
            continue
        for result in analysis.settings:
            if (outcome := result.outcomes.get(each.name)) is not None:
                spreads = [f"{len(spread.means)}, {words.number(spread.sd)}" for spread in (outcome.sampling, outcome.training)]
                rows.append((f"`{each.name}`", result.name, words.within(outcome.qoe), *spreads))
    if not rows:
        return []
    return ["", "## Seeds", "", *table(("policy", "setting", "QoE", "sampling seeds, sd", "training seeds, sd"), rows)]


def _made(header: Header) -> list[str]:
    weights = [f"{each['name']} {name} `{sha256[:12]}`" for each in header.policies for name, sha256 in each["weights"].items()]
    rows = [
        ("date, commit", f"{header.utc}, `{header.commit}`"),
        ("command", f"`{header.command}`"),
        ("hardware", header.hardware),
        ("versions", ", ".join(f"{name} {version}" for name, version in header.versions.items())),
        ("seeds", f"0 to {header.samples - 1} for policies that draw random numbers"),
        ("weights, sha256", "; ".join(weights) or "none"),
        ("CPU time, all sessions", f"{sum(header.seconds.values()) / 60:.1f} min"),
    ]
    return table(("", ""), rows)
