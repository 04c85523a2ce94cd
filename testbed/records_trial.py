"""What the rows of all tasks' trials have in common."""

import msgspec


class Drops(msgspec.Struct, frozen=True, kw_only=True):
    """Packets that a link dropped, by cause, both directions together."""

    queue: int = 0
    """The bottleneck's queue was full."""
    codel: int = 0
    """CoDel dropped them for having waited too long."""
    loss: int = 0
    """Lost at random, as the trace says."""
    malformed: int = 0
    """Empty or too long."""
    transmit: int = 0
    """The receiving interface refused them."""


class TrialBase(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of trials have in common whatever the task. An invalid trial is shown and not averaged in."""

    trial_id: str
    policy: str
    trace: str
    """The unit of sampling, over which means are taken: the link's trace, or the workload."""
    trace_sha256: str
    offset_s: float
    seed: int
    mode: str
    lane: int
    end_reason: str
    """`complete`, or what ended it early."""
    valid: bool
    invalid_reason: str
    decisions: int
    fallbacks: int
    controller_restarts: int
    wall_s: float | None
    congestion_control: str
    trace_wraps: int
    lateness_ms_p99: float | None
    rate_error_pct_100ms: float | None
    uncounted_losses: int | None
    fidelity: str | None = None
    """The links' verdict, `pass` or `fail`; None when no link was emulated."""
    attempt: int = 1
    """2 and more: the trial was played again because its link had failed. Of a trial's attempts the last one counts."""
    began_at_s: float | None = None
    ended_at_s: float | None = None
    """When the link was loaded and stopped, seconds on CLOCK_MONOTONIC as in `HostRow`; from here on all is None in simulation."""
    lateness_ms_p50: float | None = None
    lateness_ms_max: float | None = None
    late_packets: int | None = None
    """Packets later than `testbed.link.LATE_S`, both directions together."""
    late_share: float | None = None
    """Of the packets of the direction that has the larger share of them; None in runs from before it was recorded."""
    stalled_ms: float | None = None
    """So long the emulator stood still, in all."""
    max_stall_ms: float | None = None
    """The longest of these times; None in runs from before it was recorded."""
    packets_in: int | None = None
    packets_out: int | None = None
    drops: Drops | None = None
    steal_share: float | None = None
    """Of all cores' time during the trial: what the hypervisor kept from this machine."""
    worst_steal_share: float | None = None
    """The same in the trial's worst `HostRow`."""
    cpu_pressure_share: float | None = None
    """Share of the trial in which some task waited for a core."""
    worst_cpu_pressure_share: float | None = None
    relay_wait_share: float | None = None
    """Share of the trial in which the relay process could have run and did not get a core."""
    link_notes: str = ""
    """What the link's verdict does not judge and a reader should know."""
