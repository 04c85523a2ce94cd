"""From sessions to what is said of them. The unit of sampling is the workload: every policy meets the same ones.

The JCT of a session that starved means nothing. Who starved jobs has no mean, and is compared with nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from netllm.cjs.suite.play import Played
from netllm.cjs.suite.settings import CjsSetting
from testbed.sim.cjs import COMPLETE
from testbed.stats import SIGNIFICANT, TIE, Estimate, estimate, holm, p_value_of, ratio_of_means


@dataclass(frozen=True)
class Outcome:
    """One policy on one setting."""

    policy: str
    sessions: tuple[Played, ...]
    """By seed, as the setting has them."""
    over_decima: Estimate | None
    """Mean JCT over that of the published Decima on the same workloads, where all ended."""

    @property
    def jct_s(self) -> np.ndarray:
        """Of each workload, (n,), where all ended."""
        return np.array([each.avg_jct_s for each in self.sessions])

    @property
    def mean_s(self) -> float | None:
        """Mean JCT; None where a session starved."""
        return None if self.starved else float(self.jct_s.mean())

    @property
    def starved(self) -> int:
        """Sessions that never ended."""
        return sum(each.ended != COMPLETE for each in self.sessions)


@dataclass(frozen=True)
class Difference:
    """`a` minus `b` on the same workloads: below 0, `a` is better."""

    a: str
    b: str
    difference_s: Estimate
    ratio: Estimate
    wins: int
    losses: int
    p: float | None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not clear`, by the adjusted p value."""
        if self.p_holm is None or self.p_holm >= SIGNIFICANT or self.difference_s.mean is None:
            return "not clear"
        return "better" if self.difference_s.mean < 0 else "worse"


@dataclass(frozen=True)
class SettingResult:
    """Everything about one setting."""

    setting: CjsSetting
    outcomes: dict[str, Outcome]
    differences: tuple[Difference, ...]

    def ranked(self) -> list[Outcome]:
        """Best first; what starved comes last."""
        return sorted(self.outcomes.values(), key=lambda each: (each.starved, each.mean_s or 0.0))


def analyse(
    settings: Sequence[CjsSetting], played: Sequence[Played], policies: Sequence[str], references: Sequence[str]
) -> list[SettingResult]:
    """The result of each setting; p values are adjusted by Holm over all comparisons with one reference."""
    found = []
    for setting in settings:
        rows: Mapping[tuple[str, int], Played] = {(each.policy, each.seed): each for each in played if each.setting == setting.name}
        outcomes = {name: _outcome(setting, name, tuple(rows[name, seed] for seed in setting.seeds)) for name in policies}
        ended = [name for name in policies if not outcomes[name].starved]
        pairs = [(a, b) for b in references if b in ended for a in ended if a != b]
        found.append(SettingResult(setting, outcomes, tuple(_difference(outcomes[a], outcomes[b]) for a, b in pairs)))
    for reference in references:
        places = [(i, j) for i, result in enumerate(found) for j, each in enumerate(result.differences) if each.b == reference]
        for (i, j), p in zip(places, holm([found[i].differences[j].p for i, j in places]), strict=True):
            differences = list(found[i].differences)
            differences[j] = replace(differences[j], p_holm=p)
            found[i] = replace(found[i], differences=tuple(differences))
    return found


def _outcome(setting: CjsSetting, name: str, sessions: tuple[Played, ...]) -> Outcome:
    found = Outcome(name, sessions, None)
    if found.starved or not setting.decima_s:
        return found
    return replace(found, over_decima=ratio_of_means(found.jct_s, np.array(setting.decima_s)))


def _difference(a: Outcome, b: Outcome) -> Difference:
    values = a.jct_s - b.jct_s
    found = estimate(values)
    wins, losses = int(np.sum(values < -TIE)), int(np.sum(values > TIE))
    return Difference(a.policy, b.policy, found, ratio_of_means(a.jct_s, b.jct_s), wins, losses, p_value_of(found))
