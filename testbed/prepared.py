"""`Prepared`: an experiment with everything it names found; and its trials as work for the simulator twin."""

import dataclasses
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from controllers.api import AbrSession, CjsSession, Manifest, VpSession
from controllers.describe import Question
from controllers.stdio import Fault
from players.config import OriginConfig, PlayerConfig
from players.dash.messages import DashConfig
from players.dash.stock import STOCK
from players.media import default_manifest, load_manifest
from testbed.abr import PathFacts, session, trial_row
from testbed.controller import LOAD_S
from testbed.dashjs import library
from testbed.encode import film_folder
from testbed.errors import TestbedError, UserError
from testbed.pressure import Strain
from testbed.records import ChunkRow, PlaybackEndRow, Row, TrialRow
from testbed.records_trial import TrialBase
from testbed.spec import Experiment
from testbed.trial import Trial, plan
from testbed.twin import SimulationJob
from testbed.units import s_from_ms
from testbed.user import invoking_user, popen_tied
from traces.store import TraceSet, resolve, resolve_uplink
from traces.trace import OpportunityTrace, RateTrace, Trace

DEFAULT_POLICIES = "netllm,robust_mpc,bola,bba"


@dataclass(frozen=True)
class PolicyCard:
    """How a policy is named and shown, and the reference that loads it in any process from anywhere."""

    name: str
    label: str
    colour: str
    citation: str
    reference: str


@dataclass(frozen=True)
class Prepared(ABC):
    """An experiment whose every part was found: nothing in it can be the user's mistake any more. What is the task's own is here too."""

    experiment: Experiment
    policies: tuple[PolicyCard, ...]
    traces: tuple[TraceSet, ...]
    trials: tuple[Any, ...]
    """Each has a `trial_id`, a `group` that it shares with those it is compared with, a `policy` and a `name` of what it plays."""
    notes: tuple[str, ...]

    metric: ClassVar[str]
    unit: ClassVar[str]
    closing: ClassVar[type]
    """The row that ends a simulated trial."""
    step: ClassVar[type]
    """The row of which a trial has `steps`."""
    twinned: ClassVar[bool] = True
    """Whether a trial played in real time is simulated, too."""

    @property
    def references(self) -> dict[str, str]:
        """Name of a policy in tables to what loads it."""
        return {card.name: card.reference for card in self.policies}

    @property
    def cells(self) -> int:
        """What each policy meets, seeds not counted."""
        return len({trial.group for trial in self.trials}) // len(self.experiment.seeds)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Of each trial: what its progress is told in."""

    @property
    @abstractmethod
    def links(self) -> tuple[Trace, ...]:
        """All traces of the trials' links, for the figures."""

    @abstractmethod
    def job(self, trial: Any) -> Any:
        """A trial as work for the simulator twin."""

    @abstractmethod
    def row(self, trial: Any, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> TrialBase:
        """A trial that is over, judged."""


@dataclass(frozen=True)
class PreparedInLanes(Prepared):
    """Of what plays in lanes: a player in each, with an origin of its own."""

    @property
    @abstractmethod
    def player(self) -> str:
        """Module of the player's process."""

    @property
    @abstractmethod
    def largest_bytes(self) -> int:
        """The most that a player asks for at once."""

    @abstractmethod
    def origin_config(self, host: str, port: int, start_socket: str) -> OriginConfig:
        """What a lane's origin serves."""

    @abstractmethod
    def player_config(self, trial: Any, origin_url: str, controller_url: str) -> PlayerConfig:
        """What the player of a trial is told."""

    def handed(self, trial: Any, config: PlayerConfig, kept: Callable[[], Path], picture: Path | None) -> PlayerConfig | DashConfig:
        """`config`, or what holds it for a player that needs more; `kept` gives a folder for what it showed, its `picture` goes there."""
        return config


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
        """One video; for browsers with a film."""
        film = None if self.experiment.player == "headless" else str(film_folder())
        return OriginConfig(host=host, port=port, videos=(self.video,), film=film, start_socket=start_socket)

    def player_config(self, trial: Trial, origin_url: str, controller_url: str) -> PlayerConfig:
        """One playback."""
        return PlayerConfig(
            trial_id=trial.trial_id,
            origin_url=origin_url,
            controller_url=controller_url,
            policy=self.references[trial.policy],
            seed=trial.seed,
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


def prepare(experiment: Experiment) -> Prepared:
    """Find all that an experiment names. Raises `UserError` before anything is started."""
    if experiment.task == "cjs":
        from testbed.cjs import prepare_schedules

        return prepare_schedules(experiment)
    if experiment.task == "vp":
        from testbed.vp import prepare_viewings

        return prepare_viewings(experiment)
    return prepare_playbacks(experiment)


def prepare_playbacks(experiment: Experiment) -> PreparedPlaybacks:
    """Find policies, traces and video."""
    if not experiment.policy_references:
        experiment = dataclasses.replace(experiment, policies=DEFAULT_POLICIES)
    video, note = default_manifest() if experiment.video is None else (load_manifest(experiment.video), "")
    policies = describe_policies(experiment, video)
    trace_sets = tuple(resolve(reference) for reference in experiment.trace_references)
    uplink = resolve_uplink(experiment.uplink) if experiment.uplink else None
    experiment = dataclasses.replace(
        experiment,
        trace=tuple(from_anywhere(*pair) for pair in zip(experiment.trace_references, trace_sets, strict=True)),
        uplink=from_anywhere(experiment.uplink, uplink) if experiment.uplink and uplink else None,
        policies=",".join(card.reference for card in policies),
        video=video.name,
    )
    traces = {(trace.name, trace.sha256): trace for trace_set in trace_sets for trace in trace_set.traces}
    trials = plan(experiment, [card.name for card in policies], list(traces.values()), uplink.traces if uplink else ())
    found = dict.fromkeys(each.note for each in (*trace_sets, *([uplink] if uplink else [])))
    notes = (note, *found, _wrap_note(trials, experiment.chunks * video.chunk_s), _unsimulated_note(experiment, trials))
    return PreparedPlaybacks(experiment, policies, trace_sets, trials, tuple(text for text in notes if text), video, uplink)


def from_anywhere(reference: str, found: TraceSet) -> str:
    """The reference as it works from any folder, for `experiment.toml`."""
    return str(Path(reference).expanduser().resolve()) if found.source == "path" else reference


def _wrap_note(trials: Sequence[Trial], media_s: float) -> str:
    """A sentence on traces that are shorter than the video; empty when none is."""
    used = {trace.sha256: trace for trial in trials for trace in (trial.trace, trial.uplink) if trace}
    short = {sha256: trace for sha256, trace in used.items() if trace.duration_s < media_s}
    if not short:
        return ""
    names = ", ".join(f"{trace.name} ({trace.duration_s:g} s)" for trace in list(short.values())[:3])
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    return f"shorter than the {media_s:g} s of video, so they wrap: {names}{more}"


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


def describe_policies(
    experiment: Experiment,
    video: Manifest | None = None,
    scheduling: CjsSession | None = None,
    viewing: VpSession | None = None,
) -> tuple[PolicyCard, ...]:
    """Name, label and colour of each policy, read in a process that runs as the user: a policy's file is code.

    Given the `video`, or the `scheduling` or `viewing` session, each policy is made and starts a session once, so that one that can't is
    the user's mistake before anything runs.
    """
    stock = _stock_cards(experiment, video is not None)
    asked = tuple(with_backbone(reference, experiment.llm) for reference in experiment.policy_references if reference not in stock)
    playing = AbrSession("start", video, experiment.chunks, rtt_s=s_from_ms(experiment.rtt_ms)) if video else None
    question = Question(
        references=asked, session=playing, seed=experiment.seeds[0], task=experiment.task, scheduling=scheduling, viewing=viewing
    )
    loaded = iter(_loaded_cards(question, experiment.llm) if asked else ())
    return tuple(stock.get(reference) or next(loaded) for reference in experiment.policy_references)


def _stock_cards(experiment: Experiment, to_play: bool) -> dict[str, PolicyCard]:
    """Those of the policies that are dash.js's own rules. They decide nowhere but in the browser."""
    named = [reference for reference in experiment.policy_references if reference in STOCK]
    if named and to_play and (experiment.simulate or experiment.player == "headless"):
        how = "--simulate" if experiment.simulate else "--player headless"
        raise UserError(f"policy {named[0]!r} with {how}: it decides inside the browser, wanted --player dashjs")
    return {name: PolicyCard(name, STOCK[name].label, STOCK[name].colour, STOCK[name].citation, name) for name in named}


def _loaded_cards(question: Question, llm: str | None) -> tuple[PolicyCard, ...]:
    command = [sys.executable, "-m", "controllers.describe"]
    with tempfile.TemporaryFile() as said:  # no pipe: a helper that a policy starts would hold it open
        process = popen_tied(invoking_user(), command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        out = _answered(process, question)
        said.seek(0)
        errors = said.read()
    try:
        answer = msgspec.json.decode(out, type=tuple[PolicyCard, ...] | Fault)
    except msgspec.DecodeError:
        told = errors.decode(errors="replace").strip()[-2000:]
        raise TestbedError(f"reading the policies ended with code {process.returncode}: {told}") from None
    if isinstance(answer, Fault):
        raise UserError(answer.sentence)
    return tuple(_named_as_asked(card, llm) for card in answer)


def _answered(process: subprocess.Popen[bytes], question: Question) -> bytes:
    with process:
        try:
            return process.communicate(msgspec.json.encode(question), timeout=LOAD_S)[0]
        except subprocess.TimeoutExpired:
            names = ", ".join(question.references)
            raise UserError(f"policies {names}: importing and starting them took over {LOAD_S:g} s, wanted less") from None
        finally:
            process.kill()


def with_backbone(reference: str, llm: str | None) -> str:
    """A policy reference with the experiment's backbone added where it matters."""
    bare = reference.partition("+")[0]
    return f"{reference}+llm={llm}" if llm and bare == "netllm" and "+llm=" not in reference else reference


def _named_as_asked(card: PolicyCard, llm: str | None) -> PolicyCard:
    """`--llm` is a setting of the experiment, not part of a policy's name."""
    added = f"+llm={llm}"
    return dataclasses.replace(card, name=card.name.removesuffix(added), label=card.label.removesuffix(added)) if llm else card


def job(prepared: PreparedPlaybacks, trial: Trial, levels: tuple[int, ...] = (), optimum_grid_s: float | None = None) -> SimulationJob:
    """A trial as work for the simulator twin: under its policy, with the `levels` that an emulated trial chose, or at the optimum."""
    return SimulationJob(
        trial_id=trial.trial_id,
        policy="" if optimum_grid_s else prepared.references[trial.policy],
        session=session(trial, prepared.video, prepared.experiment),
        seed=trial.seed,
        offset_s=trial.offset_s,
        levels=levels,
        optimum_grid_s=optimum_grid_s,
        rate_trace=trial.trace if isinstance(trial.trace, RateTrace) else None,
        opportunity_trace=trial.trace if isinstance(trial.trace, OpportunityTrace) else None,
    )
