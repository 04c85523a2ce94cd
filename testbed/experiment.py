"""An experiment from its specification to its result folder: check everything, run the grid, write what was seen."""

import dataclasses
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.console import Console

from controllers.api import Manifest
from controllers.describe import PolicyCard
from testbed.abr import PathFacts, session, trial_row
from testbed.clock import utc_now
from testbed.errors import TestbedError, UserError
from testbed.live import LiveView, print_summary
from testbed.records import PlaybackEndRow, Row, RunHeader, SimulatedRow
from testbed.results import ResultFolder, rebuild, trace_row
from testbed.sim.worker import SimulationJob
from testbed.simulation import simulate
from testbed.spec import Experiment
from testbed.trial import Trial, plan
from testbed.user import invoking_user, popen_as
from traces.store import TraceSet, resolve
from traces.trace import OpportunityTrace, RateTrace

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Prepared:
    """An experiment whose every part was found: nothing in it can be the user's mistake any more."""

    experiment: Experiment
    policies: tuple[PolicyCard, ...]
    traces: tuple[TraceSet, ...]
    video: Manifest
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


class Sink(Protocol):
    """Where the rows of a running experiment go."""

    def row(self, row: Row) -> None:
        """Take a row of a trial that goes on."""


def prepare(experiment: Experiment) -> Prepared:
    """Find policies, traces and video. Raises `UserError` before anything is started."""
    from players.media import default_manifest, load_manifest

    policies = describe_policies(experiment)
    trace_sets = tuple(resolve(reference) for reference in experiment.trace_references)
    video, note = default_manifest() if experiment.video is None else (load_manifest(experiment.video), "")
    experiment = dataclasses.replace(experiment, trace=experiment.trace_references, video=video.name)
    trials = plan(experiment, [card.name for card in policies], [trace for trace_set in trace_sets for trace in trace_set.traces])
    notes = [text for text in (note, *(trace_set.note for trace_set in trace_sets), _wrap_note(trials, experiment.chunks * video.chunk_s)) if text]
    return Prepared(experiment, policies, trace_sets, video, trials, tuple(notes))


def _wrap_note(trials: Sequence[Trial], media_s: float) -> str:
    """A sentence on traces that are shorter than the video; empty when none is."""
    short = {trial.trace.sha256: trial.trace for trial in trials if trial.trace.duration_s < media_s}
    if not short:
        return ""
    names = ", ".join(f"{trace.name} ({trace.duration_s:g} s)" for trace in list(short.values())[:3])
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    return f"shorter than the {media_s:g} s of video, so they wrap: {names}{more}"


def describe_policies(experiment: Experiment) -> tuple[PolicyCard, ...]:
    """Name, label and colour of each policy, read in a process that runs as the user: a policy's file is code."""
    references = [with_backbone(reference, experiment.llm) for reference in experiment.policy_references]
    process = popen_as(
        invoking_user(),
        [sys.executable, "-m", "controllers.describe", *references],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, errors = process.communicate()
    if process.returncode == 2:
        raise UserError(errors.decode().strip())
    if process.returncode != 0:
        raise TestbedError(f"reading the policies failed: {errors.decode().strip()[-2000:]}")
    return msgspec.json.decode(out, type=tuple[PolicyCard, ...])


def with_backbone(reference: str, llm: str | None) -> str:
    """A policy reference with the experiment's backbone added where it matters."""
    bare = reference.partition("+")[0]
    return f"{reference}+llm={llm}" if llm and bare == "netllm" and "+llm=" not in reference else reference


def run(experiment: Experiment, console: Console) -> None:
    """Run an experiment and leave its result folder; the summary is printed."""
    prepared = prepare(experiment)
    for note in prepared.notes:
        console.print(f"note: {note}")
    if experiment.simulate:
        _recorded(prepared, console, lambda recorder: simulate(jobs(prepared, prepared.trials), recorder.row), {})
    else:
        from testbed.emulation import emulated

        references = {card.name: card.reference for card in prepared.policies}
        with emulated(prepared.experiment, prepared.trials, prepared.video, references) as emulation:
            _recorded(prepared, console, emulation.run, emulation.facts)


def jobs(prepared: Prepared, trials: Iterable[Trial]) -> list[SimulationJob]:
    """The trials as work for the simulator twin."""
    references = {card.name: card.reference for card in prepared.policies}
    return [
        SimulationJob(
            trial_id=trial.trial_id,
            policy=references[trial.policy],
            session=session(trial, prepared.video, prepared.experiment),
            seed=trial.seed,
            offset_s=trial.offset_s,
            rate_trace=trial.trace if isinstance(trial.trace, RateTrace) else None,
            opportunity_trace=trial.trace if isinstance(trial.trace, OpportunityTrace) else None,
        )
        for trial in trials
    ]


class Recorder:
    """Takes rows from all lanes, writes them through to the result folder and closes each trial."""

    def __init__(self, prepared: Prepared, folder: ResultFolder, view: LiveView) -> None:
        self._prepared, self._folder, self._view = prepared, folder, view
        self._trials = {trial.trial_id: trial for trial in prepared.trials}
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self.ended: list[Trial] = []

    def started(self, trial: Trial, lane: int) -> None:
        """A trial begins in a lane."""
        self._view.trial_started(trial.trial_id, trial.policy, trial.trace.name, lane)

    def row(self, row: Row) -> None:
        """A row of a trial; in simulation the playback's end closes the trial."""
        self._rows[row.trial_id].append(row)
        if isinstance(row, PlaybackEndRow):
            if self._prepared.experiment.simulate:
                self.close(row.trial_id, PathFacts())
            return
        self._folder.append(row)
        self._view.row(row)

    def extend(self, rows: Iterable[Any]) -> None:
        """Link counters of a trial, by the thousand."""
        self._folder.extend(rows)

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self._view.note(text)

    def close(self, trial_id: str, path: PathFacts) -> None:
        """A trial is over: judge it and write its row."""
        trial = self._trials[trial_id]
        playback = session(trial, self._prepared.video, self._prepared.experiment)
        mode = "simulation" if self._prepared.experiment.simulate else "emulation"
        row = trial_row(trial, playback, self._rows.pop(trial_id, []), path, mode)
        self._folder.append(row)
        self._view.trial_ended(row)
        self.ended.append(trial)


def _recorded(prepared: Prepared, console: Console, work: Callable[[Recorder], None], facts: dict[str, Any]) -> None:
    """Do `work` with a new result folder; the folder is finished whatever happens."""
    folder = ResultFolder.create(Path(prepared.experiment.out), _header(prepared, facts), utc_now())
    for trace in {trial.trace.sha256: trial.trace for trial in prepared.trials}.values():
        folder.append(trace_row(trace))
    reason = "failed"
    try:
        with LiveView(len(prepared.trials), prepared.experiment.chunks, console) as view:
            recorder = Recorder(prepared, folder, view)
            work(recorder)
            if not prepared.experiment.simulate:
                view.note("running the same trials in the simulator twin")
                _twins(prepared, recorder.ended, folder)
        reason = "complete"
    except KeyboardInterrupt:
        reason = "interrupted"
        raise
    finally:
        summary = folder.finish(reason)
        print_summary(summary, console)
        console.print(f"results: {folder.path}  (report: {folder.path / 'report.html'})")


def _twins(prepared: Prepared, trials: Iterable[Trial], folder: ResultFolder) -> None:
    """Score each emulated trial's twin in the simulator."""
    qoe: dict[str, list[float]] = defaultdict(list)

    def take(row: Row) -> None:
        if getattr(row, "qoe", None) is not None and getattr(row, "index", 0) > 0:
            qoe[row.trial_id].append(row.qoe)  # type: ignore[union-attr]

    simulate(jobs(prepared, trials), take)
    for trial_id, values in qoe.items():
        folder.append(SimulatedRow(trial_id=trial_id, qoe=sum(values) / len(values)))


def _header(prepared: Prepared, facts: dict[str, Any]) -> RunHeader:
    from testbed.doctor import host_facts, versions

    experiment = prepared.experiment
    sets = prepared.traces
    return RunHeader(
        task=experiment.task,
        mode="simulation" if experiment.simulate else "emulation",
        metric="qoe_lin",
        unit="per chunk",
        started_utc=utc_now().isoformat(timespec="seconds"),
        command=shlex.join(["testbed/run.py", *sys.argv[1:]]),
        commit=_commit(),
        spec=msgspec.to_builtins(experiment),
        experiment_toml=experiment.to_toml(),
        policies={card.name: {"label": card.label, "colour": card.colour, "citation": card.citation} for card in prepared.policies},
        trace={
            "name": "+".join(s.name for s in sets),
            "split": "+".join(s.split for s in sets),
            "source": "+".join(sorted({s.source for s in sets})),
            "traces": len({trial.group for trial in prepared.trials}) // len(experiment.seeds),
            "sha256": "+".join(s.sha256 for s in sets),
        },
        versions=versions(),
        host=host_facts() | facts,
        notes=list(prepared.notes),
    )


def _commit() -> str:
    """The checkout's commit, with `+` when files differ from it; empty outside git."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if dirty else "")


def report(folder: Path, figures: str | None, console: Console) -> None:
    """Rebuild everything derived in a result folder."""
    if figures not in (None, "pdf", "png", "svg"):
        raise UserError(f"--figures is {figures}, wanted pdf, png or svg")
    summary = rebuild(folder.resolve(), figures=figures)
    print_summary(summary, console)
    console.print(f"report: {folder / 'report.html'}")


def clean(console: Console) -> None:
    """Remove what a killed run left, and nothing else."""
    from testbed import owned

    owned.require_root()
    removed = owned.clean()
    for item in removed:
        console.print(f"removed {item}")
    if not removed:
        console.print("nothing to remove")


def list_all(console: Console) -> None:
    """Tasks, traces, videos and policies."""
    from rich.table import Table

    from controllers.loader import discover
    from traces.store import list_sets

    console.print("[bold]tasks[/]: abr")
    table = Table("data set", "kind", "splits (files)", "format", "where")
    for item in list_sets():
        splits = ", ".join(f"{name or 'all'} ({files})" for name, files in item.splits)
        table.add_row(item.name, item.kind, splits, item.format, item.where)
    console.print(table)
    experiment = Experiment(policies=",".join(discover()))
    table = Table("policy", "label", "source")
    for card in describe_policies(experiment):
        table.add_row(card.name, card.label, card.citation)
    console.print(table)
    console.print("Your own: --policies ~/mine.py (a file with one AbrPolicy), or package.module:Class")


