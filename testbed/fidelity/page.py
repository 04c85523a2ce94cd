"""A fidelity check for people: the table in the terminal, `fidelity.json`, and `fidelity.html`, one page that fetches nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.drawing.svg import Frame, Scale, figure, line, line_path, path, step_points, text
from testbed.errors import UserError
from testbed.fidelity.audit import Audit, Comparison, Rates, Side, audit
from testbed.fidelity.evidence import Folder, read
from testbed.link import LATE_S, MAX_LATENESS_P99_S
from testbed.records import LatenessRow
from testbed.report.page import TEMPLATES, number, plain
from testbed.results import give
from testbed.units import bits_from_bytes, mbps_from_bps, ms_from_s, s_from_ns
from testbed.user import invoking_user

WIDTH, HEIGHT = 560, 330
_TOP, _BOTTOM = 28, HEIGHT - 46
_LEAST_MS = 1e-3
_MOST_POINTS = 400
WINDOW_S = 0.1
_SETTINGS = (
    ("trace", "Trace", "{}"),
    ("uplink", "Way back", "{}"),
    ("offset_s", "Trace offset", "{:g} s"),
    ("rtt_ms", "Round-trip time", "{:g} ms"),
    ("queue", "Queue", "{:,} bytes"),
    ("queue_packets", "Queue, packets", "{:,}"),
    ("aqm", "Discipline", "{}"),
    ("link", "Link", "{}"),
    ("traffic", "Traffic", "{}"),
    ("seconds", "Of each kind", "{:g} s"),
    ("load", "Other load", "{}"),
    ("lanes", "Links side by side", "{}"),
    ("cc", "Congestion control", "{}"),
)
_HOST = (
    ("relay", "Relay"),
    ("realtime", "Real-time scheduling"),
    ("os", "System"),
    ("kernel", "Kernel"),
    ("cpu_model", "Processor"),
    ("cores", "Cores"),
    ("virtual_machine", "Virtual machine"),
)
MOST_OPEN = 4
"""With more trials those that have nothing to complain of are folded up."""
_WIDE = 100
_ONLY_WIDE = (0, 2, 4)
"""Columns of the terminal's table, numbered from 0, that a narrow one goes without."""
_COLOURS = {"agrees": "green", "disagrees": "red", "void": "yellow", "pass": "green", "fail": "red"}


def judge(folder: Path, console: Console) -> int:
    """Read what a check left in `folder`, tell and write the judgement; 0 when all links pass and both accounts agree, else 1."""
    found = read(folder)
    with console.status("reading the captures"):
        audits = [audit(folder, evidence) for evidence in found.evidence]
    told = {
        "version": 1,
        "verdict": verdict(audits),
        "passed": all(one.passed for one in audits),
        "command": found.command,
        "commit": found.commit,
        "started_utc": found.started_utc,
        "options": found.options,
        "host": found.host,
        "notes": found.notes,
        "links": [one.to_json() for one in audits],
    }
    try:
        (folder / "fidelity.json").write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
        (folder / "fidelity.html").write_text(render(found, audits), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}, wanted a folder in which the judgement can be written") from None
    give(folder, invoking_user())
    show(found, audits, console)
    console.print(f"results: {folder}  (page: {folder / 'fidelity.html'})", markup=False, soft_wrap=True)
    return 0 if told["passed"] else 1


def verdict(audits: Sequence[Audit]) -> str:
    """Of all: `void` when one is, else `disagrees` when one does, else `agrees`."""
    seen = {one.verdict for one in audits}
    return next((each for each in ("void", "disagrees") if each in seen), "agrees")


def finding(audits: Sequence[Audit]) -> str:
    """The result in a sentence or two."""
    trials, failed = len(audits), sum(one.evidence.said.verdict != "pass" for one in audits)
    many = "its one trial" if trials == 1 else f"all {trials} trials"
    own = f"By its own account the link did what was asked in {many}"
    if failed:
        own = f"By the link's own account {failed} of {trials} trials failed"
    match verdict(audits):
        case "void":
            return f"{own}. The captures prove nothing: {next(one.voids[0] for one in audits if one.voids)}."
        case "disagrees":
            odd = sum(one.verdict == "disagrees" for one in audits)
            return f"{own}. The captures disagree with that account in {odd} of {trials}."
    return f"{own}, and captures of {sum(side.entered for one in audits for side in one.sides):,} packets at both ends agree with it."


def show(found: Folder, audits: Sequence[Audit], console: Console) -> None:
    """The table."""
    table = Table(title="links by captures (c), by their own account (o)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    wide = console.width >= _WIDE
    delays = ("delay ms\np50 c, o", "delay ms\np99 c, o", "delay ms\nmax c, o")
    headings = ("packets\nc", "lost\nc, o", *delays, "rate %\n100 ms c, o", "verdict\nof o", "verdict\nof c")
    table.add_column("link", no_wrap=True)
    for i, heading in enumerate(headings):
        if wide or i not in _ONLY_WIDE:
            table.add_column(heading, justify="right", no_wrap=True)
    for one in audits:
        table.add_row(escape(one.evidence.name), *(cell for i, cell in enumerate(_cells(one)) if wide or i not in _ONLY_WIDE))
    console.print(table)
    for one in audits:
        for reason in (*one.voids, *one.reasons, *one.evidence.said.reasons):
            console.print(f"[red]{escape(one.evidence.name)}:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    for note in (*found.notes, *dict.fromkeys(note for one in audits for note in one.evidence.said.notes)):
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(finding(audits), highlight=False, soft_wrap=True)


def _cells(one: Audit) -> list[str]:
    marks = [f"[{_COLOURS[each]}]{each}[/]" for each in (one.evidence.said.verdict, one.verdict)]
    return [*_numbers(one), *marks]


def _numbers(one: Audit) -> list[str]:
    """Packets, losses, delay errors and the rate error, where both give them as pairs."""
    rows = {row.what: row for row in one.comparisons}
    lost = rows["packets in less out"]
    pairs = [_pair(rows[f"delay error {what}"], 3) for what in ("p50", "p99", "max")]
    rates = next((row for row in one.comparisons if "rate error 100 ms" in row.what), None)
    packets = sum(side.entered for side in one.sides)
    return [f"{packets:,}", f"{lost.captured:.0f}, {lost.said:.0f}", *pairs, _pair(rates, 2) if rates else "-"]


def _pair(row: Comparison, digits: int) -> str:
    return f"{row.captured:.{digits}f}, " + ("-" if row.said is None else f"{row.said:.{digits}f}")


# The page


@dataclass(frozen=True)
class Section:
    """One link on the page."""

    audit: Audit
    cells: tuple[str, ...]
    """Of the table on top."""
    open: bool
    about: str
    delays: Markup
    windows: tuple[tuple[str, Markup], ...]


def render(found: Folder, audits: Sequence[Audit]) -> str:
    """The whole page."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({"number": number, "plain": plain, "amount": amount})
    return environment.get_template("fidelity.html.j2").render(
        found=found,
        verdict=verdict(audits),
        finding=finding(audits),
        sections=[_section(one, len(audits)) for one in audits],
        settings=settings(found),
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def amount(value: float | None) -> str:
    """A number with as many digits as it needs."""
    if value is None:
        return "\N{EN DASH}"
    whole = value == int(value)
    return number(value, 0 if whole or abs(value) >= 1e5 else 3)


def _section(one: Audit, among: int) -> Section:
    evidence = one.evidence
    ways = [("down", evidence.down.trace)] + ([("up", evidence.up.trace)] if evidence.up else [])
    traces = ", ".join(f"{trace.name} {name} ({mbps_from_bps(trace.mean_rate_bps):.2f} Mbit/s on average)" for name, trace in ways)
    drawn = tuple((side.name, Markup(windows(side.rates))) for side in one.sides if side.rates)
    about = f"{evidence.traffic.upper()} over {traces}"
    shown = among <= MOST_OPEN or not one.passed
    return Section(one, tuple(_numbers(one)), shown, about, Markup(delays(one.sides, evidence.said.lateness)), drawn)


def delays(sides: Sequence[Side], lateness: Sequence[LatenessRow]) -> str:
    """How late packets came, by both accounts: cumulative shares on a logarithmic axis."""
    errors = {side.name: np.sort(side.error_ns) for side in sides if len(side.error_ns)}
    if not errors:
        return ""
    largest = max([ms_from_s(s_from_ns(float(values[-1]))) for values in errors.values()] + [row.upper_ms[-1] for row in lateness])
    high = 10.0 ** math.ceil(math.log10(max(largest, ms_from_s(LATE_S))))
    frame = Frame(Scale(_LEAST_MS, high, 46, WIDTH - 14, log=True), Scale(0, 1, _BOTTOM, _TOP))
    parts = [frame.axes("delivered later than due, ms", "share of packets at or below")]
    for limit_ms, said in ((ms_from_s(MAX_LATENESS_P99_S), "p99 at most"), (ms_from_s(LATE_S), "late")):
        x = frame.x(limit_ms)
        parts += [line(x, _TOP, x, _BOTTOM, "deadline"), text(x - 5, _BOTTOM - 8, said, "ax warn", "end")]
    for row in lateness:
        parts.append(frame.line(_said_points(row), f"ln said {row.direction}"))
    for name, values in errors.items():
        chosen = np.unique(np.linspace(0, len(values) - 1, _MOST_POINTS).astype(int))
        points = [(max(ms_from_s(s_from_ns(float(values[i]))), _LEAST_MS), (i + 1) / len(values)) for i in chosen]
        parts.append(frame.line(points, f"ln seen {name}"))
    return figure(WIDTH, HEIGHT, "How late packets came", parts)


def _said_points(row: LatenessRow) -> list[tuple[float, float]]:
    """The upper ends of the link's bins: what is known of its distribution."""
    below = np.cumsum(row.counts) / max(sum(row.counts), 1)
    return [(edge, float(share)) for edge, share in zip(row.upper_ms, below, strict=True)]


def windows(rates: Rates) -> str:
    """Allowed and served per 100 ms, and below how far the two accounts of it are apart."""
    count, split = len(rates.allowed), _BOTTOM - 74
    edges_s = [WINDOW_S * i for i in range(count + 1)]
    mbps = [mbps_from_bps(bits_from_bytes(column / WINDOW_S)) for column in (rates.allowed, rates.captured, rates.said)]
    x = Scale(0, max(edges_s[-1], WINDOW_S), 56, WIDTH - 14)
    top = float(max(*(column.max(initial=0) for column in mbps), 0.1)) * 1.08
    upper = Frame(x, Scale(0, top, split, _TOP))
    points = [(upper.x(at), upper.y(value)) for at, value in step_points(edges_s, mbps[0].tolist())]
    area = line_path([(points[0][0], split), *points, (points[-1][0], split)]) + "z" if points else ""
    parts = [path(area, "capacity"), upper.axes("", "Mbit/s", x_ticks=0)]
    parts.append(upper.line(step_points(edges_s, mbps[2].tolist()), "ln said down"))
    parts.append(upper.line(step_points(edges_s, mbps[1].tolist()), "ln seen down"))
    off = rates.captured - rates.said
    reach = max(float(np.abs(off).max(initial=0)), 100.0) * 1.1
    lower = Frame(x, Scale(-reach, reach, _BOTTOM, split + 34))
    parts += [lower.axes("s since the trace started", "captured less said, bytes", y_ticks=2)]
    parts.append(lower.line(step_points(edges_s, off.tolist()), "ln off"))
    return figure(WIDTH, HEIGHT, "Bytes served in 100 ms by both accounts", parts)


def settings(found: Folder) -> list[tuple[str, str]]:
    """What was asked for, and the host, as far as they matter here. All of it is in `captures.json`."""
    known = {**found.host, **found.options}
    rows = [(label, form.format(known[name])) for name, label, form in _SETTINGS if known.get(name) is not None]
    return [*rows, *((label, plain(found.host[name])) for name, label in _HOST if name in found.host)]
