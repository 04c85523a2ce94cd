"""An experiment from its specification to its result folder: check everything, run the grid, write what was seen."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console

from players.dash.stock import STOCK
from testbed.abr import PreparedPlaybacks
from testbed.clock import utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError
from testbed.host import host_facts, versions
from testbed.live import LiveView, View
from testbed.netns import owned
from testbed.optima import one_a_cell, optima
from testbed.policycards import PolicyCard, describe_policies
from testbed.prepared import Prepared, PreparedInLanes
from testbed.recorder import Recorder, schedule_twins, twins
from testbed.records import OptimumRow, RunHeader
from testbed.results import ResultFolder, check_base, trace_row
from testbed.shapers.userspace import NOT_BUILT
from testbed.simulation import simulate
from testbed.spec import Experiment
from testbed.tasks import prepare
from testbed.terminal import print_summary
from testbed.user import User, expanded
from traces.store import TraceSet

LIVE_TASKS: tuple[Literal["abr", "cjs", "vp"], ...] = ("abr", "cjs", "vp")


def run(experiment: Experiment, console: Console) -> None:
    """Run an experiment and leave its result folder; the summary is printed."""
    if not (experiment.simulate or experiment.cluster):
        owned.require_root()
    check_base(expanded(experiment.out))
    prepared = prepare(experiment)
    for note in prepared.notes:
        console.print(f"note: {note}", markup=False)
    if experiment.simulate:
        _recorded(prepared, console, lambda recorder: simulate([prepared.job(trial) for trial in prepared.trials], recorder.row), {})
        return
    with contextlib.ExitStack() as network:
        emulation = network.enter_context(_emulated(prepared))

        def play(recorder: Recorder) -> None:
            emulation.run(recorder)
            network.close()  # what is computed next has the machine for itself

        _recorded(prepared, console, play, emulation.facts, emulation.pictures)


def _emulated(prepared: Prepared) -> AbstractContextManager[Any]:
    """All that real time needs, brought up: it has `facts`, and plays the trials in `run`."""
    from testbed import cjs_cluster, emulation
    from testbed.cjs import PreparedSchedules

    if isinstance(prepared, PreparedInLanes):
        return emulation.emulated(prepared)
    assert isinstance(prepared, PreparedSchedules)  # what is neither was simulated
    if prepared.experiment.cluster:
        return cjs_cluster.joined(prepared)
    return cjs_cluster.emulated(prepared)


def _recorded(
    prepared: Prepared, console: Console, work: Callable[[Recorder], None], facts: dict[str, Any], pictures: Path | None = None
) -> None:
    """Do `work` with a new result folder; the folder is finished whatever happens."""
    folder = ResultFolder.create(expanded(prepared.experiment.out), _header(prepared, facts), utc_now())
    for trace in {trace.sha256: trace for trace in prepared.links}.values():
        folder.append(trace_row(trace))
    reason = "failed"
    try:
        with (
            LiveView(len(prepared.trials), prepared.steps, console, step=prepared.step) as terminal,
            _shown(terminal, prepared, pictures) as view,
        ):
            recorder = Recorder(prepared, folder, view)
            work(recorder)
            if prepared.twinned and not prepared.experiment.simulate:
                view.note("running the same trials in the simulator twin")
                _add_twins(prepared, recorder, folder)
            if isinstance(prepared, PreparedPlaybacks):
                _add_optima(prepared, view, folder)
        if lost := len(prepared.trials) - recorder.closed:
            raise TestbedError(f"{lost} of {len(prepared.trials)} trials left no result, wanted all")
        reason = "complete"
    except (KeyboardInterrupt, SystemExit):
        reason = "interrupted"
        raise
    finally:
        with owned.undisturbed():
            folder.finish(reason)
            summary = _built(folder.path, folder.owner)
        print_summary(summary, console)
        console.print(f"results: {folder.path}  (report: {folder.path / 'report.html'})", markup=False, soft_wrap=True)
    if summary["policies"] and all(row["failed"] for row in summary["policies"].values()):
        raise TestbedError("every policy failed, as the notes above say")


@contextlib.contextmanager
def _shown(terminal: LiveView, prepared: Prepared, pictures: Path | None) -> Iterator[View]:
    """The terminal's view, with the page of `--show` before it when that is asked for."""
    if not prepared.experiment.show or pictures is None:
        yield terminal
        return
    from testbed.show import Show, served

    assert isinstance(prepared, PreparedPlaybacks)  # no other task has the option
    show = Show(terminal, prepared, pictures)
    with served(show) as url:
        terminal.note(f"live: {url}")
        yield show


def _add_twins(prepared: Prepared, recorder: Recorder, folder: ResultFolder) -> None:
    """Put each trial's twin beside it. What was emulated stands without them, too."""
    try:
        played = recorder.played
        folder.extend(twins(prepared, played) if isinstance(prepared, PreparedPlaybacks) else schedule_twins(prepared, played))
    except (TestbedError, UserError) as error:
        recorder.note(f"no comparison with the simulator: {error}")


def _add_optima(prepared: PreparedPlaybacks, view: View, folder: ResultFolder) -> None:
    """Put each trace's offline optimum beside its trials, now that no trial is played."""
    view.stage("finding the offline optimum", len(one_a_cell(prepared.trials)), "trace")

    def take(row: OptimumRow) -> None:
        folder.append(row)
        view.advance()

    optima(prepared, take)


def _header(prepared: Prepared, facts: dict[str, Any]) -> RunHeader:
    experiment = prepared.experiment
    sets = list({(s.name, s.split, s.sha256): s for s in prepared.traces}.values())  # named twice, counts once
    uplink, video = (prepared.uplink, prepared.video) if isinstance(prepared, PreparedPlaybacks) else (None, None)
    return RunHeader(
        task=experiment.task,
        mode="simulation" if experiment.simulate else "cluster" if experiment.cluster else "emulation",
        metric=prepared.metric,
        unit=prepared.unit,
        started_utc=utc_now().isoformat(timespec="seconds"),
        command=shlex.join(["testbed/run.py", *sys.argv[1:]]),
        commit=checkout_commit(),
        spec=msgspec.to_builtins(experiment),
        experiment_toml=experiment.to_toml(),
        policies={card.name: _described(card) for card in prepared.policies},
        trace={
            "name": "+".join(s.name for s in sets),
            "split": "+".join(s.split for s in sets) if any(s.split for s in sets) else "",
            "source": "+".join(sorted({s.source for s in sets})),
            "traces": prepared.cells,
            "sha256": "+".join(s.sha256 for s in sets),
            **({"uplink": _named(uplink)} if uplink else {}),
            **({"video": {"name": video.name, "sha256": video.sha256}} if video else {}),
        },
        versions=versions(),
        host=host_facts() | facts,
        notes=[*prepared.notes, *_stand_in(experiment, facts)],
    )


def _described(card: PolicyCard) -> dict[str, str]:
    return {name: getattr(card, name) for name in ("label", "colour", "citation", "source_sha256", "options_sha256")}


def _stand_in(experiment: Experiment, facts: Mapping[str, Any]) -> list[str]:
    """That another relay carries the packets than the one asked for."""
    return [NOT_BUILT] if experiment.link == "userspace" and facts.get("relay") == "Python" else []


def _named(found: TraceSet) -> dict[str, str]:
    return {"name": found.name, "split": found.split, "source": found.source, "sha256": found.sha256}


def report(folder: Path, figures: str | None, console: Console) -> None:
    """Rebuild everything derived in a result folder."""
    if figures not in (None, "pdf", "png", "svg"):
        raise UserError(f"--figures is {figures}, wanted pdf, png or svg")
    summary = _built(folder.resolve(), figures=figures)
    print_summary(summary, console)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def _built(folder: Path, owner: User | None = None, figures: str | None = None) -> dict[str, Any]:
    from testbed.report.build import build  # polars, scipy and jinja2 are not loaded before they are needed

    return build(folder, owner, figures)


def clean(console: Console) -> None:
    """Remove what a killed run left, and nothing else. Raises `TestbedError` when containers may be left."""
    owned.require_root()
    cleaned = owned.clean()
    for item in cleaned.removed:
        console.print(f"removed {item}", markup=False)
    if cleaned.kept:
        raise TestbedError("; ".join(cleaned.kept))
    if not cleaned.removed:
        console.print("nothing to remove")


def list_all(console: Console) -> None:
    """Tasks, traces, videos and policies."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    from controllers.loader import KINDS, discover
    from traces.store import list_sets

    console.print(f"[bold]tasks[/]: {', '.join(LIVE_TASKS)}")

    def copied(heading: str, ratio: int) -> Column:
        """What people copy is cut nowhere."""
        return Column(heading, overflow="fold", ratio=ratio)

    table = Table(copied("data set", 3), "kind", "splits (files)", "format", copied("where", 4), box=SIMPLE_HEAD)
    for item in list_sets():
        splits = ", ".join(f"{name or 'all'} ({files})" for name, files in item.splits)
        table.add_row(item.name, item.kind, splits, item.format, escape(item.where))
    console.print(table)
    table = Table("task", copied("policy", 2), copied("options", 3), "source", box=SIMPLE_HEAD)
    for task in LIVE_TASKS:
        for card in describe_policies(Experiment(task=task, policies=",".join(discover(KINDS[task].folder)))):
            table.add_row(task, card.name, escape(" ".join(f"+{option}" for option in card.options)), escape(card.citation))
    for name, rule in STOCK.items():
        table.add_row("abr", name, "", f"{rule.citation} (with --player dashjs)")
    console.print(table)
    console.print("Your own: --policies ~/mine.py (a file with one AbrPolicy, CjsPolicy or VpPolicy), or package.module:Class")
