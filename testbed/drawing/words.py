"""Numbers for people, the same in pages, in Markdown and in the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # scipy takes a second to load
    from testbed.stats import Estimate

DASH = "\N{EN DASH}"


def sample(task: str, metric: str) -> str:
    """What means of `metric` are taken over: `trace`, ..."""
    return {"cjs": "workload"}.get(task) or {"mae_deg": "viewer"}.get(metric, "trace")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """With a real minus sign; a dash for what is unknown."""
    if value is None:
        return DASH
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def within(estimate: "Estimate", digits: int = 3, sign: bool = False) -> str:
    """`1.046 ± 0.131`; without an interval only the mean."""
    half = f" ± {estimate.half_width:.{digits}f}" if estimate.ci95 else ""
    return number(estimate.mean, digits, sign) + half


def interval(estimate: "Estimate", digits: int = 3, sign: bool = True) -> str:
    """`+0.040 to +0.126`."""
    return f"{number(estimate.ci95[0], digits, sign)} to {number(estimate.ci95[1], digits, sign)}" if estimate.ci95 else DASH


def percent(estimate: "Estimate") -> str:
    """`90.2 ± 1.4 %`."""
    if estimate.mean is None:
        return DASH
    half = f" ± {100 * estimate.half_width:.1f}" if estimate.ci95 else ""
    return f"{number(100 * estimate.mean, 1)}{half} %"


def p_value(p: float | None) -> str:
    """`0.012`, or `<0.001`."""
    if p is None:
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"
