"""`report.html`: one self-contained page about a run. It fetches nothing; figures are inline SVG, and the page works without scripts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from controllers.loader import COLOUR
from testbed import stats
from testbed.drawing import figures
from testbed.drawing.figures import Look
from testbed.drawing.words import p_value, sample
from testbed.events import Run
from testbed.records import AnyTrialRow, OptimumRow, TrialRow
from testbed.report import links
from testbed.report.links import LinkPage
from testbed.report.schedule import SchedulePage
from testbed.report.sessions import groups, selection_sentence
from testbed.report.settings import asked
from testbed.report.summary import (
    AGREEMENT_LEAST,
    AGREEMENT_SHARE,
    COMPONENTS,
    agrees,
    comparisons,
    failures,
    gaps_to_optimum,
    main_policy,
    modelled,
    policy_names,
)
from testbed.report.viewing import ViewingPage
from testbed.results import as_trace
from testbed.terminal import MODELLED
from testbed.units import mbps_from_bps, ms_from_s

TEMPLATES = Path(__file__).parents[1] / "templates"
TITLES = {"abr": "Adaptive bitrate streaming", "cjs": "Cluster job scheduling", "vp": "Viewport prediction"}
OPTIMUM = "Offline optimum"
METRICS = {"qoe_lin": "QoE", "avg_jct_s": "JCT", "viewport_qoe": "QoE", "mae_deg": "MAE"}
LEAST_TRIALS_FOR_CDF = 5
"""With fewer trials a policy, the distribution shown is that of chunks."""
LEAST_TRACES_FOR_SCATTER = 4
MOST_TWINS = 40
"""Trials listed beside their twins, those farthest apart first."""


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number for people: real minus sign, a dash for what is unknown."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """A share for people, in per cent without the sign."""
    return number(None if share is None else 100 * share, digits)


def interval(ci95: Sequence[float] | None, digits: int = 2, sign: bool = False) -> str:
    """An interval for people."""
    return f"{number(ci95[0], digits, sign)} to {number(ci95[1], digits, sign)}" if ci95 else "\N{EN DASH}"


def brief(value: float | None) -> str:
    """A positive number with about three digits."""
    digits = next((d for least, d in ((100, 0), (10, 1), (0.1, 2)) if value is not None and value >= least), 3)
    return number(value, digits)


def plain(value: Any) -> str:
    """A fact about the host for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def count(n: int, what: str) -> str:
    """`1 fallback`, `2 fallbacks`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Page:
    """A run and its summary, seen as what the template shows."""

    run: Run
    summary: Mapping[str, Any]

    @cached_property
    def looks(self) -> dict[str, Look]:
        """By policy name, in the order asked for."""
        described = self.run.header.policies
        return {name: _look(i, name, described.get(name, {})) for i, name in enumerate(policy_names(self.run))}

    @cached_property
    def upper(self) -> Look | None:
        """How the offline optimum looks; None in a run without."""
        return Look(len(self.looks), "", OPTIMUM, "#8a857c", dashed=True) if self.summary["optimum"] else None

    @cached_property
    def shown(self) -> list[Look]:
        """All that figures draw: the policies, then the offline optimum."""
        return [*self.looks.values(), *([self.upper] if self.upper else [])]

    @cached_property
    def optima(self) -> list[OptimumRow]:
        """The offline optimum of each trace and offset that has one."""
        return [row for row in self.run.optima.values() if row.qoe is not None]

    @property
    def optimal_qoe(self) -> list[float]:
        """What those score."""
        return [row.qoe for row in self.optima if row.qoe is not None]

    @cached_property
    def trials(self) -> dict[str, list[AnyTrialRow]]:
        """Valid trials by policy; none of one that failed."""
        failed = {name for name in self.looks if failures(self.run, name)}
        return {name: [t for t in self.run.trials if t.policy == name and t.valid and name not in failed] for name in self.looks}

    @cached_property
    def pairs(self) -> list[stats.Comparison]:
        """The main policy against each other."""
        return comparisons(self.run)

    @cached_property
    def same_traces(self) -> bool:
        """Whether every policy has valid trials on the same traces; else only paired differences compare them fairly."""
        sets = [set(stats.per_trace(trials)) for trials in self.trials.values()]
        return all(s == sets[0] for s in sets)

    @property
    def sample(self) -> str:
        """What means are taken over, for people."""
        return sample(self.run.header.task, self.run.header.metric)

    @cached_property
    def schedules(self) -> SchedulePage | None:
        """Of a run that schedules."""
        return SchedulePage(self.run, self.looks, self.trials) if self.run.header.task == "cjs" else None

    @cached_property
    def viewings(self) -> ViewingPage | None:
        """Of a run that predicts viewports."""
        return ViewingPage(self.run, self.looks, self.trials) if self.run.header.task == "vp" else None

    @property
    def metric(self) -> str:
        """Name of the metric for people."""
        return METRICS.get(self.run.header.metric, self.run.header.metric)

    @property
    def modelled(self) -> bool:
        """Whether the traces were drawn from a model."""
        return modelled(self.run)

    @property
    def trace_set(self) -> str:
        """The trace set's name with its split."""
        trace = self.run.header.trace
        unnamed = {"cjs": "no emulated link", "vp": "recorded head movement"}.get(self.run.header.task, "unnamed traces")
        return "/".join(str(part) for part in (trace.get("name"), trace.get("split")) if part) or unnamed

    @property
    def title(self) -> str:
        """What the page is about."""
        return f"{TITLES.get(self.run.header.task, self.run.header.task)} over {self.trace_set}"

    def finding(self) -> str:
        """The result in one or two sentences, no stronger than the intervals allow."""
        main = main_policy(list(self.looks))
        row = self.summary["policies"].get(main, {}) if main else {}
        if not main or not any(self.trials.values()):
            return "No valid trial: there is nothing to compare."
        if row["failed"]:
            return f"{self.looks[main].label} failed in {row['failed']} of {row['trials']} trials: there is nothing to compare it by."
        if row.get("mean") is None:
            return f"{self.looks[main].label} has no valid trial: there is nothing to compare it by."
        label, unit = self.looks[main].label, f"{self.metric} {self.run.header.unit}"
        found = stats.over_traces(stats.per_trace(self.trials[main]))
        of = f" of {found.clusters} households or rides" if found.clusters else ""
        over = f"over {found.n} {self.sample}s{of}" if found.n > 1 else f"on one {self.sample}"
        spread = f" (95 % interval {interval(row['ci95'])})" if row["ci95"] else ""
        text = f"{label} averages {number(row['mean'])} {unit}{spread} {over}."
        return f"{text} {self._against(label, self.pairs[0])}" if self.pairs else text

    def _against(self, label: str, pair: stats.Comparison) -> str:
        rival, mean, ci95 = self.looks[pair.b].label, pair.estimate.mean, pair.estimate.ci95
        others = f"{rival}, on these {self.sample}s the strongest of the others," if len(self.pairs) > 1 else rival
        if mean is None or ci95 is None:
            few = f"one {self.sample} is" if pair.estimate.n == 1 else f"{pair.estimate.n} {self.sample}s are"
            return f"It differs from {others} by {number(mean, 2, True)}; {few} too few for an interval."
        traces = "" if self.same_traces else f", on the {pair.estimate.n} {self.sample}s where both are valid"
        if ci95[0] <= 0 <= ci95[1]:
            return f"Its difference from {others} is not clear: {number(mean, 3, True)} ({interval(ci95, 3, True)}){traces}."
        better = (mean > 0) != (self.run.header.metric in stats.LOWER_IS_BETTER)
        size = interval(sorted(map(abs, ci95)), 3)
        return f"It is {'better' if better else 'worse'} than {others} by {number(abs(mean), 3)} ({size}){traces}."

    def facts(self) -> list[dict[str, str]]:
        """The tiles on top: is this run to be trusted?"""
        policies, fidelity = self.summary["policies"].values(), self.summary["fidelity"]
        trials, invalid = sum(p["trials"] for p in policies), sum(p["invalid"] for p in policies)
        decisions, fallbacks = sum(p["decisions"] for p in policies), sum(p["fallbacks"] for p in policies)
        tiles = [_fact("Valid trials", f"{trials - invalid} of {trials}", "bad" if invalid else "good")]
        if fidelity["verdict"]:
            tiles.append(_fact("Link fidelity", fidelity["verdict"], "good" if fidelity["verdict"] == "pass" else "bad"))
        if fidelity["repeated"]:
            tiles.append(_fact("Played again", count(fidelity["repeated"], "trial"), "warn"))
        if self.run.header.mode != "simulation":
            tiles.append(_fact("Fallbacks", f"{fallbacks} of {decisions} decisions", "warn" if fallbacks else "good"))
        twins = [p["simulation"]["within"] for p in policies if p["simulation"]]
        if twins:
            tiles.append(_fact("Agree with simulation", f"{sum(twins)} of {len(twins)} policies", "good" if all(twins) else "warn"))
        if self.modelled:
            tiles.append(_fact("Traces", MODELLED, "warn"))
        if self.run.end is None or self.run.end.reason != "complete":
            tiles.append(_fact("Run", "cut short" if self.run.end is None else self.run.end.reason, "bad"))
        return tiles

    def settings(self) -> list[tuple[str, str]]:
        """What was run, for the list on top."""
        header, trace = self.run.header, self.run.header.trace
        source = {"store": "measured, from the store", "path": "the user's own files", "model": MODELLED}
        parts = str(trace["source"]).split("+") if trace.get("source") else []  # a simulator that reads no traces has none
        counted = ", ".join(filter(None, (str(trace.get("traces", "unknown")), " + ".join(source.get(part, part) for part in parts))))
        rows = [
            ("Mode", header.mode),
            ("Trace set", self.trace_set),
            (f"{self.sample.capitalize()}s", counted),
        ]
        rows += asked(header)
        rows.append(("Started", header.started_utc.replace("T", " ").replace("+00:00", " UTC")))
        rows.append(("Git commit", header.commit or "unknown"))
        for key, label in (("source_sha256", "Own policies, sha256"), ("options_sha256", "Given to policies, sha256")):
            if told := [f"{name}: {_short(hashes)}" for name, each in header.policies.items() if (hashes := each.get(key))]:
                rows.append((label, "; ".join(told)))
        return rows

    def table(self) -> dict[str, Any]:
        """The QoE table: a strip and the numbers for each policy."""
        values = {name: list(stats.per_trace(trials).values()) for name, trials in self.trials.items()}
        estimates = {name: _estimate(self.summary["policies"][name], len(values[name])) for name in self.looks}
        best_known = self.summary["optimum"]
        bound = best_known["mean"] if best_known else None
        scale = figures.strip_scale(list(estimates.values()), list(values.values()), include=() if bound is None else (bound,))
        rows = []
        for name, look in self.looks.items():
            strip = figures.strip(look, estimates[name], values[name], scale, upper=bound)
            rows.append({"look": look, "strip": Markup(strip), "traces": len(values[name]), **self.summary["policies"][name]})
        best = stats.strongest({name: e.mean for name, e in estimates.items()}, self.run.header.metric)
        axis = figures.strip_axis(scale, f"{self.metric} {self.run.header.unit}")
        optimum = None
        if self.upper and best_known:
            strip = figures.strip(self.upper, _estimate(best_known, best_known["n"]), self.optimal_qoe, scale, upper=bound)
            optimum = {"look": self.upper, "strip": Markup(strip), **best_known}
        components = COMPONENTS.get(self.run.header.task, ())
        return {"axis": Markup(axis), "rows": rows, "best": best, "components": components, "optimum": optimum}

    def gaps(self) -> dict[str, Any] | None:
        """How far each policy stays below the offline optimum; None in a run without."""
        gaps = {name: gaps_to_optimum(trials) for name, trials in self.trials.items()}
        if self.upper is None or not any(gaps.values()):
            return None
        found = {name: list(each.values()) for name, each in gaps.items()}
        estimates = {name: stats.over_traces(each) for name, each in gaps.items()}
        scale = figures.strip_scale(list(estimates.values()), list(found.values()), include=(0.0,), width=figures.WIDE_STRIP_WIDTH)
        rows = [
            {
                "look": look,
                "strip": Markup(figures.strip(look, estimates[name], found[name], scale, zero=True)),
                "share": self.summary["policies"][name]["share_of_optimum"],
                "gap": self.summary["policies"][name]["gap_to_optimum"],
            }
            for name, look in self.looks.items()
            if found[name]
        ]
        axis = figures.strip_axis(scale, "gap")
        return {"axis": Markup(axis), "rows": rows, "grid_s": self.summary["optimum"]["grid_s"]}

    def differences(self) -> dict[str, Any] | None:
        """The forest of paired differences; None when there is nothing to compare."""
        if not self.pairs:
            return None
        values = [list(p.differences.values()) for p in self.pairs]
        scale = figures.strip_scale([p.estimate for p in self.pairs], values, include=(0.0,), width=figures.WIDE_STRIP_WIDTH)
        rows = []
        for pair, numbers in zip(self.pairs, self.summary["comparisons"], strict=True):
            look = self.looks[pair.b]
            strip = figures.strip(look, pair.estimate, list(pair.differences.values()), scale, zero=True)
            rows.append({"look": look, "pair": pair, "p": p_value(numbers["p_holm"]), "strip": Markup(strip)})
        axis = Markup(figures.strip_axis(scale, "difference"))
        better = "left" if self.run.header.metric in stats.LOWER_IS_BETTER else "right"
        return {"main": self.looks[self.pairs[0].a], "rows": rows, "axis": axis, "better": better}

    def distribution(self) -> dict[str, Any]:
        """CDF per trial, or per chunk where there are few trials; of jobs in a run that schedules."""
        if self.schedules:
            return {"of": "jobs", "svg": self.schedules.jct_cdf()}
        if self.viewings:
            return self.viewings.distribution()
        if max((len(t) for t in self.trials.values()), default=0) >= LEAST_TRIALS_FOR_CDF:
            series = {self.looks[n]: [t.value for t in trials if t.value is not None] for n, trials in self.trials.items()}
            series |= {self.upper: self.optimal_qoe} if self.upper else {}
            label = f"{self.metric} {self.run.header.unit}, mean of a trial"
            return {"of": "trials", "svg": Markup(figures.cdf(series, label, "trials", "Distribution over trials"))}
        chunks = self.run.tables["chunks"].filter(pl.col("index") > 0)
        series = {
            self.looks[n]: chunks.filter(pl.col("trial_id").is_in([t.trial_id for t in trials]))["qoe"].to_list()
            for n, trials in self.trials.items()
        }
        series |= {self.upper: [qoe for row in self.optima for qoe in row.chunk_qoe[1:]]} if self.upper else {}
        label = f"{self.metric} of a chunk, first chunks left out"
        return {"of": "chunks", "svg": Markup(figures.cdf(series, label, "chunks", "Distribution over chunks"))}

    def parts(self) -> Markup:
        """What QoE is made of."""
        if self.run.header.task != "abr":
            return Markup()
        rows = {look: self.summary["policies"][name]["components"] for name, look in self.looks.items()}
        rows |= {self.upper: self.summary["optimum"]["components"]} if self.upper else {}
        return Markup(figures.components(rows, "What QoE is made of"))

    def scatters(self) -> list[dict[str, Any]]:
        """Trace by trace: the main policy against the strongest other, and each policy against the trace's mean rate."""
        if not self.pairs or self.pairs[0].estimate.n < LEAST_TRACES_FOR_SCATTER:
            return []
        pair = self.pairs[0]
        of_a, of_b = (stats.per_trace(self.trials[name]) for name in (pair.a, pair.b))
        a, b = self.looks[pair.a], self.looks[pair.b]
        duel = {a: [(of_b[key], of_a[key], key[0]) for key in pair.differences]}
        title = f"{a.label} against {b.label}"
        drawn = figures.scatter(duel, f"{self.metric} of {b.label}", f"{self.metric} of {a.label}", title, diagonal=True)
        found = [{"title": title, "text": f"One point a trace; above the line {a.label} has more.", "svg": Markup(drawn)}]
        rates = {sha: mbps_from_bps(as_trace(t).mean_rate_bps) for sha, t in self.run.traces.items()}
        cloud = {
            look: [(rates[key[1]], q, key[0]) for key, q in stats.per_trace(self.trials[name]).items() if key[1] in rates]
            for name, look in self.looks.items()
        }
        if any(cloud.values()):
            points = [(rates[row.trace_sha256], row.qoe or 0.0, row.trace) for row in self.optima if row.trace_sha256 in rates]
            cloud |= {self.upper: points} if self.upper else {}
            drawn = figures.scatter(cloud, "mean capacity of the trace, Mbit/s", self.metric, "QoE against capacity")
            found.append({"title": "Hard and easy traces", "text": "One point a policy and trace.", "svg": Markup(drawn)})
        return found

    def waits_ms(self) -> dict[Look, list[float]]:
        """What each decision of a valid trial took."""
        decisions = self.run.tables["decisions"]
        return {
            self.looks[n]: [ms_from_s(s) for s in decisions.filter(pl.col("trial_id").is_in([t.trial_id for t in trials]))["latency_s"]]
            for n, trials in self.trials.items()
        }

    @property
    def deadline_ms(self) -> float | None:
        """After which the player decides itself; None in simulation, which has none."""
        value = self.run.header.spec.get("deadline_ms")
        return float(value) if value is not None and self.run.header.mode != "simulation" else None

    def latency(self) -> Markup:
        """How long decisions took."""
        asking = "cluster" if self.run.header.task == "cjs" else "player"
        label = f"the {asking} waited, ms" if self.run.header.mode != "simulation" else "the policy computed, ms"
        return Markup(figures.latency(self.waits_ms(), self.deadline_ms, "Decision latency", label))

    @cached_property
    def links(self) -> LinkPage | None:
        """The links' and the host's part; None in simulation, and for schedules, whose links come by the dozen."""
        if self.schedules:
            return None
        return links.of_run(self.run, self.summary)

    def twins(self) -> dict[str, Any] | None:
        """Emulation beside simulation; None when no twin was simulated."""
        rows = [
            {"look": look, "emulated": s["mean"] + s["difference"], "allowed": max(AGREEMENT_SHARE * abs(s["mean"]), AGREEMENT_LEAST), **s}
            for name, look in self.looks.items()
            if (s := self.summary["policies"][name]["simulation"])
        ]
        if not rows:
            return None
        both = [(t.simulated, t.value, t) for ts in self.trials.values() for t in ts if t.simulated is not None and t.value is not None]
        points = {look: [(s, e, t.trace) for s, e, t in both if t.policy == name] for name, look in self.looks.items()}
        band = (AGREEMENT_SHARE, AGREEMENT_LEAST)
        svg = figures.scatter(
            points, f"simulated {self.metric}", f"emulated {self.metric}", "Emulation against simulation", diagonal=True, band=band
        )
        far = sorted(both, key=lambda pair: -abs(pair[1] - pair[0]))
        outside = [(e, t) for s, e, t in both if not agrees(e, s)]
        decided = sum(isinstance(t, TrialRow) and t.replayed_qoe is not None and agrees(e, t.replayed_qoe) for e, t in outside)
        shown = [(t, agrees(e, s)) for s, e, t in far[:MOST_TWINS]]
        return {"rows": rows, "svg": Markup(svg), "shown": shown, "outside": len(outside), "decided": decided, "trials": len(both)}

    def invalid(self) -> list[AnyTrialRow]:
        """Trials that were left out."""
        return [t for t in self.run.trials if not t.valid]


def _look(index: int, name: str, described: Mapping[str, str]) -> Look:
    colour = described.get("colour", "")
    shown = colour if COLOUR.fullmatch(colour) else "#777777"  # it goes into a style sheet: nothing but a colour may pass
    return Look(index, name, described.get("label") or name, shown, described.get("citation", ""))


def _short(hashes: str) -> str:
    """Each hash's first twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", hashes)


def _fact(name: str, value: str, state: str) -> dict[str, str]:
    return {"name": name, "value": value, "state": state}


def _estimate(row: Mapping[str, Any], n: int) -> stats.Estimate:
    return stats.Estimate(row["mean"], tuple(row["ci95"]) if row["ci95"] else None, n)


def render(run: Run, summary: Mapping[str, Any]) -> str:
    """The whole page."""
    page = Page(run, summary)
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., str]] = {
        "number": number,
        "interval": interval,
        "brief": brief,
        "count": count,
        "plain": plain,
        "percent": percent,
    }
    environment.filters.update(filters)
    shown = [] if page.schedules or page.viewings else groups(run, page.looks, page.upper)
    return environment.get_template("report.html.j2").render(
        page=page,
        run=run,
        header=run.header,
        summary=summary,
        groups=shown,
        selection=selection_sentence(run, shown),
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )
