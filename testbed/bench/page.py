"""The benchmark's rows as a page (Markdown) and a figure (SVG). Every number is a median over repetitions, with the range beside it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.bench.contenders import CONTENDERS
from testbed.bench.judge import Spread, spread
from testbed.drawing.svg import Frame, Scale, line, text
from testbed.units import mbps_from_bps, ms_from_s, ns_from_s

Row = dict[str, Any]

CONDITIONS = {"idle": "idle", "busy": "both cores busy", "crowded": "four busy processes a core"}
HARD = "busy"
"""The condition of the goals."""
GOAL_TRACE = "lte"
MISSING = "-"


@dataclass(frozen=True)
class Rows:
    """What was measured, to be asked."""

    rows: Sequence[Row]

    def where(self, **labels: object) -> "Rows":
        """Those that bear all labels."""
        return Rows([row for row in self.rows if all(row.get(name) == value for name, value in labels.items())])

    def values(self, name: str) -> list[float]:
        """Of all repetitions."""
        return [row[name] for row in self.rows if row.get(name) is not None]

    def spread(self, name: str, scale: Callable[[float], float] = float) -> Spread | None:
        """Median and range."""
        return spread([scale(value) for value in self.values(name)])

    def known(self, label: str) -> list[Any]:
        """Values of a label, in the order in which they were first measured."""
        return list(dict.fromkeys(row[label] for row in self.rows if label in row))

    def ratios(self, name: str, contender: str, other: str) -> Spread | None:
        """A contender's value over another's, repetition by repetition."""
        pairs = []
        for repetition in self.known("repetition"):
            round_ = self.where(repetition=repetition)
            a, b = (round_.where(contender=key).spread(name) for key in (contender, other))
            if a and b and b.median:
                pairs.append(a.median / b.median)
        return spread(pairs)


def shown(found: Spread | None, digits: int = 2, unit: str = "") -> str:
    """Median and range; what would round to nothing says so."""
    if not found:
        return MISSING
    return f"{_number(found.median, digits)}{unit}" + (
        f" ({_number(found.low, digits)} to {_number(found.high, digits)})" if found.runs > 1 else ""
    )


def _number(value: float, digits: int) -> str:
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if 0 < abs(value) < least / 2 else f"{value:,.{digits}f}"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *lines)) + "\n"


def _labels(rows: Rows) -> list[tuple[str, str]]:
    present = set(rows.known("contender"))
    return [(each.key, each.label) for each in CONTENDERS if each.key in present]


def rate_table(rows: Rows, condition: str, value: str) -> str:
    """Rate errors in percent: a line a contender, a column a trace and traffic."""
    rate = rows.where(phase="rate", condition=condition)
    columns = [(trace, traffic) for trace in rate.known("trace") for traffic in rate.known("traffic")]
    lines = (
        [label, *(shown(rate.where(contender=key, trace=trace, traffic=traffic).spread(value)) for trace, traffic in columns)]
        for key, label in _labels(rate)
    )
    return table([CONDITIONS[condition], *(f"{trace}, {traffic.upper()}" for trace, traffic in columns)], lines)


def value_table(rows: Rows, phase: str, heads: Sequence[str], values: Sequence["Value"]) -> str:
    """A line a contender and condition, a column a value: (name, digits, scale)."""
    phase_rows = rows.where(phase=phase)
    lines = (
        [f"{label}, {CONDITIONS[condition]}", *(shown(here.spread(name, scale), digits) for name, digits, scale in values)]
        for key, label in _labels(phase_rows)
        for condition in phase_rows.known("condition")
        if (here := phase_rows.where(contender=key, condition=condition)).rows
    )
    return table(["", *heads], lines)


Value = tuple[str, int, Callable[[float], float]]
"""Name in the rows, digits, and scale of a column."""


def sections(rows: Rows) -> list[tuple[str, str]]:
    """(title, table) of everything that was measured."""
    found = []
    for condition in rows.where(phase="rate").known("condition"):
        for value, window in (("rate_error_100ms_pct", "100 ms"), ("rate_error_1s_pct", "1 s")):
            found.append((f"Rate error per {window}, %, {CONDITIONS[condition]}", rate_table(rows, condition, value)))
    if rows.where(phase="delay").rows:
        heads = ["p50", "p99", "max", "there and back: p50", "p99", "max", "probes lost"]
        names = [f"delay_error_{way}{quantile}_s" for way in ("", "both_ways_") for quantile in ("p50", "p99", "max")]
        values: list[Value] = [*((name, 3, ms_from_s) for name in names), ("probes_lost", 0, float)]
        found.append(("Delay error, ms", value_table(rows, "delay", heads, values)))
    if rows.where(phase="tcp").rows:
        values = [("tcp_bps", 0, mbps_from_bps), ("cpu_s_per_gb", 2, float)]
        found.append(("TCP throughput", value_table(rows, "tcp", ["Mbit/s", "emulator's CPU s per GB"], values)))
    if rows.where(phase="flood").rows:
        values = [("flood_bps", 0, mbps_from_bps), ("offered_bps", 0, mbps_from_bps), ("flood_cpu_s_per_gb", 2, float)]
        values += [("lost", 0, float), ("lost_uncounted", 0, float)]
        heads = ["Mbit/s forwarded", "offered", "emulator's CPU s per GB", "packets lost", "of these not counted by the emulator"]
        found.append(("Flood of datagrams", value_table(rows, "flood", heads, values)))
    return found


@dataclass(frozen=True)
class Goal:
    """What is wanted, of which contender, and how it is told from the rows."""

    what: str
    bound: float
    at_most: bool
    contender: str
    find: Callable[[Rows, str], Spread | None]
    digits: int = 2
    unit: str = ""

    def met(self, found: Spread) -> bool:
        """By the median."""
        return found.median <= self.bound if self.at_most else found.median >= self.bound


def _rate(traffic: str) -> Callable[[Rows, str], Spread | None]:
    return lambda rows, key: rows.where(phase="rate", trace=GOAL_TRACE, traffic=traffic, contender=key).spread("rate_error_100ms_pct")


def _times(name: str) -> Callable[[Rows, str], Spread | None]:
    return lambda rows, key: rows.where(phase="tcp").ratios(name, key, "mahimahi")


def _delay(rows: Rows, key: str) -> Spread | None:
    return rows.where(phase="delay", contender=key).spread("delay_error_p99_s", ms_from_s)


def _uncounted(rows: Rows, key: str) -> Spread | None:
    return rows.where(phase="flood", contender=key).spread("lost_uncounted")


GOALS = (
    Goal("delay error p99", 0.4, True, "relay", _delay, 2, " ms"),
    Goal("rate error per 100 ms, UDP, LTE", 0.3, True, "relay", _rate("udp"), 2, " %"),
    Goal("rate error per 100 ms, TCP, LTE", 1.0, True, "relay", _rate("tcp"), 2, " %"),
    Goal("TCP throughput, packets of 1500 bytes, over Mahimahi's", 3.0, False, "relay", _times("tcp_bps"), 2, "x"),
    Goal("TCP throughput, GSO, over Mahimahi's", 8.0, False, "relay_gso", _times("tcp_bps"), 2, "x"),
    Goal("CPU time per byte, packets of 1500 bytes, over Mahimahi's", 0.8, True, "relay", _times("cpu_s_per_gb"), 2, "x"),
    Goal("CPU time per byte, GSO, over Mahimahi's", 0.45, True, "relay_gso", _times("cpu_s_per_gb"), 2, "x"),
    Goal("losses that the emulator does not count, in a flood", 0.0, True, "relay", _uncounted, 0),
)
OTHERS = ("mahimahi", "mahimahi_fifo", "tclink_1s")


def goals_table(rows: Rows) -> str:
    """Goals of the links, and what was reached where both cores are kept busy; empty when that was not measured."""
    hard = rows.where(condition=HARD)
    labels = {each.key: each.label for each in CONTENDERS}
    lines = []
    for goal in GOALS:
        reached = goal.find(hard, goal.contender)
        if reached is None:
            continue
        verdict = "met" if goal.met(reached) else "**missed**"
        bound = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}{goal.unit}"
        others = (shown(goal.find(hard, other), goal.digits, goal.unit) for other in OTHERS)
        lines.append([goal.what, bound, shown(reached, goal.digits, goal.unit), verdict, *others])
    heads = ["", "goal", "reached", "", *(labels[other] for other in OTHERS)]
    return table(heads, lines) if lines else ""


INTRODUCTION = """\
How true and how fast this testbed's links are, beside other emulators on the same machine in the same run. This page is written by the
command below; nothing in it is typed by hand. Every number is a median over repetitions, the range in brackets.

- **Rate error**: bytes that arrived against bytes that the trace allows, summed over windows of 100 ms (1 s) in which packets waited
  throughout, in percent of what is allowed; from the kernel's timestamps at the receiving host, with the trace's beginning as the only free
  number. All emulators follow the same trace at the same time, each on its own path without delay and with a queue of 300 packets (TCLink:
  its sender's). Where a trace is of delivery opportunities (`lte`) packets count whole, else their bytes count evenly over their service.
- TCLink's rate is set a hundredth higher than a script would, because HTB counts whole frames; outages are held at 100 kbit/s.
- Mahimahi is `mm-link` for the rate error and `mm-delay` for all else, never one in the other; it gets the traces in whole milliseconds.
- **Delay error**: how far datagrams, 200 a second in either direction, are off 20 ms each way, from the kernel's timestamps at both hosts.
- **TCP throughput**: one cubic connection over 1 ms each way, whose link no trace holds back; CPU time is that of the emulator's processes.
  With GSO packets cross as large as TCP makes them, as this testbed's links without a trace have it; all others carry 1500 bytes.
- **Flood**: one process sends datagrams of 1500 bytes as fast as it can. What is lost is counted from outside, by sender and interface.
- *Both cores busy*: two processes at nice 0 that do nothing else; *four busy processes a core*: eight of them. Senders and receivers run at
  nice 0 as well.
"""


def markdown(found: Row, figure_name: str) -> str:
    """The page."""
    rows = Rows(found["rows"])
    host = found["host"]
    facts = [
        ("command", f"`{found['command']}`"),
        ("when", f"{found['utc']}, took {found['took_s'] / 60:.0f} minutes"),
        ("commit", found["commit"] or MISSING),
        ("host", f"{host['os']}, kernel {host['kernel']}, {host['cores']} cores of {host['cpu_model']}{_virtual(host)}"),
        ("load average before", f"{host['load_1min']:.2f}"),
        ("share of its time that the hypervisor gave to others", f"{max(rows.values('stolen_share'), default=0.0):.1%} in the worst step"),
        ("a capture costs a packet", f"{ns_from_s(found['capture_cost_s'])} ns, in the kernel"),
    ]
    parts = ["# Links, measured", INTRODUCTION, table(["", ""], [list(fact) for fact in facts]).replace("---:", "---")]
    if goals := goals_table(rows):
        parts += [f"## Goals\nAll with {CONDITIONS[HARD]}.\n", goals]
    if found["absent"]:
        labels = {each.key: each.label for each in CONTENDERS}
        parts += ["Not measured: " + "; ".join(f"{labels.get(key, key)}: {why}" for key, why in found["absent"].items()) + ".\n"]
    if found["failed"]:
        parts += ["Steps that failed and count nowhere: " + "; ".join(found["failed"]) + ".\n"]
    parts += [f"![Delay errors and rate errors]({figure_name})\n"]
    for title, body in sections(rows):
        parts += [f"## {title}\n", body]
    return "\n".join(parts)


def _virtual(host: Row) -> str:
    return ", a virtual machine" if host["virtual_machine"] else ""


def terminal_text(found: Row) -> str:
    """What the command prints at its end."""
    rows = Rows(found["rows"])
    parts = [f"{title}\n{body}" for title, body in (("Goals", goals_table(rows)), *sections(rows)) if body]
    parts += [f"{key}: {why}" for key, why in found["absent"].items()]
    parts += [f"failed: {what}" for what in found["failed"]]
    return "\n".join(parts)


# Figure

LEAST_SHARE = 0.005
"""What the rows' quantiles resolve."""
_WIDTH, _LEFT, _PANEL = 860, 60, 260
_STYLE = """\
text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd;fill:none}.tick{stroke:#888;fill:none}.ln{fill:none;stroke-width:2}
.lab{font-style:italic}.h{font-weight:600;font-size:14px}"""


def figure_of(rows: Sequence[Row]) -> str:
    """How many probes were off by how much, and rate errors by contender, with both cores busy where that was measured."""
    every = Rows(rows)
    conditions = every.known("condition")
    condition = HARD if HARD in conditions else conditions[0]
    here = every.where(condition=condition)
    upper, upper_height = _delay_panel(here.where(phase="delay"))
    lower, height = _rate_panel(here.where(phase="rate"), upper_height)
    body = f"<style>{_STYLE}</style><rect width='100%' height='100%' fill='#fff'/>{upper}{lower}"
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    title = f"Delay and rate errors, {CONDITIONS[condition]}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">{body}</svg>\n'


def _delay_panel(rows: Rows) -> tuple[str, int]:
    """The drawing and its height."""
    curves = {key: _merged(rows.where(contender=key)) for key, _ in _labels(rows)}
    if not curves:
        return "", 0
    top_ms = max(max(curve) for curve in curves.values())
    frame = Frame(Scale(0.01, max(top_ms, 1.0), _LEFT, 560, log=True), Scale(LEAST_SHARE, 1, _PANEL, 50, log=True))
    parts = [text(_LEFT, 22, "Share of probes that were more than so many ms off the delay wanted", "h"), frame.axes("ms")]
    looks = {each.key: each for each in CONTENDERS}
    for index, (key, curve) in enumerate(curves.items()):
        points = [(value, 1 - number / (len(curve) - 1)) for number, value in enumerate(curve)]
        y = 70 + 22 * index
        parts.append(f'<g stroke="{looks[key].colour}">{frame.line(points)}{line(580, y - 4, 600, y - 4, "ln")}</g>')
        parts.append(text(606, y, looks[key].label))
    return "".join(parts), _PANEL + 60


def _merged(rows: Rows) -> list[float]:
    """The repetitions' quantiles, in ms, pooled."""
    return sorted(ms_from_s(value) for row in rows.rows for value in row["late_quantiles_s"])


def _rate_panel(rows: Rows, top: int) -> tuple[str, int]:
    labels = _labels(rows)
    if not labels:
        return "", top
    height = 26 * len(labels)
    frame = Frame(Scale(0.001, 100, 300, _WIDTH - 20, log=True), Scale(0, 1, top + 50 + height, top + 50))
    parts = [text(_LEFT, top + 26, "Rate error per 100 ms, %: UDP filled, TCP hollow; one mark a trace, median; 0 stands at the left", "h")]
    parts += [line(frame.x(tick), top + 50, frame.x(tick), top + 50 + height, "grid") for tick in (0.001, 0.01, 0.1, 1, 10, 100)]
    parts += [text(frame.x(tick), top + 68 + height, f"{tick:g}", anchor="middle") for tick in (0.001, 0.01, 0.1, 1, 10, 100)]
    looks = {each.key: each for each in CONTENDERS}
    for index, (key, label) in enumerate(labels):
        y = top + 66 + 26 * index
        parts.append(text(292, y + 4, label, anchor="end"))
        for trace in rows.known("trace"):
            for traffic in rows.known("traffic"):
                found = rows.where(contender=key, trace=trace, traffic=traffic).spread("rate_error_100ms_pct")
                if found:
                    fill = looks[key].colour if traffic == "udp" else "#fff"
                    x = frame.x(found.median)
                    parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{fill}" stroke="{looks[key].colour}" stroke-width="2"/>')
    return "".join(parts), top + 90 + height
