"""`scripts/bench links`: measures emulated links side by side and writes what it found."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from testbed.bench import judge, page, phases
from testbed.bench.contenders import BASELINE, CONTENDERS
from testbed.bench.lanes import Contender
from testbed.clock import now_s, utc_now
from testbed.commit import checkout_commit
from testbed.errors import TestbedError, UserError, suggestion
from testbed.host import CHECKOUT, host_facts, versions
from testbed.netns.hosts import Spawner
from testbed.netns.owned import STATE_DIR, require_root, run_lock
from testbed.results import check_base, give, new_folder
from testbed.units import bps_from_mbps
from testbed.user import invoking_user
from traces.store import resolve
from traces.trace import RateTrace, Trace

Phase = Literal["rate", "delay", "tcp", "flood"]
Traffic = Literal["udp", "tcp"]
Condition = Literal["idle", "busy", "crowded"]

BUSY_LOOPS = {"idle": 0, "busy": 2, "crowded": 8}
CONSTANT_MBPS = 12.0
STANDARD = {
    "constant": ("", 0.0),
    "lte": ("lte/down:TMobile-LTE-short.down", 60.0),
    "fcc": ("fcc/test:043_trace_8299_http---www.amazon.com_640", 160.0),
}
"""Where the usual traces come from, and the second at which the part begins that is measured on."""
MARGIN_S = 12.0
"""Of trace beyond a run: Mahimahi's begins some seconds before the traffic."""
CAPTURED_S, CAPTURED_TIMES = 0.3, 3
"""How long and often what a capture costs is measured."""
LEAST_S = 4.0
"""Of a run for the rate error: the first two seconds don't count."""
SET_UP_S = {"rate": 6.0, "delay": 1.5, "tcp": 1.5, "flood": 2.0}
"""What a step takes beside its measuring, about."""


@dataclass(frozen=True)
class LinksSettings:
    """Measure emulated links beside each other: this project's, Mininet's TCLink, and Mahimahi where it is installed. Needs root."""

    phases: tuple[Phase, ...] = ("rate", "delay", "tcp", "flood")
    """Rate error; delay error; TCP throughput and CPU time; a flood of datagrams."""
    contenders: tuple[str, ...] = tuple(each.key for each in CONTENDERS)
    """Who takes part."""
    traces: tuple[str, ...] = ("constant", "lte", "fcc")
    """For the rate error: these three, or any trace by its name or path."""
    traffic: tuple[Traffic, ...] = ("udp", "tcp")
    """For the rate error."""
    conditions: tuple[Condition, ...] = ("idle", "busy", "crowded")
    """`busy`: two processes beside it keep two cores busy; `crowded`: eight do, for rate and delay errors only."""
    repetitions: int = 3
    """Of everything, in turn."""
    seconds: float = 12.0
    """Of a run for the rate error; the others take from 3 to 6 s."""
    alone: bool = False
    """Measure rate errors one contender after the other instead of all at the same time."""
    quick: bool = False
    """A smoke run: everything once and briefly, on the constant rate alone; its numbers say little."""
    out: Path = CHECKOUT / "results"
    """Where the result folder goes."""
    write: Path | None = None
    """Also write the page (Markdown, with its figure beside it) to this file."""

    def __post_init__(self) -> None:
        known = [each.key for each in CONTENDERS]
        for key in self.contenders:
            if key not in known:
                raise UserError(f"--contenders {key}: {suggestion(key, known)}")
        if self.repetitions < 1 or self.seconds < LEAST_S:
            raise UserError(f"{self.repetitions} repetitions of {self.seconds:g} s are asked for, wanted at least 1 of {LEAST_S:g} s")

    @property
    def lengths(self) -> dict[str, float]:
        """Seconds of measuring in a step of each phase."""
        others = {"delay": 1.0, "tcp": 0.5, "flood": 0.5} if self.quick else {"delay": 6.0, "tcp": 3.0, "flood": 2.0}
        return {"rate": self.seconds, **others}


def links(settings: LinksSettings, state_dir: Path = STATE_DIR) -> Path:
    """Measure; returns the result folder."""
    require_root()
    check_base(settings.out)
    if settings.quick:
        settings = replace(settings, traces=("constant",), repetitions=1, seconds=LEAST_S, conditions=("idle",))
    absent: dict[str, str] = {}
    traces = _traces(settings, absent)
    now = utc_now()
    folder = new_folder(settings.out, f"bench-links-{now:%Y%m%dT%H%M%SZ}", invoking_user())
    header = {
        "version": 1,
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "utc": now.isoformat(timespec="seconds"),
        "commit": checkout_commit(),
        "host": host_facts(),
        "versions": versions(),
        "settings": msgspec.to_builtins(settings, enc_hook=str),
    }
    begin_s = now_s()
    rows, findings = _measure(settings, traces, absent, folder, state_dir)
    header |= {"took_s": round(now_s() - begin_s, 1), **findings}
    _write(folder, header, rows, settings.write)
    return folder


def _traces(settings: LinksSettings, absent: dict[str, str]) -> dict[str, Trace]:
    """By name; one of the usual ones that is not on this machine goes to `absent`."""
    found = {}
    for name in settings.traces:
        try:
            found[name] = trace_of(name, settings.seconds)
        except UserError as error:
            if name not in STANDARD:
                raise
            absent[f"trace {name}"] = str(error)
    return found


def trace_of(name: str, seconds: float) -> Trace:
    """A trace as it is measured on: a part long enough never to wrap."""
    if name == "constant":
        return RateTrace("constant", (0.0, seconds + MARGIN_S), (bps_from_mbps(CONSTANT_MBPS),))
    reference, from_s = STANDARD.get(name, (name, 0.0))
    found = resolve(reference).traces[0]
    if found.duration_s < from_s + seconds + MARGIN_S:
        from_s = 0.0
    return judge.cut(found, from_s, min(seconds + MARGIN_S, found.duration_s - from_s))


def plan(settings: LinksSettings, contenders: Sequence[Contender], traces: Mapping[str, Trace]) -> Iterator[phases.Step]:
    """All steps, repetition by repetition and contender after contender, so that whatever changes on the host meets all alike."""
    for repetition, condition, phase in itertools.product(range(settings.repetitions), settings.conditions, settings.phases):
        labels = {"phase": phase, "condition": condition, "repetition": repetition}
        said = f"{condition}, {repetition + 1} of {settings.repetitions}"
        taking = [each for each in contenders if phase in each.phases]
        if condition == "crowded" and phase in ("tcp", "flood"):
            continue  # that would measure how long senders and receivers wait for a core
        if phase != "rate":
            seconds = settings.lengths[phase]
            for each in taking:
                measure = partial(_single, phase=phase, contender=each, seconds=seconds)
                yield phases.Step(f"{phase}, {each.label} ({said})", seconds + SET_UP_S[phase], labels, BUSY_LOOPS[condition], measure)
            continue
        times = len(taking) if settings.alone else 1
        length_s = times * (settings.seconds + SET_UP_S[phase])
        for (name, trace), traffic in itertools.product(traces.items(), settings.traffic):
            measure = partial(phases.rate, contenders=taking, trace=trace, traffic=traffic, seconds=settings.seconds, alone=settings.alone)
            more = {**labels, "trace": name, "traffic": traffic}
            yield phases.Step(f"rate error, {name}, {traffic} ({said})", length_s, more, BUSY_LOOPS[condition], measure)


PROBE_INTERVAL_S = 0.005


def _single(stage: phases.Stage, phase: str, contender: Contender, seconds: float) -> Iterator[phases.Row]:
    if phase == "delay":
        yield phases.delay(stage, contender, round(seconds / PROBE_INTERVAL_S), PROBE_INTERVAL_S)
    else:
        yield {"tcp": phases.tcp, "flood": phases.flood}[phase](stage, contender, seconds)


def _able(settings: LinksSettings, stage: phases.Stage, absent: dict[str, str]) -> list[Contender]:
    """The contenders that this host can run, each tried; why it can't goes to `absent`."""
    able = []
    for each in CONTENDERS:
        if each.key not in settings.contenders:
            continue
        try:
            if lack := each.lacks():
                raise UserError(lack)
            with stage.lanes(each.phases[0], phases.RATE, [each]):
                able.append(each)
        except (TestbedError, UserError) as error:
            absent[each.key] = str(error)
    return able


def _measure(
    settings: LinksSettings, traces: Mapping[str, Trace], absent: dict[str, str], folder: Path, state_dir: Path
) -> tuple[list[phases.Row], dict[str, Any]]:
    """Take all steps; returns the rows, each in the file as soon as it is known, and what else the document is to say."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    rows: list[phases.Row] = []
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left about"), TimeRemainingColumn())
    with run_lock(state_dir=state_dir) as owner, (folder / "rows.jsonl").open("xb") as file, Progress(*columns) as progress:
        spawner = Spawner(owner)
        stage = phases.Stage(owner, spawner)
        task = progress.add_task("", total=None)
        try:
            with stage.congestion_control():
                steps = list(plan(settings, _able(settings, stage, absent), traces))
                progress.update(task, total=sum(step.seconds for step in steps))
                capture_cost_s = phases.capture_cost_s(stage, BASELINE, CAPTURED_S, 1 if settings.quick else CAPTURED_TIMES)
                for step in steps:
                    progress.update(task, description=step.title)
                    if not progress.console.is_terminal:
                        progress.console.print(step.title, markup=False, highlight=False)
                    try:
                        for row in step.rows(stage):
                            rows.append(row)
                            file.write(msgspec.json.encode(row) + b"\n")
                            file.flush()
                    except TestbedError as error:
                        failed.append(f"{step.title}: {error}")
                        progress.console.print(f"failed: {failed[-1]}", markup=False)
                    progress.advance(task, step.seconds)
        finally:
            spawner.end([])
    if not rows:
        reasons = [*failed[:1], *(f"{key}: {why}" for key, why in absent.items())]
        raise TestbedError("nothing could be measured" + (f" ({'; '.join(reasons)})" if reasons else ""))
    return rows, {"absent": absent, "failed": failed, "capture_cost_s": capture_cost_s}


def _write(folder: Path, header: dict[str, Any], rows: list[phases.Row], target: Path | None) -> None:
    found = {**header, "rows": rows}
    (folder / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    (folder / "links.md").write_text(page.markdown(found, "links.svg"), encoding="utf-8")
    (folder / "links.svg").write_text(page.figure_of(rows), encoding="utf-8")
    give(folder, invoking_user())
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page.markdown(found, target.with_suffix(".svg").name), encoding="utf-8")
        target.with_suffix(".svg").write_text(page.figure_of(rows), encoding="utf-8")
    sys.stdout.write(page.terminal_text(found) + f"\n{folder}\n")
