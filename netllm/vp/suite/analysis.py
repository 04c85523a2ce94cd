"""From errors on windows to what is said of them: means with 95 % intervals over viewers, paired differences over viewers and over videos.

The mean is over windows, as published. Windows of one viewer are not independent, so the interval takes the viewer as the unit of sampling
(Student's t on the sums and counts of each, the delta method for their ratio): it says what other viewers would give. The absolute level
depends on who those are far more than a paired difference does. Beside stands the same difference with the video as the unit. P values are
of the t statistic over viewers, adjusted by Holm over the comparisons with one reference on one setting. Ablations compare trainings: their
intervals and p values hold what other training seeds would give, too (`testbed.stats.with_training_seeds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controllers.loader import PolicyFactory
from netllm.vp.suite.settings import VpSetting
from testbed.sim.vp import WindowErrors
from testbed.stats import SIGNIFICANT, TIE, Estimate, holm, p_value_of, ratio_of_means, with_training_seeds
from traces.viewports import ANGLES

SPHERE, PUBLISHED, RMSE = "great circle", "published rule", "RMSE"


@dataclass(frozen=True)
class Outcome:
    """One policy on one setting."""

    policy: PolicyFactory
    errors: WindowErrors

    @property
    def mae_deg(self) -> Estimate:
        """Over windows, the interval over viewers."""
        return clustered(self.errors.mae_deg, self.errors.user)

    @property
    def parts_deg(self) -> dict[str, float]:
        """Means over windows of the other measures."""
        axes = dict(zip(ANGLES, self.errors.axis_mae_deg.mean(axis=0).tolist(), strict=True))
        rmse_deg = float(np.sqrt((self.errors.rmse_deg**2).mean()))
        others = {SPHERE: self.errors.great_circle_deg, PUBLISHED: self.errors.published_mae_deg}
        return {**axes, RMSE: rmse_deg, **{name: float(values.mean()) for name, values in others.items()}}


@dataclass(frozen=True)
class Difference:
    """`a` minus `b`, window by window: below 0, `a` is better."""

    a: str
    b: str
    over_users: Estimate
    over_videos: Estimate
    better_users: int
    """Viewers on whom `a` has the lower mean error."""
    users: int
    better_videos: int
    videos: int
    p: float | None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not clear`, by the adjusted p value."""
        if self.p_holm is None or self.p_holm >= SIGNIFICANT or self.over_users.mean is None:
            return "not clear"
        return "better" if self.over_users.mean < 0 else "worse"


@dataclass(frozen=True)
class SettingResult:
    """Everything about one setting."""

    setting: VpSetting
    windows: int
    users: int
    videos: int
    outcomes: dict[str, Outcome]
    """By policy, those that could serve."""
    refused: dict[str, str]
    differences: dict[str, tuple[Difference, ...]]
    """By reference: each other policy minus it."""

    def ranked(self) -> list[Outcome]:
        """Best first."""
        return sorted(self.outcomes.values(), key=lambda each: float(each.errors.mae_deg.mean()))


@dataclass(frozen=True)
class AblationResult:
    """Adapters with one thing changed, on one setting: rows are means over training seeds, the differences are from the reference."""

    result: SettingResult
    seeds_deg: dict[str, tuple[float, ...]]
    """The mean error of each training seed, by row."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that one evaluation found."""

    results: tuple[SettingResult, ...]
    left_out: tuple[VpSetting, ...] = ()
    """Settings whose data were not there."""
    seeds: tuple[SettingResult, ...] = ()
    """The same settings with further training seeds."""
    ablations: tuple[AblationResult, ...] = ()
    trainings: tuple[tuple[str, str, str], ...] = ()
    """How the adapters of the ablations were trained (`netllm.ablations.TRAINED`)."""
    times_s: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Seconds of single decisions, by policy."""


def setting_result(
    setting: VpSetting,
    outcomes: Mapping[str, Outcome],
    refused: Mapping[str, str],
    references: Sequence[str],
    seeds_deg: Mapping[str, Sequence[float]] | None = None,
) -> SettingResult:
    """All tables of a setting. At least one policy could serve. `seeds_deg`: mean errors of training seeds, for ablations."""
    any_errors = next(iter(outcomes.values())).errors
    differences = {
        reference: _adjusted([difference(each, outcomes[reference], seeds_deg) for name, each in outcomes.items() if name != reference])
        for reference in references
        if reference in outcomes
    }
    users, videos = len(np.unique(any_errors.user)), len(np.unique(any_errors.video))
    return SettingResult(setting, len(any_errors.at), users, videos, dict(outcomes), dict(refused), differences)


def difference(a: Outcome, b: Outcome, seeds_deg: Mapping[str, Sequence[float]] | None = None) -> Difference:
    """`a` minus `b` on the same windows."""
    values = a.errors.mae_deg - b.errors.mae_deg
    over_users, over_videos = clustered(values, a.errors.user), clustered(values, a.errors.video)
    if seeds_deg is not None:
        names = a.policy.name, b.policy.name
        over_users, over_videos = (with_training_seeds(found, *names, seeds_deg) for found in (over_users, over_videos))
    per_user, per_video = (_means(values, clusters) for clusters in (a.errors.user, a.errors.video))
    counts = (int(np.sum(per_user < -TIE)), len(per_user), int(np.sum(per_video < -TIE)), len(per_video))
    return Difference(a.policy.name, b.policy.name, over_users, over_videos, *counts, p_value_of(over_users))


def _adjusted(found: Sequence[Difference]) -> tuple[Difference, ...]:
    return tuple(replace(each, p_holm=p) for each, p in zip(found, holm([each.p for each in found]), strict=True))


def clustered(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Mean of `values` (N,), its interval with equal `clusters` (N,) as the unit of sampling."""
    _, unit = np.unique(clusters, return_inverse=True)
    return ratio_of_means(np.bincount(unit, values), np.bincount(unit).astype(float))


def _means(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    _, unit = np.unique(clusters, return_inverse=True)
    return np.bincount(unit, values) / np.bincount(unit)
