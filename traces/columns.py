"""The format `csv`: a trace in named columns, the only one that holds delay and loss beside capacity.

```
time_s,rate_mbps,delay_ms,loss_pct,burst_packets
0.5,12,20,0,1
2,3.5,45,2.5,4
```

| column | unit and range | holds |
| --- | --- | --- |
| `time_s` | seconds, rising, above 0 | the END of the row's segment; the first segment starts at 0, the last time is the period |
| `rate_mbps` | Mbit/s, at least 0 | the capacity; 0 is an outage |
| `delay_ms` | milliseconds, 0 to 10000 | the one-way delay in the trace's direction, in place of half the run's `--rtt-ms` |
| `loss_pct` | percent, 0 to 100 | how many packets are lost after the bottleneck, having used its capacity |
| `burst_packets` | packets, at least 1 | mean length of a run of losses; without this column each packet is lost or not by itself |

The first line names the columns, in any order. `time_s` and `rate_mbps` are needed, the others are not. Losses in runs (Gilbert, Bell
System Technical Journal 1960) need `loss_pct` too, and runs of b packets make a loss of at most b / (1 + b), because at least one packet
arrives between two of them; where all is lost (100) their length says nothing. Delay and loss go with rates, not with delivery
opportunities: a file without `rate_mbps` is refused.

The delay that holds when a packet leaves the bottleneck is the packet's; packets never overtake each other, so where the delay falls, some
come later than it says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from testbed.errors import UserError, suggestion
from testbed.units import ms_from_s
from traces.text import filled_lines, is_number, shown, to_decimal, to_float, to_rate_bps, to_text
from traces.trace import MAX_DELAY_S, Conditions, RateTrace, most_loss

EXAMPLE = "time_s,rate_mbps,delay_ms,loss_pct,burst_packets"
_MOST_DELAY_MS = ms_from_s(MAX_DELAY_S)


@dataclass(frozen=True)
class _Column:
    """A column's numbers in its file: SI is 10 ** `exponent` of it."""

    exponent: int
    usable: Callable[[Decimal], bool]
    wanted: str


_COLUMNS = {
    "time_s": _Column(0, lambda time_s: time_s > 0, "the end of the row's segment, a number of seconds above 0"),
    "rate_mbps": _Column(6, lambda rate_mbps: rate_mbps >= 0, "a finite number of at least 0 Mbit/s"),
    "delay_ms": _Column(-3, lambda delay_ms: 0 <= delay_ms <= _MOST_DELAY_MS, f"0 to {_MOST_DELAY_MS:g} milliseconds"),
    "loss_pct": _Column(-2, lambda loss_pct: 0 <= loss_pct <= 100, "0 to 100 percent"),
    "burst_packets": _Column(0, lambda packets: packets >= 1, "a finite number of at least 1 packet"),
}
_NEEDED = {
    "time_s": "it has the end of each segment",
    "rate_mbps": "delay and loss go with rates; to_rates makes them of delivery opportunities",
}


def read_csv(text: str, name: str, where: str) -> RateTrace:
    """The trace in `text`; raises `UserError` with file and line when it can't be used."""
    (first, head), *rows = filled_lines(text, where, EXAMPLE)
    columns = _named(head, f"{where}:{first}")
    if not rows:
        raise UserError(f"{where}:{first}: is the only line, wanted at least one row of numbers below the names of columns")
    values: dict[str, list[float]] = {column: [] for column in columns}
    edges_s = [0.0]
    for line, row in rows:
        for column, value in _row(row, columns, f"{where}:{line}").items():
            values[column].append(value)
        edges_s.append(values["time_s"][-1])
        if not edges_s[-1] > edges_s[-2]:
            raise UserError(f"{where}:{line}: time_s is {edges_s[-1]:g}, wanted above the {edges_s[-2]:g} of the row before")
    if not any(values["rate_mbps"]):
        raise UserError(f"{where}: every rate_mbps is 0, wanted at least one above 0")
    return RateTrace(name, tuple(edges_s), tuple(values["rate_mbps"]), where, conditions=_conditions(edges_s, values))


def _named(head: str, at: str) -> list[str]:
    """The columns that the first line names."""
    columns = [word.strip() for word in head.split(",")]
    if all(map(is_number, columns)):
        raise UserError(f"{at}: is {shown(head)}, wanted the names of the columns, such as {EXAMPLE}")
    for i, column in enumerate(columns):
        if column not in _COLUMNS:
            raise UserError(f"{at}: column {i + 1} is {shown(column)}, {suggestion(column, _COLUMNS)}")
        if column in columns[:i]:
            raise UserError(f"{at}: column {column} stands twice, wanted it once")
    for column, why in _NEEDED.items():
        if column not in columns:
            raise UserError(f"{at}: has no column {column}, wanted it: {why}")
    if "burst_packets" in columns and "loss_pct" not in columns:
        raise UserError(f"{at}: has burst_packets without loss_pct, wanted both or neither")
    return columns


def _row(row: str, columns: Sequence[str], at: str) -> dict[str, float]:
    """A row's values in SI, by column."""
    words = [word.strip() for word in row.split(",")]
    if len(words) != len(columns):
        raise UserError(f"{at}: is {shown(row)} with {len(words)} columns, wanted {len(columns)} ({','.join(columns)})")
    values = {column: _value(word, column, at) for column, word in zip(columns, words, strict=True)}
    if "burst_packets" in values and (most := most_loss(values["burst_packets"])) < values["loss_pct"] < 1:
        lost = f"loss_pct is {100 * values['loss_pct']:g} in bursts of {values['burst_packets']:g} packets"
        raise UserError(f"{at}: {lost}, wanted at most {100 * most:.4g}, because at least one packet arrives between two runs, or 100")
    return values


def _value(word: str, name: str, at: str) -> float:
    column = _COLUMNS[name]
    written = to_decimal(word, name, column.wanted, at)
    if not column.usable(written):
        raise UserError(f"{at}: {name} is {shown(word)}, wanted {column.wanted}")
    convert = to_rate_bps if name == "rate_mbps" else to_float
    return convert(written.scaleb(column.exponent), name, at, word)


def _conditions(edges_s: Sequence[float], values: dict[str, list[float]]) -> Conditions | None:
    delay_s, loss, burst_packets = (_tuple(values.get(column)) for column in ("delay_ms", "loss_pct", "burst_packets"))
    return Conditions(tuple(edges_s), delay_s, loss, burst_packets) if delay_s or loss else None


def _tuple(column: list[float] | None) -> tuple[float, ...] | None:
    return None if column is None else tuple(column)


def format_csv(trace: RateTrace) -> str:
    """`trace` as text: a row for each segment, or for each piece of one when its conditions change within it."""
    columns: list[tuple[str, Sequence[float], Sequence[float]]] = [("rate_mbps", trace.edges_s, trace.rates_bps)]
    if (beside := trace.conditions) is not None:
        named = (("delay_ms", beside.delay_s), ("loss_pct", beside.loss), ("burst_packets", beside.burst_packets))
        columns += [(name, beside.edges_s, values) for name, values in named if values is not None]
    ends_s = sorted({end_s for _, edges_s, _ in columns for end_s in edges_s[1:]})
    table = [[_written(end_s, "time_s") for end_s in ends_s]]
    for name, edges_s, values in columns:
        holding = np.searchsorted(edges_s, ends_s, side="left") - 1  # (rows,), the segment that holds at each row's end
        table.append([_written(values[i], name) for i in holding.tolist()])
    head = ",".join(["time_s", *(name for name, _, _ in columns)])
    return "\n".join([head, *(",".join(row) for row in zip(*table, strict=True))]) + "\n"


def _written(value: float, name: str) -> str:
    """A number in SI as its column has it."""
    return to_text(Decimal(repr(value)).scaleb(-_COLUMNS[name].exponent))
