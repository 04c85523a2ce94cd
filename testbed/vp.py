"""The viewport workload: its trials, what one trial's rows add up to, and whether they can be trusted.

| | live | `--simulate` |
| --- | --- | --- |
| a trial | one policy, one trace, one recorded viewing | one policy, one viewer of the test split on all its videos |
| asked | once a segment, that is once a second | at each window of NetLLM's figures |
| metric | QoE per second: Mbit/s in view - 4.3 x stall s - change in Mbit/s | mean absolute error, degrees |

The quality of a segment is the bitrate of the whole picture at the level in view, averaged over viewport and segment (viewport quality,
rebuffering and change are the parts of DRL360's QoE, Zhang et al., INFOCOM 2019; weights are those of `testbed.metrics`, Pensieve's).
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from controllers.api import VpSession
from controllers.loader import KINDS, discover
from players.config import HeadsetConfig, OriginConfig
from players.tiles import TiledVideo, synthetic_tiles
from testbed.errors import UserError
from testbed.policycards import describe_policies, from_any_folder
from testbed.prepared import Prepared, PreparedInLanes, from_anywhere, unread_note
from testbed.pressure import Strain
from testbed.records import Row
from testbed.records_vp import PredictionRow, SegmentRow, ViewingEndRow, ViewingRow
from testbed.spec import Experiment
from testbed.trial import Trial, in_turn, partner, spread, wrap_note
from testbed.twin_vp import ViewerJob
from testbed.units import mbps_from_bps, s_from_ms
from testbed.verdict import WALL_TOLERANCE_S, PathFacts, measured, most_bytes, starved
from traces.store import resolve, resolve_uplink
from traces.trace import Trace
from traces.viewport_splits import DATASET, TEST, find_split, load_split
from traces.viewports import RATE_HZ, HeadMovement
from traces.windows import cut, find_rule

DEFAULT_POLICIES = ("netllm", "track", "mlp", "linear_l1", "static")
"""Those of them that are there."""
NEEDS = {"netllm": "adapters/vp/netllm.json", "track": "weights/track.safetensors"}
STRIDE = 47
"""From one trial's viewing to the next one's: two videos and five viewers on, and through all 126 before one comes again."""
RULE = "figures"
"""Windows that are predicted in simulation (`traces/windows.py`)."""


@dataclass(frozen=True)
class ViewingTrial(Trial):
    """One cell of the live grid; those of a group share the viewing, too."""

    viewing: HeadMovement | None = None


@dataclass(frozen=True)
class ViewerTrial:
    """One cell of the simulated grid: one policy, one viewer."""

    trial_id: str
    group: int
    policy: str
    seed: int
    viewer: int
    sha256: str

    @property
    def name(self) -> str:
        """What it plays."""
        return f"viewer {self.viewer}"


@dataclass(frozen=True)
class PreparedViewings(PreparedInLanes):
    """Of the live headset."""

    video: TiledVideo

    metric = "viewport_qoe"
    unit = "per second"
    closing = ViewingEndRow
    step = SegmentRow
    twinned = False
    player = "players.headset"

    @property
    def steps(self) -> int:
        """Segments."""
        return self.experiment.chunks

    @property
    def links(self) -> tuple[Trace, ...]:
        """Downlinks."""
        return tuple(trial.trace for trial in self.trials)

    @property
    def largest_bytes(self) -> int:
        """A segment with all tiles at the highest level."""
        return max(sum(sizes[-1] for sizes in segment) for segment in self.video.sizes_bytes)

    def origin_config(self, host: str, port: int, start_socket: str) -> OriginConfig:
        """One tiled video."""
        return OriginConfig(host=host, port=port, videos=(), tiled=(self.video,), start_socket=start_socket)

    def player_config(self, trial: ViewingTrial, origin_url: str, controller_url: str) -> HeadsetConfig:
        """One viewing."""
        assert trial.viewing
        experiment = self.experiment
        samples = round(experiment.chunks * self.video.segment_s * RATE_HZ)
        return HeadsetConfig(
            trial_id=trial.trial_id,
            origin_url=origin_url,
            controller_url=controller_url,
            policy=self.references[trial.policy],
            seed=trial.policy_seed,
            video=self.video.name,
            chunks=experiment.chunks,
            rtt_s=s_from_ms(experiment.rtt_ms),
            deadline_s=s_from_ms(experiment.deadline_ms),
            angles_deg=tuple(tuple(row) for row in trial.viewing.angles_deg[:samples].tolist()),
            rate_hz=RATE_HZ,
            front_deg=find_split(TEST).front_deg,
            horizon=round(experiment.horizon * RATE_HZ),
            history=round(experiment.history * RATE_HZ),
        )

    def job(self, trial: Any) -> Any:
        """There is none."""
        raise NotImplementedError("a live viewing has no twin")

    def row(self, trial: ViewingTrial, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> ViewingRow:
        """A trial that is over, judged."""
        assert trial.viewing
        segments, predictions, end = _sorted_out(rows)
        problems = _broken_invariants(trial, self.experiment.chunks, segments, predictions, end)
        qualities = [mbps_from_bps(segment.quality_bps) for segment in segments]
        carried = sum(segment.size_bytes for segment in segments)
        return ViewingRow(
            **_common(trial, trial.trace.name, trial.trace.sha256, predictions, end, [*path.problems, *problems]),
            offset_s=trial.offset_s,
            mode="emulation",
            attempt=attempt,
            viewer=trial.viewing.user,
            video=trial.viewing.video,
            qoe=_mean([segment.qoe for segment in segments[1:]]),
            quality_mbps=_mean(qualities[1:]),
            rebuffer_s=_mean([segment.rebuffer_s for segment in segments[1:]]),
            switch_mbps=_mean([abs(b - a) for a, b in pairwise(qualities)]),
            blank_share=_mean([segment.blank_share for segment in segments[1:]]),
            wasted_share=sum(segment.wasted_bytes for segment in segments) / carried if carried else None,
            startup_s=end.startup_s if end else None,
            segments=len(segments),
            **measured(path, strain),
        )


@dataclass(frozen=True)
class PreparedPredictions(Prepared):
    """Of `--simulate`."""

    metric = "mae_deg"
    unit = "degrees"
    closing = ViewingEndRow
    step = PredictionRow

    @property
    def steps(self) -> int:
        """Windows of a viewer, about."""
        viewings = [each for each in load_split(TEST) if each.user == self.trials[0].viewer]
        return len(cut(viewings, find_rule(RULE), self.experiment.history, self.experiment.horizon))

    @property
    def links(self) -> tuple[Trace, ...]:
        """None."""
        return ()

    def job(self, trial: ViewerTrial) -> ViewerJob:
        """A trial as work for the simulator."""
        return ViewerJob(
            trial_id=trial.trial_id,
            policy=self.references[trial.policy],
            seed=trial.seed,
            split=TEST,
            viewer=trial.viewer,
            rule=RULE,
            history_s=self.experiment.history,
            horizon_s=self.experiment.horizon,
        )

    def row(self, trial: ViewerTrial, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> ViewingRow:
        """A trial that is over, judged."""
        _, predictions, end = _sorted_out(rows)
        problems = [] if end and end.end_reason == "complete" else [f"ended early: {end.end_reason if end else 'the worker died'}"]
        return ViewingRow(
            **_common(trial, trial.name, trial.sha256, predictions, end, problems),
            offset_s=0.0,
            mode="simulation",
            attempt=attempt,
            viewer=trial.viewer,
            video=None,
            qoe=None,
            quality_mbps=None,
            rebuffer_s=None,
            switch_mbps=None,
            blank_share=None,
            wasted_share=None,
            startup_s=None,
            segments=0,
            **measured(path, strain),
        )


def prepare_viewings(experiment: Experiment) -> PreparedViewings | PreparedPredictions:
    """Find policies, head movement, and what the trials play over."""
    if not experiment.policy_references:
        experiment = dataclasses.replace(experiment, policies=",".join(default_policies()))
    split = find_split(TEST)
    viewings = load_split(TEST)
    session = VpSession("start", round(experiment.horizon * RATE_HZ), RATE_HZ, split.front_deg)
    policies = describe_policies(experiment, viewing=session)
    experiment = from_any_folder(experiment, policies)
    names = [card.name for card in policies]
    if experiment.simulate:
        trials = _viewers(experiment, names, viewings)
        notes = (f"head movement: {DATASET}/{TEST}, windows {RULE!r}", *unread_note(experiment))
        return PreparedPredictions(experiment, policies, (), trials, notes)
    sets = tuple(resolve(reference) for reference in experiment.trace_references)
    uplink = resolve_uplink(experiment.uplink) if experiment.uplink else None
    experiment = dataclasses.replace(
        experiment,
        trace=tuple(from_anywhere(*pair) for pair in zip(experiment.trace_references, sets, strict=True)),
        uplink=from_anywhere(experiment.uplink, uplink) if experiment.uplink and uplink else None,
    )
    traces = list({(trace.name, trace.sha256): trace for each in sets for trace in each.traces}.values())
    grid = _grid(experiment, names, traces, uplink.traces if uplink else (), viewings)
    video = synthetic_tiles()
    found = dict.fromkeys(each.note for each in (*sets, *([uplink] if uplink else [])))
    notes = tuple(text for text in (*found, wrap_note(grid, experiment.chunks * video.segment_s)) if text)
    return PreparedViewings(experiment, policies, sets, grid, notes, video)


def default_policies() -> list[str]:
    """Of `DEFAULT_POLICIES` those that are in this checkout, trained."""
    folder = KINDS["vp"].folder
    places = {"netllm": folder.parents[1] / "netllm", "track": folder}
    there = discover(folder)
    return [name for name in DEFAULT_POLICIES if name in there and (name not in NEEDS or (places[name] / NEEDS[name]).is_file())]


def _grid(
    experiment: Experiment, names: Sequence[str], traces: Sequence[Trace], uplinks: Sequence[Trace], viewings: Sequence[HeadMovement]
) -> tuple[ViewingTrial, ...]:
    """The paired grid: each trace and seed with a viewing of its own, of those that are long enough."""
    video = synthetic_tiles()
    wanted = round(experiment.chunks * video.segment_s * RATE_HZ)
    turns = [viewings[i * STRIDE % len(viewings)] for i in range(len(viewings))]
    turns = [each for each in turns if len(each.angles_deg) >= wanted]
    if not turns:
        longest = max(len(each.angles_deg) for each in viewings)
        raise UserError(f"--chunks is {experiment.chunks}, wanted fewer: that takes {wanted} samples, the longest viewing has {longest}")
    cells = [(trace, seed) for trace in spread(traces, experiment.trials) for seed in experiment.seeds]
    trials: list[ViewingTrial] = []
    for group, (trace, seed) in enumerate(cells):
        viewing = turns[group % len(turns)]
        uplink = partner(trace, uplinks)
        for name in in_turn(names, group):
            trials.append(ViewingTrial(f"t{len(trials):04d}", group, name, trace, experiment.offset_s, seed, uplink, viewing))
    return tuple(trials)


def _viewers(experiment: Experiment, names: Sequence[str], viewings: Sequence[HeadMovement]) -> tuple[ViewerTrial, ...]:
    users = list(dict.fromkeys(viewing.user for viewing in viewings))
    count = len(users) if experiment.trials == "all" else min(experiment.trials, len(users))
    chosen = [users[i * len(users) // count] for i in range(count)]
    trials: list[ViewerTrial] = []
    for group, (user, seed) in enumerate((user, seed) for user in chosen for seed in experiment.seeds):
        sha256 = hashlib.sha256(b"".join(np.ascontiguousarray(each.angles_deg).tobytes() for each in viewings if each.user == user))
        trials += [ViewerTrial(f"t{len(trials) + i:04d}", group, name, seed, user, sha256.hexdigest()) for i, name in enumerate(names)]
    return tuple(trials)


def _sorted_out(rows: Sequence[Row]) -> tuple[list[SegmentRow], list[PredictionRow], ViewingEndRow | None]:
    segments = [row for row in rows if isinstance(row, SegmentRow)]
    predictions = [row for row in rows if isinstance(row, PredictionRow)]
    return segments, predictions, next((row for row in rows if isinstance(row, ViewingEndRow)), None)


def _common(
    trial: Any, name: str, sha256: str, predictions: Sequence[PredictionRow], end: ViewingEndRow | None, problems: Sequence[str]
) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "policy": trial.policy,
        "trace": name,
        "trace_sha256": sha256,
        "seed": trial.seed,
        "end_reason": end.end_reason if end else "player_died",
        "valid": not problems,
        "invalid_reason": "; ".join(problems),
        "decisions": len(predictions),
        "fallbacks": sum(row.source == "fallback" for row in predictions),
        "mae_deg": _mean([row.mae_deg for row in predictions if row.mae_deg is not None]),
        "wall_s": end.wall_s if end else None,
    }


def _broken_invariants(
    trial: ViewingTrial,
    wanted: int,
    segments: Sequence[SegmentRow],
    predictions: Sequence[PredictionRow],
    end: ViewingEndRow | None,
) -> list[str]:
    """Sentences on what a trial promised and did not keep."""
    if end is None:
        return ["ended early: the player died"]
    if end.end_reason != "complete":
        return [f"ended early: {end.end_reason}" + (f" ({end.detail})" if end.detail else "")]
    problems = []
    if [segment.index for segment in segments] != list(range(wanted)):
        problems.append(f"{len(segments)} segments were played, wanted {wanted} in order")
    if len(predictions) != wanted:
        problems.append(f"{len(predictions)} predictions were asked for, wanted {wanted}")
    if predictions and all(row.source == "fallback" for row in predictions):
        problems.append(f"the policy predicted nothing, all {len(predictions)} fell back ({predictions[0].reason})")
    problems += starved(end.waited_for_core_s)
    account_s = end.startup_s + end.played_s + end.rebuffer_s
    if abs(account_s - end.wall_s) > WALL_TOLERANCE_S:
        problems.append(f"start-up + playback + rebuffering is {account_s:.3f} s, the wall time {end.wall_s:.3f} s")
    carried_bytes = sum(segment.size_bytes for segment in segments)
    last_s = max((segment.end_s for segment in segments), default=0.0)
    if carried_bytes > most_bytes(trial, last_s):
        problems.append(f"{carried_bytes} bytes arrived, more than the trace allows by {last_s:.1f} s")
    return problems


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
