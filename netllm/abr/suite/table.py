"""`summary.json`: every number that is shown, for other programs."""

from dataclasses import asdict
from typing import Any

from netllm.abr.suite.analysis import Analysis, Difference, Outcome, SeedSpread, SettingResult
from netllm.abr.suite.contenders import LEARNED, RULE
from netllm.abr.suite.header import Header
from testbed.stats import Estimate


def as_dict(analysis: Analysis, header: Header) -> dict[str, Any]:
    """The evaluation as plain data."""
    return {
        "header": asdict(header),
        "main": analysis.main,
        "reference": analysis.reference,
        "comparisons": analysis.comparisons,
        "ablation_comparisons": analysis.ablation_comparisons,
        "settings": {each.name: _setting(each, analysis.main) for each in analysis.settings},
    }


def _setting(result: SettingResult, main: str) -> dict[str, Any]:
    prepared = result.prepared
    return {
        "title": prepared.setting.title,
        "unseen": prepared.setting.unseen,
        "note": prepared.setting.note,
        "traces": len(prepared.units),
        "sessions": len(prepared.playbacks),
        "groups": len(set(prepared.measured)),
        "optimum": float(result.optimum.mean()),
        "strongest_rule": result.strongest(RULE, main),
        "strongest_learned": result.strongest(LEARNED, main),
        "policies": {name: _outcome(result, name, each) for name, each in result.outcomes.items()},
        "refused": result.refused,
        "differences": [_difference(each) for each in result.differences],
        "ablations": [_difference(each) for each in result.ablations],
    }


def _outcome(result: SettingResult, name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "role": outcome.contender.role,
        "kind": outcome.contender.kind,
        "qoe": _estimate(outcome.qoe),
        "share_of_optimum": _estimate(result.share(name)),
        **outcome.parts,
        "training_seeds": _spread(outcome.training),
        "sampling_seeds": _spread(outcome.sampling),
    }


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "a": found.a,
        "b": found.b,
        "difference": _estimate(found.estimate),
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "p": found.p,
        "p_holm": found.p_holm,
        "verdict": found.verdict,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "ci95": found.ci95, "n": found.n}


def _spread(found: SeedSpread) -> dict[str, Any]:
    return {"seeds": len(found.means), "sd": found.sd, "means": found.means}
