"""The ABR workload: what one trial's rows add up to, and whether they can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from controllers.api import AbrSession, Manifest
from testbed.pressure import NO_STRAIN, Strain
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, Row, TrialRow
from testbed.records_trial import Drops
from testbed.spec import Experiment
from testbed.trial import Trial
from testbed.units import mbps_from_bps, s_from_ms

WALL_TOLERANCE_S = 0.05
"""How far start-up + playback + rebuffering may be from the wall time before a trial's own account is not believed."""
MOST_HICCUPS_S = 0.5
"""In a whole trial; so far apart may the ends of two equal sessions be (docs/dashjs.md)."""


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
    stalled_ms: float | None = None
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


def session(trial: Trial, video: Manifest, experiment: Experiment) -> AbrSession:
    """The playback that a trial consists of."""
    return AbrSession(session_id=trial.trial_id, video=video, chunks=experiment.chunks, rtt_s=s_from_ms(experiment.rtt_ms))


def trial_row(
    trial: Trial, playback: AbrSession, rows: Sequence[Row], path: PathFacts, mode: str, attempt: int = 1, strain: Strain = NO_STRAIN
) -> TrialRow:
    """The trial in one row: mean QoE per chunk and its components over chunks 1 .. N-1, and the invariants' verdict."""
    chunks = [row for row in rows if isinstance(row, ChunkRow)]
    decisions = [row for row in rows if isinstance(row, DecisionRow)]
    end = next((row for row in rows if isinstance(row, PlaybackEndRow)), None)
    faults = [path.fault] if path.fault else []
    problems = [*path.reasons, *faults, *_broken_invariants(trial, playback, chunks, decisions, end, mode)]
    rated = chunks[1:]
    bitrates_bps = [chunk.bitrate_bps for chunk in chunks]
    switches_bps = [abs(b - a) for a, b in pairwise(bitrates_bps)]
    measured = {**vars(path), **vars(strain)}
    del measured["reasons"], measured["fault"]
    measured["trace_wraps"] = path.trace_wraps if mode == "emulation" else _wraps(trial, playback, chunks)
    return TrialRow(
        trial_id=trial.trial_id,
        policy=trial.policy,
        trace=trial.trace.name,
        trace_sha256=trial.trace.sha256,
        offset_s=trial.offset_s,
        seed=trial.seed,
        mode=mode,
        attempt=attempt,
        end_reason=end.end_reason if end else "player_died",
        valid=not problems,
        invalid_reason="; ".join(problems),
        qoe=_mean([chunk.qoe for chunk in rated]),
        bitrate_mbps=_mean([mbps_from_bps(chunk.bitrate_bps) for chunk in rated]),
        rebuffer_s=_mean([chunk.rebuffer_s for chunk in rated]),
        switch_mbps=_mean([mbps_from_bps(switch) for switch in switches_bps]),
        startup_s=end.startup_s if end else None,
        chunks=len(chunks),
        decisions=len(decisions),
        fallbacks=sum(row.source == "fallback" for row in decisions),
        wall_s=end.wall_s if end else None,
        simulated_qoe=None,
        **measured,
    )


def only_its_link_failed(row: TrialRow, path: PathFacts) -> bool:
    """Whether nothing but the link's verdict speaks against a trial, so that it may be played again.

    That is fair: the verdict looks only at the link (how late packets were, how long it stood still, whether the rate was kept, whether
    losses were counted), never at the quality of experience, and every policy's trials are judged by the same rule. So no result is chosen
    by its value.
    """
    return bool(path.reasons) and row.invalid_reason == "; ".join(path.reasons)


def _broken_invariants(
    trial: Trial,
    playback: AbrSession,
    chunks: Sequence[ChunkRow],
    decisions: Sequence[DecisionRow],
    end: PlaybackEndRow | None,
    mode: str,
) -> list[str]:
    """Sentences on what a trial promised and did not keep."""
    if end is None:
        return ["ended early: the player died"]
    if end.end_reason != "complete":
        return [f"ended early: {end.end_reason}" + (f" ({end.detail})" if end.detail else "")]
    problems = []
    if [chunk.index for chunk in chunks] != list(range(playback.chunks)):
        problems.append(f"{len(chunks)} chunks were played, wanted {playback.chunks} in order")
    if len(decisions) != playback.chunks - 1:
        problems.append(f"{len(decisions)} decisions were taken, wanted {playback.chunks - 1}")
    if decisions and all(decision.source == "fallback" for decision in decisions):
        problems.append(f"the policy took no decision, all {len(decisions)} fell back ({decisions[0].reason})")
    if any(chunk.size_bytes != playback.video.sizes_bytes[chunk.index][chunk.level] for chunk in chunks):
        problems.append("a chunk's size differs from the manifest")
    if abs(end.hiccup_s) > MOST_HICCUPS_S:
        problems.append(f"playback stood still for {end.hiccup_s:.2f} s with media in the buffer, the browser got no processor")
    account_s = end.startup_s + end.played_s + end.rebuffer_s + end.hiccup_s
    if abs(account_s - end.wall_s) > WALL_TOLERANCE_S:
        problems.append(f"start-up + playback + rebuffering is {account_s:.3f} s, the wall time {end.wall_s:.3f} s")
    carried_bytes = sum(chunk.size_bytes for chunk in chunks)
    if mode == "emulation" and chunks and carried_bytes > most_bytes(trial, chunks[-1].end_s):
        problems.append(f"{carried_bytes} bytes arrived, more than the trace allows by {chunks[-1].end_s:.1f} s")
    return problems


def most_bytes(trial: Trial, seconds: float) -> float:
    """Bytes that the trace can carry in the `seconds` from the trial's start: no session can receive more."""
    return trial.trace.bytes_by(trial.offset_s + seconds) - trial.trace.bytes_by(trial.offset_s)


def _wraps(trial: Trial, playback: AbrSession, chunks: Sequence[ChunkRow]) -> int:
    """How often the simulator's trace began anew; its time does not advance during round trips, nor in the pause after the last chunk."""
    busy_s = sum(chunk.download_s - playback.rtt_s + chunk.waited_s for chunk in chunks)
    return int((trial.offset_s + busy_s) // trial.trace.duration_s)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
