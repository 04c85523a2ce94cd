"""The report of an evaluation: one self-contained page, in the style of a run's report. It fetches nothing and works without scripts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import testbed
from netllm.abr.suite import sentences
from netllm.abr.suite.analysis import LEAST_FOR_SCALE, Analysis, Difference, SettingResult
from netllm.abr.suite.contenders import ABLATION, COMPARED, SEEDS
from netllm.abr.suite.drawings import Point, panel, shares
from netllm.abr.suite.header import Header
from netllm.abr.suite.settings import QUICK_TRACES
from testbed.drawing import figures, words
from testbed.drawing.figures import Look
from testbed.units import kbps_from_bps, ms_from_s

TEMPLATES = Path(__file__).with_name("templates")
STYLE = Path(testbed.__file__).with_name("templates")
_COLOUR = re.compile(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


@dataclass(frozen=True)
class Page:
    """An analysis, seen as what the template shows."""

    analysis: Analysis
    header: Header

    @cached_property
    def looks(self) -> dict[str, Look]:
        """By contender."""
        return {
            each.name: Look(i, each.name, each.label, each.colour if _COLOUR.fullmatch(each.colour) else "#777777", each.citation)
            for i, each in enumerate(self.analysis.contenders)
        }

    @property
    def title(self) -> str:
        """What the page is about."""
        return f"{self.analysis.named(self.analysis.main).label} on {len(self.analysis.settings)} settings of adaptive streaming"

    def panels(self) -> list[dict[str, Any]]:
        """QoE of all that are compared, a drawing per setting, best policy on top."""
        found = []
        for result in self.analysis.settings:
            ordered = sorted(result.compared(), key=lambda each: -(each.qoe.mean or 0.0))
            points = [Point(self.looks[each.contender.name], each.qoe) for each in ordered]
            drawn = panel(points, float(result.optimum.mean()), result.prepared.setting.title)
            found.append({"setting": result.prepared.setting, "sampled": sentences.sampled(result), "svg": Markup(drawn)})
        return found

    def shares(self) -> Markup:
        """Shares of the optimum over settings."""
        columns = []
        for result in self.analysis.settings:
            points = [Point(self.looks[each.contender.name], result.share(each.contender.name)) for each in result.compared()]
            columns.append((result.name, [point for point in points if point.estimate.mean is not None]))
        return Markup(shares(columns, "Share of the offline optimum"))

    def overview(self) -> list[dict[str, Any]]:
        """QoE of each setting in a row: the optimum, the main policy, the strongest rule there, and both of learned ones."""
        return [
            {"result": result, "cells": [self._cell(result, each.name) for each in self.analysis.role(COMPARED)]}
            for result in self.analysis.settings
        ]

    def _cell(self, result: SettingResult, name: str) -> dict[str, Any]:
        outcome = result.outcomes.get(name)
        best = max((each.qoe.mean or 0.0 for each in result.compared()), default=0.0)
        return {"outcome": outcome, "best": outcome is not None and outcome.qoe.mean == best, "refused": result.refused.get(name, "")}

    def forest(self) -> dict[str, Any] | None:
        """The main policy minus those that are hardest to beat."""
        rivals = self.analysis.hardest()
        drawn = self._strips([each.difference for each in rivals], [each.result for each in rivals], "b")
        return drawn and drawn | {"why": [each.why for each in rivals]}

    def differences(self, result: SettingResult) -> dict[str, Any] | None:
        """The main policy minus each other one on a setting."""
        return self._strips(result.differences, [result] * len(result.differences), "b")

    def ablations(self) -> dict[str, Any] | None:
        """Each variant minus the reference, on every setting."""
        rows = [(result, found) for result in self.analysis.settings for found in result.ablations]
        return self._strips([found for _, found in rows], [result for result, _ in rows], "a")

    def _strips(self, found: Sequence[Difference], results: Sequence[SettingResult], shown: str) -> dict[str, Any] | None:
        if not found:
            return None
        many = [each for each in found if each.estimate.n >= LEAST_FOR_SCALE] or list(found)
        scale = figures.strip_scale([each.estimate for each in many], [], include=(0.0,))
        rows = []
        for each, result in zip(found, results, strict=True):
            look = self.looks[getattr(each, shown)]
            drawn = figures.strip(look, each.estimate, (), scale, zero=True)
            rows.append({"look": look, "difference": each, "result": result, "strip": Markup(drawn)})
        return {"axis": Markup(figures.strip_axis(scale, "difference in QoE")), "rows": rows}

    def table(self, result: SettingResult) -> dict[str, Any]:
        """QoE, share of the optimum and components of all that are compared."""
        outcomes = result.compared()
        optimum = float(result.optimum.mean())
        scale = figures.strip_scale([each.qoe for each in outcomes], [], include=(optimum,))
        rows = []
        for each in sorted(outcomes, key=lambda each: -(each.qoe.mean or 0.0)):
            look = self.looks[each.contender.name]
            drawn = figures.strip(look, each.qoe, (), scale, upper=optimum)
            rows.append({"look": look, "outcome": each, "share": result.share(each.contender.name), "strip": Markup(drawn)})
        return {"axis": Markup(figures.strip_axis(scale, "QoE per chunk")), "rows": rows}

    def cdf(self, result: SettingResult) -> Markup:
        """Distributions over traces, the optimum's in grey."""
        series = {self.looks[each.contender.name]: each.by_unit.tolist() for each in result.compared()}
        upper = Look(len(self.looks), "optimum", "offline optimum", "#868e96", dashed=True)
        series[upper] = result.optimum.tolist()
        return Markup(figures.cdf(series, "QoE per chunk, mean of a trace", "traces", f"Distribution over traces, {result.name}"))

    def parts(self, result: SettingResult) -> Markup:
        """What QoE is made of."""
        rows = {self.looks[each.contender.name]: each.parts for each in result.compared()}
        return Markup(figures.components(rows, f"What QoE is made of, {result.name}"))

    def seeds(self) -> list[dict[str, Any]]:
        """A row per contender with several seeds and setting."""
        return [
            {"look": self.looks[each.name], "result": result, "outcome": result.outcomes[each.name]}
            for each in self.analysis.with_seeds()
            if each.role != ABLATION
            for result in self.analysis.settings
            if each.name in result.outcomes
        ]

    def variants(self) -> list[dict[str, Any]]:
        """The reference and the ablations, with their outcome and difference on each setting (None where they can't play)."""
        wanted = [self.analysis.reference, *(each.name for each in self.analysis.role(ABLATION) if each.name != self.analysis.reference)]
        return [
            {
                "look": self.looks[name],
                "seeds": len(self.analysis.named(name).members),
                "cells": [
                    {"outcome": result.outcomes.get(name), "difference": next((each for each in result.ablations if each.a == name), None)}
                    for result in self.analysis.settings
                ],
            }
            for name in wanted
        ]

    def refusals(self) -> list[tuple[str, str, str]]:
        """Policy, setting, reason."""
        return [(self.looks[name].label, each.name, why) for each in self.analysis.settings for name, why in each.refused.items()]

    def paths(self, result: SettingResult) -> str:
        """Video, ladder and path in words."""
        session = result.prepared.session
        rates = [f"{kbps_from_bps(bps):g}" for bps in session.video.bitrates_bps]
        path = f"{ms_from_s(session.rtt_s):g} ms, {session.buffer_cap_s:g} s"
        return f"{len(rates)} levels of {rates[0]} to {rates[-1]} kbit/s; {path}"


def render(analysis: Analysis, header: Header) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, STYLE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=words.number,
        within=words.within,
        interval=words.interval,
        percent=words.percent,
        p_value=words.p_value,
        sampled=sentences.sampled,
    )
    return environment.get_template("suite.html.j2").render(
        page=Page(analysis, header),
        analysis=analysis,
        header=header,
        sentences=sentences,
        seeds_role=SEEDS,
        quick_traces=QUICK_TRACES,
        css=Markup((STYLE / "report.css").read_text(encoding="utf-8")),
        js=Markup((STYLE / "report.js").read_text(encoding="utf-8")),
    )
