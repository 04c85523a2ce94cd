"""One evaluation of predictors from beginning to end: `test` measures, works out the tables and writes them."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from controllers.learning.start import check_least
from controllers.loader import KINDS, PolicyFactory, discover, load, load_all, raised
from controllers.vp.netllm import NetLLM
from controllers.weights import VP_SHIPPED
from netllm.ablations import trainings
from netllm.adapter import SHIPPED
from netllm.cards import set_results
from netllm.evaluation.shipped import measures_shipped
from netllm.evaluation.tables import roomy
from netllm.vp.ablate import CHANGES
from netllm.vp.suite import page
from netllm.vp.suite.ablations import NETLLM, Family, families, joined, seeds_deg
from netllm.vp.suite.analysis import AblationResult, Evaluation, Outcome, SettingResult, setting_result
from netllm.vp.suite.header import VpHeader, vp_header
from netllm.vp.suite.settings import NAMED, VpSetting, chosen
from testbed.errors import UserError
from testbed.sim.vp import decision_times_s, measure
from testbed.units import ms_from_s
from traces.frames import Frames
from traces.viewport_splits import TEST, find_split, load_split
from traces.windows import Windows, cut

DOCS = Path(__file__).resolve().parents[3] / "docs"
AXES = ("roll", "pitch", "yaw")


@dataclass(frozen=True)
class VpEvaluateSettings:
    """What to measure."""

    settings: tuple[str, ...] = tuple(NAMED)
    """Named ones (code, figures, longer, wu2017), or RULE:HISTORY:HORIZON in seconds (figures:1:2)."""
    policies: tuple[str, ...] = ()
    """Names, files (mine.py) or package.module:Class, with +option=value; default: all that the folder holds."""
    against: tuple[str, ...] = ("static", "mlp")
    """What all others are compared with, window by window; measured, too, if `policies` does not name it."""
    adapters: tuple[str, ...] = ()
    """Ablations, NAME=FOLDER or NAME=FOLDER,FOLDER (one per training seed), measured against the reference."""
    reference: str = NETLLM
    """What ablations are measured against: netllm or one of the adapters' names."""
    split: str = TEST
    """test, valid or train."""
    frames: Path | None = None
    """Folder of video frames (`traces/frames.py`), for policies that look at them."""
    timed: int = 200
    """Decisions of each policy that are timed, one by one, on the first setting."""
    seed: int = 0
    """Of policies that draw random numbers."""
    out: Path = Path("results/evaluate-vp")
    """Folder of the results; what an earlier evaluation left there is replaced."""
    write: bool = False
    """Also write docs/vp.md, and the results into the card of the adapter that ships; with `adapters` docs/vp_ablations.md instead."""


def test(settings: VpEvaluateSettings | None = None, console: Console | None = None) -> list[SettingResult]:
    """Measure predictors; prints tables and writes `windows.parquet` and `summary.json` into `settings.out`."""
    settings = settings or VpEvaluateSettings()
    console = console or roomy()
    check_least(settings, 0, ["seed", "timed"])
    if settings.write and settings.split != TEST:
        raise UserError(f"--write is for results on test viewings, seen --split {settings.split}, wanted one of the two")
    policies, ablated = _policies(settings), families(settings.adapters, settings.reference)
    with_card = settings.write and measures_shipped(policies, NetLLM)
    asked, left_out = _windows(settings, console)
    frames = Frames(settings.frames)
    results = [_measured(each, seen, policies, settings, frames) for each, seen in asked]
    further = () if settings.policies else _seeds(policies)
    seeds = [_measured(each, seen, further, settings, frames) for each, seen in asked] if further else []
    ablations = [_ablated(each, seen, ablated, settings, frames) for each, seen in asked] if ablated else []
    trained = trainings({each.name: each.adapters for each in ablated}, CHANGES)
    times_s = _timed(asked[0][1], policies, settings, frames)
    evaluation = Evaluation(tuple(results), left_out, tuple(seeds), tuple(ablations), tuple(trained), times_s)
    header = vp_header([*policies, *further], settings.split)
    _write(settings, evaluation, header, with_card)
    page.show(evaluation, console)
    console.print(f"results: {settings.out}", markup=False, soft_wrap=True)
    return results


def _windows(settings: VpEvaluateSettings, console: Console) -> tuple[list[tuple[VpSetting, Windows]], tuple[VpSetting, ...]]:
    """The windows of each setting. One on another data set is left out, with a note, where that can't be had (unless it is alone)."""
    found, left_out, asked = [], [], chosen(settings.settings)
    for each in asked:
        try:
            viewings, front_deg = load_split(each.split or settings.split), find_split(each.split or settings.split).front_deg
        except UserError as error:
            if not each.split or len(asked) == 1:
                raise
            console.print(f"setting {each.name} is left out: {error}", style="yellow", markup=False)
            left_out.append(each)
            continue
        found.append((each, cut(viewings, each.rule, each.history_s, each.horizon_s, front_deg)))
    return found, tuple(left_out)


def _timed(
    windows: Windows, policies: Sequence[PolicyFactory], settings: VpEvaluateSettings, frames: Frames
) -> dict[str, tuple[float, ...]]:
    """Seconds of single decisions, by policy; those that can't serve are left out."""
    times: dict[str, tuple[float, ...]] = {}
    for policy in policies if settings.timed else ():
        try:
            times[policy.name] = decision_times_s(policy(), windows, settings.timed, settings.seed, frames)
        except UserError:
            continue
    return times


def _policies(settings: VpEvaluateSettings) -> list[PolicyFactory]:
    given = load_all(settings.policies or tuple(discover(KINDS["vp"].folder)), "vp")
    known = {each.name for each in given}
    return [*given, *load_all([name for name in dict.fromkeys(settings.against) if name not in known], "vp")]


def _seeds(policies: Sequence[PolicyFactory]) -> list[PolicyFactory]:
    """Those with further weights `NAME-2.safetensors`, and one policy for each of these."""
    found = []
    for policy in policies:
        further = sorted(VP_SHIPPED.glob(f"{policy.name}-*.safetensors"))
        found += [policy, *(load(f"{policy.name}+weights={path.stem}", "vp") for path in further)] if further else []
    return found


def _measured(
    setting: VpSetting, windows: Windows, policies: Sequence[PolicyFactory], settings: VpEvaluateSettings, frames: Frames
) -> SettingResult:
    """Each policy on these windows. What refuses them with a `UserError` is told, not fatal; any other failure is."""
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    for policy in policies:
        try:
            outcomes[policy.name] = Outcome(policy, measure(policy(), windows, settings.seed, frames))
        except UserError as error:
            refused[policy.name] = " ".join(str(error).split())
        except Exception as error:  # whatever a user's policy may raise
            raise UserError(f"policy {policy.name!r} failed on setting {setting.name}: it {raised(error)}") from error
    if not outcomes:
        raise UserError(f"no policy can serve setting {setting.name}: {'; '.join(refused.values())}")
    return setting_result(setting, outcomes, refused, settings.against)


def _ablated(
    setting: VpSetting, windows: Windows, ablated: Sequence[Family], settings: VpEvaluateSettings, frames: Frames
) -> AblationResult:
    """Every member of every family on these windows, and each family against the reference."""
    errors = {each.name: [measure(member(), windows, settings.seed, frames) for member in each.members] for each in ablated}
    outcomes = {each.name: joined(each, errors[each.name]) for each in ablated}
    seeds = seeds_deg(errors)
    return AblationResult(setting_result(setting, outcomes, {}, (settings.reference,), seeds), seeds)


def _write(settings: VpEvaluateSettings, evaluation: Evaluation, header: VpHeader, with_card: bool) -> None:
    results = evaluation.results
    settings.out.mkdir(parents=True, exist_ok=True)
    scratch = settings.out / f".windows.{os.getpid()}"
    pl.concat([_frame(each) for each in results]).write_parquet(scratch, metadata={"netllm": json.dumps(asdict(header))})
    scratch.replace(settings.out / "windows.parquet")
    summary = {"version": 1, "task": "vp", "metric": "mae_deg", "header": asdict(header), "settings": [_summary(each) for each in results]}
    summary["decision_ms"] = {
        name: {"p50": ms_from_s(float(np.median(each))), "max": ms_from_s(max(each))} for name, each in evaluation.times_s.items()
    }
    summary["ablations"] = [{**_summary(each.result), "seeds_mae_deg": each.seeds_deg} for each in evaluation.ablations]
    (settings.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if settings.write and settings.adapters:
        (DOCS / "vp_ablations.md").write_text(page.ablations_document(evaluation, header), encoding="utf-8")
    elif settings.write:
        (DOCS / "vp.md").write_text(page.document(evaluation, header), encoding="utf-8")
        if with_card and any(NETLLM in each.outcomes for each in evaluation.results):
            set_results(SHIPPED / "vp", page.card(evaluation.results, NETLLM, header))


def _frame(result: SettingResult) -> pl.DataFrame:
    """A row for each policy and window."""
    frames = []
    for name, outcome in result.outcomes.items():
        errors = outcome.errors
        columns: dict[str, Any] = {
            "setting": result.setting.name,
            "policy": name,
            "video": errors.video,
            "user": errors.user,
            "at": errors.at,
        }
        columns |= {f"{axis}_mae_deg": errors.axis_mae_deg[:, i] for i, axis in enumerate(AXES)}
        columns |= {key: getattr(errors, key) for key in ("mae_deg", "rmse_deg", "great_circle_deg", "published_mae_deg")}
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def _summary(result: SettingResult) -> dict[str, Any]:
    setting = result.setting
    return {
        "name": setting.name,
        "title": setting.title,
        "rule": asdict(setting.rule),
        "history_s": setting.history_s,
        "horizon_s": setting.horizon_s,
        "windows": result.windows,
        "policies": {name: {**asdict(each.mae_deg), "components": each.parts_deg} for name, each in result.outcomes.items()},
        "refused": result.refused,
        "comparisons": [
            {**asdict(each), "verdict": each.verdict} for found in result.differences.values() for each in found
        ],
    }  # fmt: skip
