"""`scripts/bench cjs-faults`: one workload again and again on an emulated cluster, each time with another fault in it.

A fault strikes when executor `STRUCK` ends its first task after `STRIKE_S`: then it has work, or outputs that others will read. Whatever
it is, every job must be done at the end, every task have ended, and the next trial be as if nothing had been. A driver that is killed ends
its trial; the cluster serves the next. A fault that did not strike, or did something else than it should, is an error too.
"""

import math
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from testbed.bench.page import table
from testbed.cjs import PreparedSchedules, ScheduleTrial, prepare_schedules, schedule_row
from testbed.cjs_cluster import DATA, ClusterRun, EmulatedExecutors, emulated
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError, suggestion
from testbed.pressure import NO_STRAIN
from testbed.records import JobRow, Row, ScheduleBeginRow, ScheduleRow, TaskRow
from testbed.sim.cjs import COMPLETE
from testbed.spec import Experiment
from testbed.verdict import PathFacts

STRIKE_S = 3.0
STRUCK = 1
"""The executor that a fault befalls."""
LONG_CUT_S = 60.0


@dataclass(frozen=True)
class CjsFaultsSettings:
    """Inject faults into an emulated cluster. Needs root."""

    trace: str = "fcc"
    """Traces of the links."""
    jobs: int = 4
    executors: int = 6
    time_scale: float = 16.0
    seed: int = 1
    containers: Literal["auto", "always", "never"] = "auto"
    """Executors as Docker containers; only those can run out of memory."""
    faults: str = ""
    """Comma-separated, of those that the page names. Default: all."""
    write: Path | None = None
    """Also write the page (Markdown) to this file."""


@dataclass(frozen=True)
class Fault:
    """What befalls the cluster, and what must be seen of it."""

    strike: Callable[[], None]
    lost: int = 0
    """Executors."""
    restarts: int = 0
    """Of the controller."""
    ends_trial: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    fault: str
    row: ScheduleRow
    jobs_done: int
    tasks_done: int
    """Different tasks that ended."""
    said: str
    """What the run told of it."""
    wrong: tuple[str, ...]
    """What should have been otherwise, a sentence each."""


class Witness:
    """Takes the place of a recorder: keeps the rows, and lets the fault strike once."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self.rows: list[Row] = []
        self.facts = PathFacts()
        self.said = ""
        self._strike: Callable[[], None] | None = strike
        self._due_s = math.inf

    @property
    def struck(self) -> bool:
        """Whether the fault did."""
        return self._strike is None

    def started(self, trial: ScheduleTrial, lane: int) -> None:
        """Nothing to show."""

    def row(self, row: Row) -> None:
        """Keep it."""
        if isinstance(row, ScheduleBeginRow):
            self._due_s = now_s() + STRIKE_S
        self.rows.append(row)
        ended = isinstance(row, TaskRow) and row.executor == STRUCK
        if ended and self._strike and now_s() >= self._due_s:
            threading.Thread(target=self._strike, daemon=True).start()  # rows must not wait for it
            self._strike = None

    def close(self, trial_id: str, path: PathFacts) -> None:
        """The trial is over."""
        self.facts = path

    def extend(self, rows: Any) -> None:
        """Link counters are not looked at."""

    def host(self, row: Any) -> None:
        """Nor is the host."""

    def note(self, text: str) -> None:
        """What the run tells the user."""
        self.said += text + "\n"

    def log(self, text: str) -> None:
        """What a process said."""
        self.said += text


def faults(run: ClusterRun) -> dict[str, Fault]:
    """What can befall a cluster, by name."""
    executors = run.executors
    assert isinstance(executors, EmulatedExecutors)
    name = f"e{STRUCK}"

    def cut(seconds: float) -> None:
        wire = executors.star.wires[DATA][name]
        wire.cut()
        mending = threading.Timer(seconds, wire.mend)
        mending.daemon = True
        mending.start()

    def kill_two() -> None:
        for each in (name, "e0"):
            executors.kill(each)

    found = {
        "none": Fault(lambda: None),
        "executor killed": Fault(lambda: executors.kill(name), lost=1),
        "two executors killed": Fault(kill_two, lost=2),
        "executor hangs": Fault(lambda: executors.hang(name), lost=1),
        "link cut for 5 s": Fault(lambda: cut(5.0)),
        "controller killed": Fault(run.controller.kill, restarts=1),
        "driver killed": Fault(run.kill_driver, ends_trial=True),
        "none again": Fault(lambda: None),
        "link cut for 60 s": Fault(lambda: cut(LONG_CUT_S)),
    }
    if executors.contained:
        found["container out of memory"] = Fault(lambda: executors.exhaust(name), lost=1)
    return found


def wrongs(fault: Fault, struck: bool, row: ScheduleRow, path: PathFacts, jobs_done: int, tasks_done: int, tasks: int) -> Iterator[str]:
    """What should have been otherwise, of a trial with so many tasks. A host that disturbs links is no matter of faults."""
    broken = path.fault or ("" if row.end_reason == COMPLETE else f"it ended early, {row.end_reason}")
    if not struck:
        yield "it did not strike"
    for what, seen, wanted in (("executors lost", row.executors_lost, fault.lost), ("restarts", row.controller_restarts, fault.restarts)):
        if seen != wanted:
            yield f"{seen} {what}, wanted {wanted}"
    if fault.ends_trial:
        if not broken:
            yield "the trial went on"
        return
    if broken:
        yield broken
    for what, seen, wanted in (("jobs done", jobs_done, row.jobs), ("tasks ended", tasks_done, tasks)):
        if seen != wanted:
            yield f"{seen} {what}, wanted {wanted}"


def injected(settings: CjsFaultsSettings) -> Iterator[Outcome]:
    """The outcomes, one after another."""
    experiment = Experiment(
        task="cjs",
        trace=(settings.trace,),
        policies="fair",
        jobs=settings.jobs,
        executors=settings.executors,
        time_scale=settings.time_scale,
        seeds=(settings.seed,),
        containers=settings.containers,
    )
    prepared = prepare_schedules(experiment)
    with emulated(prepared) as run:
        known = faults(run)
        for fault in _chosen(settings.faults, known):
            witness = Witness(known[fault].strike)
            run.run(witness)  # type: ignore[arg-type]
            outcome = _outcome(fault, known[fault], prepared, witness)
            sys.stderr.write(f"{fault}: {outcome.jobs_done} jobs done, {outcome.row.end_reason}, {outcome.row.wall_s or 0:.0f} s\n")
            yield outcome


def _chosen(text: str, known: Iterable[str]) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()] or list(known)
    for fault in chosen:
        if fault not in known:
            raise UserError(f"--faults names {fault!r}, {suggestion(fault, known)}")
    return chosen


def _outcome(name: str, fault: Fault, prepared: PreparedSchedules, witness: Witness) -> Outcome:
    trial = prepared.trials[0]
    row = schedule_row(trial, witness.rows, witness.facts, prepared.experiment, 1, NO_STRAIN, losses_meant=True)
    jobs = sum(isinstance(each, JobRow) and each.done_s is not None for each in witness.rows)
    tasks = {(each.job, each.stage, each.task) for each in witness.rows if isinstance(each, TaskRow) and each.outcome == "done"}
    wanted = sum(stage.tasks for job in trial.workload.jobs for stage in job.stages)
    wrong = tuple(wrongs(fault, witness.struck, row, witness.facts, jobs, len(tasks), wanted))
    return Outcome(name, row, jobs, len(tasks), witness.said, wrong)


def cjs_faults(settings: CjsFaultsSettings) -> str:
    """The page as text; `TestbedError` when a fault did not strike, or what followed isn't what should."""
    outcomes = list(injected(settings))
    wrong = [f"{outcome.fault}: {'; '.join(outcome.wrong)}" for outcome in outcomes if outcome.wrong]
    rows = [
        [
            one.fault,
            f"{one.jobs_done} of {one.row.jobs}",
            str(one.tasks_done),
            "-" if one.row.avg_jct_s is None else f"{one.row.avg_jct_s:.1f}",
            str(one.row.executors_lost),
            str(one.row.tasks_run_again),
            f"{one.row.fallbacks} of {one.row.decisions}",
            str(one.row.controller_restarts),
            one.row.end_reason,
            "yes" if one.row.valid else "no",
        ]
        for one in outcomes
    ]
    names = [
        "fault",
        "jobs done",
        "tasks ended",
        "mean JCT s",
        "lost",
        "run again",
        "fallbacks",
        "restarts",
        "ended",
        "valid",
    ]
    command = shlex.join(["scripts/bench", *sys.argv[1:]])
    setting = f"{settings.executors} executors, {settings.jobs} jobs, time scale {settings.time_scale:g}"
    lines = [
        "# Faults on the cluster",
        f"`{command}`, {utc_now():%Y-%m-%d}, commit `{checkout_commit()[:12]}`. {setting}; a fault strikes when "
        f"executor {STRUCK} ends its first task after {STRIKE_S:g} s, and that executor where it is one's.",
        "",
        table(names, rows),
        "Lost: executors. Run again: tasks, of lost executors or because their outputs were gone. Restarts: of the controller. "
        "Valid: links and executors were on time, which is the host's matter and not the fault's.",
    ]
    text = "\n".join([*lines, ""])
    if settings.write:
        settings.write.write_text(text, encoding="utf-8")
    if wrong:
        raise TestbedError("\n".join([text, *wrong]))
    return text
