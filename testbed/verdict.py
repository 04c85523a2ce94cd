"""What speaks for or against a trial, whatever it plays: what its path measured, and rules that all tasks share."""

from dataclasses import dataclass
from typing import Any

from testbed.pressure import Strain
from testbed.records_trial import Drops, TrialBase
from testbed.trial import Trial

WALL_TOLERANCE_S = 0.05
"""How far start-up + playback + rebuffering may be from the wall time before a trial's own account is not believed."""
MOST_STARVED_S = 0.5
"""In a whole trial, of a player that got no core; so far apart may the ends of two equal sessions be (docs/dashjs.md)."""


@dataclass(frozen=True)
class PathFacts:
    """What an emulated trial knows about its path; all None in simulation. All but the first two go into its row under the same name."""

    reasons: tuple[str, ...] = ()
    """Why the link fails its verdict."""
    fault: str = ""
    """What befell the player; empty when nothing did."""
    lane: int = 0
    congestion_control: str = ""
    fidelity: str | None = None
    lateness_ms_p50: float | None = None
    lateness_ms_p99: float | None = None
    lateness_ms_max: float | None = None
    late_packets: int | None = None
    late_share: float | None = None
    stalled_ms: float | None = None
    max_stall_ms: float | None = None
    rate_error_pct_100ms: float | None = None
    uncounted_losses: int | None = None
    packets_in: int | None = None
    packets_out: int | None = None
    drops: Drops | None = None
    link_notes: str = ""
    trace_wraps: int = 0
    controller_restarts: int = 0
    began_at_s: float | None = None
    ended_at_s: float | None = None

    @property
    def problems(self) -> list[str]:
        """What of it speaks against the trial."""
        return [*self.reasons, *([self.fault] if self.fault else [])]


def measured(path: PathFacts, strain: Strain) -> dict[str, Any]:
    """What goes into a trial's row under the same names."""
    return {name: value for name, value in (vars(path) | vars(strain)).items() if name not in ("reasons", "fault")}


def only_its_link_failed(row: TrialBase, path: PathFacts) -> bool:
    """Whether nothing but the link's verdict speaks against a trial, so that it may be played again.

    That is fair: the verdict looks only at the link (how late packets were, how long it stood still, whether the rate was kept, whether
    losses were counted), never at the quality of experience, and every policy's trials are judged by the same rule. So no result is chosen
    by its value.
    """
    return bool(path.reasons) and row.invalid_reason == "; ".join(path.reasons)


def starved(waited_for_core_s: float) -> list[str]:
    """A sentence on a player that waited for a core for too long; none on another."""
    if waited_for_core_s <= MOST_STARVED_S:
        return []
    return [f"the player's times are late by {waited_for_core_s:.2f} s for want of a core, wanted at most {MOST_STARVED_S:g} s"]


def most_bytes(trial: Trial, seconds: float) -> float:
    """Bytes that the trace can carry in the `seconds` from the trial's start: no session can receive more."""
    return trial.trace.bytes_by(trial.offset_s + seconds) - trial.trace.bytes_by(trial.offset_s)
