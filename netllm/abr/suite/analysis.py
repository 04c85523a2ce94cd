"""From played sessions to what is said of them: means over units with 95 % intervals, paired differences, shares of the optimum, seeds.

A mean is over traces (files, where a file is played from several starts): the sessions, seeds and training seeds of one are averaged first.
Traces of one measurement unit or log are not independent: intervals and p values take what was measured together as the unit of sampling
(`testbed.stats.estimate`). So an interval says what other measurements of the same kind would give; what other seeds would give stands
apart, as a standard deviation of the seeds' means. Ablations compare trainings: their intervals and p values hold what other training seeds
would give, too (`testbed.stats.with_training_seeds`). P values are of the paired t test, adjusted by Holm (Scandinavian Journal of
Statistics 1979) over the comparisons on one setting: the main policy against each other, and apart from these each ablation against its
reference. Settings are questions of their own: nothing is adjusted over them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from netllm.abr.suite.cells import CELL, Cell
from netllm.abr.suite.contenders import ABLATION, COMPARED, LEARNED, RULE, SEEDS, Contender
from netllm.abr.suite.play import OPTIMUM
from netllm.abr.suite.settings import DEFAULT, Prepared
from testbed.stats import SIGNIFICANT, TIE, Estimate, estimate, holm, p_value_of, ratio_of_means, strongest, with_training_seeds

Cells = Mapping[tuple[str, str, int, int], Cell]
LEAST_FOR_SCALE = 10
"""Units."""


@dataclass(frozen=True)
class Difference:
    """`a` minus `b`, unit by unit."""

    a: str
    b: str
    values: tuple[float, ...]
    estimate: Estimate
    wins: int
    losses: int
    ties: int
    p: float | None
    """Of the paired t test; None where too few were measured, or trained."""
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not clear`, by the adjusted p value."""
        if self.p_holm is None or self.p_holm >= SIGNIFICANT or self.estimate.mean is None:
            return "not clear"
        return "better" if self.estimate.mean > 0 else "worse"


@dataclass(frozen=True)
class SeedSpread:
    """Means over units of each seed's sessions."""

    means: tuple[float, ...]

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return float(np.std(self.means, ddof=1)) if len(self.means) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """One contender on one setting. Columns of `sessions` are those of `cells.CELL`, rows are playbacks, averaged over seeds."""

    contender: Contender
    prepared: Prepared
    sessions: np.ndarray
    """(playbacks, columns)"""
    training: SeedSpread
    """Over training seeds, each averaged over its sampling seeds."""
    sampling: SeedSpread
    """Over sampling seeds, each averaged over training seeds."""
    refused: str = ""

    @cached_property
    def by_unit(self) -> np.ndarray:
        """QoE, (units,)."""
        return _by(self.sessions[:, 0], [each.unit for each in self.prepared.playbacks])

    @cached_property
    def qoe(self) -> Estimate:
        """Mean over units, its interval over what was measured together."""
        return estimate(self.by_unit, self.prepared.measured)

    @cached_property
    def parts(self) -> dict[str, float]:
        """Means over units of QoE's components and the start-up delay."""
        units = [each.unit for each in self.prepared.playbacks]
        return {name: float(_by(self.sessions[:, i], units).mean()) for i, name in enumerate(CELL) if i}


@dataclass(frozen=True)
class SettingResult:
    """Everything about one setting."""

    prepared: Prepared
    optimum: np.ndarray
    """Of each unit, (units,)."""
    outcomes: dict[str, Outcome]
    """By contender, those that could play."""
    refused: dict[str, str]
    differences: tuple[Difference, ...]
    """The main policy minus each other that is compared, strongest other first."""
    ablations: tuple[Difference, ...]
    """Each ablation minus the reference."""

    @property
    def name(self) -> str:
        """Of the setting."""
        return self.prepared.setting.name

    def share(self, name: str) -> Estimate:
        """Share of the offline optimum: a ratio of means, its interval by the delta method."""
        return ratio_of_means(self.outcomes[name].by_unit, self.optimum, self.prepared.measured)

    def compared(self) -> list[Outcome]:
        """Those that are compared, in the order given."""
        return [each for each in self.outcomes.values() if each.contender.role == COMPARED]

    def strongest(self, kind: str, main: str) -> str | None:
        """Of a kind, the policy with the highest mean on this very setting: the hardest one to beat, chosen after the fact."""
        return strongest({e.contender.name: e.qoe.mean for e in self.compared() if e.contender.kind == kind and e.contender.name != main})

    def against(self, name: str | None) -> Difference | None:
        """The main policy minus `name`."""
        return next((each for each in self.differences if each.b == name), None)


@dataclass(frozen=True)
class Rival:
    """The main policy against one that is hard to beat, and why that one was taken."""

    result: SettingResult
    difference: Difference
    why: str


@dataclass(frozen=True)
class Analysis:
    """Everything that is shown."""

    settings: tuple[SettingResult, ...]
    contenders: tuple[Contender, ...]
    main: str
    reference: str
    """What ablations are measured against."""

    def named(self, name: str) -> Contender:
        """The contender called so."""
        return next(each for each in self.contenders if each.name == name)

    def role(self, role: str) -> list[Contender]:
        """Those of a role."""
        return [each for each in self.contenders if each.role == role]

    def first(self) -> SettingResult:
        """The default setting, else the first."""
        return next((each for each in self.settings if each.name == DEFAULT), self.settings[0])

    def hardest(self) -> list[Rival]:
        """The main policy minus each setting's strongest rule and learned policy, and minus the default setting's strongest rule."""
        usual = self.first().strongest(RULE, self.main)
        found = []
        for each in self.settings:
            named = {usual: f"strongest rule on {self.first().name}"}  # one policy may be several of these: the last word counts
            named |= {each.strongest(LEARNED, self.main): "strongest learned policy", each.strongest(RULE, self.main): "strongest rule"}
            against = [(each.against(name), why) for name, why in named.items()]
            rivals = [Rival(each, difference, why) for difference, why in against if difference is not None]
            found += sorted(rivals, key=lambda rival: rival.difference.estimate.mean or 0.0)
        return found

    @property
    def comparisons(self) -> int:
        """How many differences of the main policy there are, over all settings."""
        return sum(len(each.differences) for each in self.settings)

    @property
    def ablation_comparisons(self) -> int:
        """The same for ablations."""
        return sum(len(each.ablations) for each in self.settings)

    def with_seeds(self) -> list[Contender]:
        """Those with more than one seed of any kind."""
        return [
            each
            for each in self.contenders
            if any(each.name in s.outcomes and _several(s.outcomes[each.name]) for s in self.settings)
            and each.role in (COMPARED, SEEDS, ABLATION)
        ]


def _several(outcome: Outcome) -> bool:
    return len(outcome.training.means) > 1 or len(outcome.sampling.means) > 1


def many_units(rivals: Sequence[Rival]) -> Sequence[Rival]:
    """Those whose intervals may set the scale of a drawing: one over three files would flatten all others."""
    return [each for each in rivals if each.difference.estimate.n >= LEAST_FOR_SCALE] or rivals


def analyse(prepared: Sequence[Prepared], contenders: Sequence[Contender], cells: Cells, reference: str) -> Analysis:
    """Work out all tables. The first contender is the main one."""
    main = contenders[0].name
    results = tuple(_setting(each, contenders, cells, main, reference) for each in prepared)
    adjusted = tuple(replace(each, differences=_adjusted(each.differences), ablations=_adjusted(each.ablations)) for each in results)
    return Analysis(adjusted, tuple(contenders), main, reference)


def _adjusted(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """With p values adjusted for the number of comparisons on one setting."""
    return tuple(replace(each, p_holm=p) for each, p in zip(differences, holm([each.p for each in differences]), strict=True))


def _setting(prepared: Prepared, contenders: Sequence[Contender], cells: Cells, main: str, reference: str) -> SettingResult:
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    for contender in contenders:
        outcome = _outcome(prepared, contender, cells)
        if outcome.refused:
            refused[contender.name] = outcome.refused
        else:
            outcomes[contender.name] = outcome
    found = np.array([session[0] for session in cells[prepared.setting.name, OPTIMUM, 0, 0].sessions])
    optimum = _by(found, [each.unit for each in prepared.playbacks])
    others = [each for each in outcomes.values() if each.contender.role == COMPARED and each.contender.name != main]
    others.sort(key=lambda each: -(each.qoe.mean or 0.0))
    differences = tuple(difference(outcomes[main], each) for each in others) if main in outcomes else ()
    variants = [each for each in outcomes.values() if each.contender.role == ABLATION and each.contender.name != reference]
    ablations = _ablations(variants, outcomes[reference]) if reference in outcomes else ()
    return SettingResult(prepared, optimum, outcomes, refused, differences, ablations)


def _ablations(variants: Sequence[Outcome], reference: Outcome) -> tuple[Difference, ...]:
    """Each variant minus the reference, told how far training seeds lie apart."""
    seeds = {each.contender.name: each.training.means for each in (reference, *variants)}
    found = []
    for each in (difference(variant, reference) for variant in variants):
        with_seeds = with_training_seeds(each.estimate, each.a, each.b, seeds)
        found.append(replace(each, estimate=with_seeds, p=p_value_of(with_seeds)))
    return tuple(found)


def _outcome(prepared: Prepared, contender: Contender, cells: Cells) -> Outcome:
    """All seeds of a contender on a setting."""
    name, none = prepared.setting.name, SeedSpread(())
    mine = {key[2:]: cell for key, cell in cells.items() if key[:2] == (name, contender.name)}
    if said := next((cell.refused for cell in mine.values() if cell.refused), ""):
        return Outcome(contender, prepared, np.zeros((0, len(CELL))), none, none, said)
    units = [each.unit for each in prepared.playbacks]
    by_member: dict[int, list[np.ndarray]] = defaultdict(list)
    by_seed: dict[int, list[np.ndarray]] = defaultdict(list)
    for (member, seed), cell in mine.items():
        played = np.array(cell.sessions)  # (playbacks, columns)
        by_member[member].append(played)
        by_seed[seed].append(played)
    members = [np.mean(each, axis=0) for each in by_member.values()]
    complete = [np.mean(each, axis=0) for each in by_seed.values() if len(each) == len(members)]
    training, sampling = (SeedSpread(tuple(float(_by(each[:, 0], units).mean()) for each in part)) for part in (members, complete))
    return Outcome(contender, prepared, np.mean(members, axis=0), training, sampling)


def difference(a: Outcome, b: Outcome) -> Difference:
    """`a` minus `b` on the same units."""
    values = a.by_unit - b.by_unit
    wins, losses = int(np.sum(values > TIE)), int(np.sum(values < -TIE))
    found = estimate(values, a.prepared.measured)
    ties = len(values) - wins - losses
    return Difference(a.contender.name, b.contender.name, tuple(values.tolist()), found, wins, losses, ties, p_value_of(found))


def _by(values: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Means of values with equal keys, in order of first appearance."""
    parts: dict[str, list[float]] = {}
    for value, key in zip(values.tolist(), keys, strict=True):
        parts.setdefault(key, []).append(value)
    return np.array([np.mean(part) for part in parts.values()])
