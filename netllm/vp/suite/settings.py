"""The windows that predictors are measured on: named settings, and a user's own as RULE:HISTORY:HORIZON (`figures:1:2`, seconds)."""

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.errors import UserError, suggestion
from traces.viewport_splits import WU_TEST
from traces.windows import WindowRule, find_rule, samples


@dataclass(frozen=True)
class VpSetting:
    """One kind of windows."""

    name: str
    title: str
    rule: WindowRule
    history_s: float = 2.0
    horizon_s: float = 4.0
    published: tuple[tuple[str, str], ...] = ()
    """What NetLLM's figure shows for these windows: method and MAE in degrees."""
    note: str = ""
    """What a reader has to know of it."""
    split: str = ""
    """Another split than the one asked for: of another data set, left out where that can't be had."""


NAMED = {
    setting.name: setting
    for setting in (
        VpSetting("code", "2 s to 4 s, windows of NetLLM's code", find_rule("code")),
        VpSetting(
            "figures",
            "2 s to 4 s, windows of NetLLM's figure 1",
            find_rule("figures"),
            published=(("linear_regression", "18.9"), ("velocity", "17.0"), ("TRACK", "13.3"), ("NetLLM, Llama-2-7B", "11.96")),
        ),
        VpSetting(
            "longer",
            "4 s to 6 s, windows of NetLLM's figure 2 (there an unseen setting)",
            find_rule("figures"),
            4.0,
            6.0,
            published=(("linear_regression", "22.1"), ("velocity", "18.8"), ("TRACK", "14.4"), ("NetLLM, Llama-2-7B", "14.1")),
            note="In the paper these lengths are unseen in training. Here `netllm` learns 4 s; beyond, the MLP goes on and what was "
            "added to its last sample stays; it reads 3 s. `linear_l1`, `mlp` and `track` learn 6 s, of which the usual 4 s are the first "
            "part, from 2 s.",
        ),
        VpSetting(
            "wu2017",
            "2 s to 4 s, another data set (Wu2017), on which nothing was trained",
            find_rule("code"),
            note="Viewers of these videos look ahead at other yaws than those of Jin2022, each video at another. `linear_l1`, `mlp` and "
            "`track` can't be told; `netllm` can, and predicts without the heading.",
            split=WU_TEST,
        ),
    )
}
"""Numbers of the figures (SIGCOMM 2024; `images/1.png` and `2.png` of their repository) are heights of bars, to about 0.1 degrees."""


def chosen(names: Sequence[str]) -> list[VpSetting]:
    """The settings called so; each once."""
    if not names:
        raise UserError(f"--settings names none, wanted some of {', '.join(NAMED)}, or RULE:HISTORY:HORIZON (figures:1:2)")
    return [_setting(name) for name in dict.fromkeys(names)]


def _setting(name: str) -> VpSetting:
    if name in NAMED:
        return NAMED[name]
    rule, *lengths = name.split(":")
    if len(lengths) != 2:
        raise UserError(f"setting {name!r} is unknown: {suggestion(name, NAMED)}, or RULE:HISTORY:HORIZON (figures:1:2)")
    try:
        history_s, horizon_s = map(float, lengths)
    except ValueError as error:
        raise UserError(f"setting {name!r} has lengths that are no numbers, wanted seconds, such as figures:1:2") from error
    samples(history_s, "history")
    samples(horizon_s, "horizon")
    return VpSetting(name, f"{history_s:g} s to {horizon_s:g} s, windows {rule!r}", find_rule(rule), history_s, horizon_s)
