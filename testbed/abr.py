"""The ABR workload: its trials, what one trial's rows add up to, and whether they can be trusted."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from controllers.api import AbrSession, Manifest
from controllers.ladder import places
from players.config import OriginConfig, PlayerConfig
from players.dash.messages import DashConfig
from players.dash.stock import STOCK
from players.encoded import load_film
from players.media import check_length, default_manifest, is_video_file, load_manifest
from testbed.policycards import PolicyCard, describe_policies, from_any_folder
from testbed.prepared import PreparedInLanes, from_anywhere
from testbed.pressure import NO_STRAIN, Strain
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, Row, TrialRow
from testbed.setup.dashjs import library
from testbed.setup.encode import film_folder
from testbed.spec import Experiment
from testbed.trial import Trial, plan, wrap_note
from testbed.twin import SimulationJob
from testbed.units import mbps_from_bps, s_from_ms
from testbed.verdict import MOST_STARVED_S, WALL_TOLERANCE_S, PathFacts, measured, most_bytes, starved
from traces.store import TraceSet, resolve, resolve_uplink
from traces.trace import OpportunityTrace, RateTrace, Trace

DEFAULT_POLICIES = "netllm,robust_mpc,bola,bba"
LEARNT, TRAINING = ("netllm", "pensieve", "genet"), ("train", "valid")
"""Policies of ours that learn, and the splits that they learn from or are chosen on."""
LEARNT_CHUNK_S = 4.0
SLOTTED = ("netllm", "pensieve")
"""Those that know six bitrates, and pair a video's with them (`controllers/ladder.py`)."""


@dataclass(frozen=True)
class PreparedPlaybacks(PreparedInLanes):
    """Of adaptive bitrate streaming."""

    video: Manifest
    uplink: TraceSet | None = None
    """Where the trials' uplinks come from; None: they have none."""

    metric = "qoe_lin"
    unit = "per chunk"
    closing = PlaybackEndRow
    step = ChunkRow

    @property
    def player(self) -> str:
        """Headless, or what drives a browser."""
        return "players.headless" if self.experiment.player == "headless" else "players.dash.player"

    @property
    def steps(self) -> int:
        """Chunks."""
        return self.experiment.chunks

    @property
    def largest_bytes(self) -> int:
        """The largest chunk."""
        return max(map(max, self.video.sizes_bytes))

    def origin_config(self, host: str, port: int, start_socket: str) -> OriginConfig:
        """One video; for browsers with a film, as long as they play."""
        film = None if self.experiment.player == "headless" else str(film_folder())
        return OriginConfig(host=host, port=port, videos=(self.video,), film=film, chunks=self.experiment.chunks, start_socket=start_socket)

    def player_config(self, trial: Trial, origin_url: str, controller_url: str) -> PlayerConfig:
        """One playback."""
        return PlayerConfig(
            trial_id=trial.trial_id,
            origin_url=origin_url,
            controller_url=controller_url,
            policy=self.references[trial.policy],
            seed=trial.policy_seed,
            video=self.video.name,
            chunks=self.experiment.chunks,
            rtt_s=s_from_ms(self.experiment.rtt_ms),
            deadline_s=s_from_ms(self.experiment.deadline_ms),
        )

    def handed(self, trial: Trial, config: PlayerConfig, kept: Callable[[], Path], picture: Path | None) -> PlayerConfig | DashConfig:
        """For a browser, who decides, how a decision is waited for, the library and where to keep what it showed, too."""
        if self.experiment.player == "headless":
            return config
        return DashConfig(
            player=config,
            decides=STOCK[trial.policy].decides if trial.policy in STOCK else "controller",
            waits="sync" if self.experiment.player == "dashjs_sync" else "gate",
            library=str(library()),
            keep=str(kept().absolute()),
            picture=str(picture) if picture else None,
        )

    @property
    def links(self) -> tuple[Trace, ...]:
        """Downlinks."""
        return tuple(trial.trace for trial in self.trials)

    def job(self, trial: Trial) -> SimulationJob:
        """A trial as work for the simulator twin."""
        return job(self, trial)

    def row(self, trial: Trial, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> TrialRow:
        """A trial that is over, judged."""
        playback = session(trial, self.video, self.experiment)
        mode = "simulation" if self.experiment.simulate else "emulation"
        return trial_row(trial, playback, rows, path, mode, attempt, strain)


def prepare_playbacks(experiment: Experiment) -> PreparedPlaybacks:
    """Find policies, traces and video."""
    if not experiment.policy_references:
        experiment = dataclasses.replace(experiment, policies=DEFAULT_POLICIES)
    video, note = _video(experiment)
    policies = describe_policies(experiment, video)
    trace_sets = tuple(resolve(reference) for reference in experiment.trace_references)
    uplink = resolve_uplink(experiment.uplink) if experiment.uplink else None
    experiment = dataclasses.replace(
        from_any_folder(experiment, policies),
        trace=tuple(from_anywhere(*pair) for pair in zip(experiment.trace_references, trace_sets, strict=True)),
        uplink=from_anywhere(experiment.uplink, uplink) if experiment.uplink and uplink else None,
        video=_anywhere(experiment.video) if experiment.video else video.name,
    )
    traces = {(trace.name, trace.sha256): trace for trace_set in trace_sets for trace in trace_set.traces}
    trials = plan(experiment, [card.name for card in policies], list(traces.values()), uplink.traces if uplink else ())
    found = dict.fromkeys(each.note for each in (*trace_sets, *([uplink] if uplink else [])))
    notes = (
        note,
        *found,
        _learnt_note(trace_sets, policies),
        *_video_notes(video, policies),
        wrap_note(trials, experiment.chunks * video.chunk_s),
        _unsimulated_note(experiment, trials),
    )
    return PreparedPlaybacks(experiment, policies, trace_sets, trials, tuple(text for text in notes if text), video, uplink)


def _video(experiment: Experiment) -> tuple[Manifest, str]:
    """The video, and a note where it stands in for another."""
    if experiment.video is None:
        return default_manifest()
    video = load_manifest(experiment.video)
    check_length(video, experiment.chunks)
    if experiment.player != "headless" and not experiment.simulate:
        load_film(film_folder()).check(video, experiment.chunks)
    return video, ""


def _anywhere(video: str) -> str:
    """The video's name, or its file as it is found from any folder."""
    return str(Path(video).expanduser().resolve()) if is_video_file(video) else video


def _learnt_note(sets: Sequence[TraceSet], policies: Sequence[PolicyCard]) -> str:
    """A sentence on policies that play what they learnt from, or were chosen on; empty when none does."""
    for_training = [f"{each.name}/{each.split}" for each in sets if each.source == "store" and each.split in TRAINING]
    learnt = [card.name for card in policies if card.name.split("+")[0] in LEARNT]
    if not (for_training and learnt):
        return ""
    return f"learnt from {' and '.join(for_training)}, or chosen on it, which flatters (not weights of your own): {', '.join(learnt)}"


def _video_notes(video: Manifest, policies: Sequence[PolicyCard]) -> Iterator[str]:
    """Sentences on learned policies that play a video unlike those they learnt from."""
    asked = [card.name for card in policies if card.name.split("+")[0] in LEARNT]
    if asked and abs(video.chunk_s - LEARNT_CHUNK_S) > 0.1 * LEARNT_CHUNK_S:
        names = ", ".join(asked)
        yield f"learnt from chunks of {LEARNT_CHUNK_S:g} s, these are of {video.chunk_s:g} s, with which they may do far worse: {names}"
    used = places(video.bitrates_bps).levels
    unused = [f"{mbps_from_bps(bps):g}" for level, bps in enumerate(video.bitrates_bps) if level not in used]
    if unused and (slotted := [name for name in asked if name.split("+")[0] in SLOTTED]):
        never, names = ", ".join(unused), ", ".join(slotted)
        yield f"choose among {len(used)} of the video's {len(video.bitrates_bps)} bitrates, never {never} Mbit/s: {names}"


def _unsimulated_note(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """A sentence on what was asked for and the simulator doesn't know; empty when that is nothing."""
    traces = [trace for trial in trials for trace in (trial.trace, trial.uplink) if trace]
    conditions = [trace.conditions for trace in traces if trace.conditions]
    queue = (experiment.queue, experiment.queue_packets, experiment.aqm)
    unknown = (
        ("the uplink", experiment.uplink is not None),
        ("the traces' delay", any(each.delay_s for each in conditions)),
        ("the traces' loss", any(each.loss for each in conditions)),
        ("the congestion control", experiment.simulate and experiment.cc != Experiment.cc),
        ("the link's back end", experiment.simulate and experiment.link == "kernel"),
        ("the browser", experiment.simulate and experiment.player != Experiment.player),
        ("the deadline", experiment.simulate and experiment.deadline_ms != Experiment.deadline_ms),
        ("the queue's settings", queue != (Experiment.queue, Experiment.queue_packets, Experiment.aqm)),
    )
    if not (told := ", ".join(what for what, given in unknown if given)):
        return ""
    too = "" if experiment.simulate else ": so do the simulated twins of these trials, and their offline optimum"
    return f"the simulator leaves out {told}{too}"


def job(prepared: PreparedPlaybacks, trial: Trial, levels: tuple[int, ...] = (), optimum_grid_s: float | None = None) -> SimulationJob:
    """A trial as work for the simulator twin: under its policy, with the `levels` that an emulated trial chose, or at the optimum."""
    return SimulationJob(
        trial_id=trial.trial_id,
        policy="" if optimum_grid_s else prepared.references[trial.policy],
        session=session(trial, prepared.video, prepared.experiment),
        seed=trial.policy_seed,
        offset_s=trial.offset_s,
        levels=levels,
        optimum_grid_s=optimum_grid_s,
        rate_trace=trial.trace if isinstance(trial.trace, RateTrace) else None,
        opportunity_trace=trial.trace if isinstance(trial.trace, OpportunityTrace) else None,
    )


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
    problems = [*path.problems, *_broken_invariants(trial, playback, chunks, decisions, end, mode)]
    rated = chunks[1:]
    bitrates_bps = [chunk.bitrate_bps for chunk in chunks]
    switches_bps = [abs(b - a) for a, b in pairwise(bitrates_bps)]
    wraps = path.trace_wraps if mode == "emulation" else _wraps(trial, playback, chunks)
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
        **(measured(path, strain) | {"trace_wraps": wraps}),
    )


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
    if abs(end.hiccup_s) > MOST_STARVED_S:
        problems.append(f"playback stood still for {end.hiccup_s:.2f} s with media in the buffer, the browser got no processor")
    problems += starved(end.waited_for_core_s)
    account_s = end.startup_s + end.played_s + end.rebuffer_s + end.hiccup_s
    if abs(account_s - end.wall_s) > WALL_TOLERANCE_S:
        problems.append(f"start-up + playback + rebuffering is {account_s:.3f} s, the wall time {end.wall_s:.3f} s")
    stalled_s = sum(chunk.rebuffer_s for chunk in chunks[1:])
    if abs(stalled_s - end.rebuffer_s) > WALL_TOLERANCE_S:
        problems.append(f"the chunks' stalls are {stalled_s:.3f} s in all, those of the session {end.rebuffer_s:.3f} s")
    carried_bytes = sum(chunk.size_bytes for chunk in chunks)
    if mode == "emulation" and chunks and carried_bytes > most_bytes(trial, chunks[-1].end_s):
        problems.append(f"{carried_bytes} bytes arrived, more than the trace allows by {chunks[-1].end_s:.1f} s")
    return problems


def _wraps(trial: Trial, playback: AbrSession, chunks: Sequence[ChunkRow]) -> int:
    """How often the simulator's trace began anew; its time does not advance during round trips, nor in the pause after the last chunk."""
    busy_s = sum(chunk.download_s - playback.rtt_s + chunk.waited_s for chunk in chunks)
    return int((trial.offset_s % trial.trace.duration_s + busy_s) // trial.trace.duration_s)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
