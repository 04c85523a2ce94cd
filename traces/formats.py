"""Trace files: Pensieve's cooked text, Mahimahi's opportunities, SABRE's JSON, named columns; told apart by content, not by name.

| format | a line or entry | holds |
| --- | --- | --- |
| `pensieve` | `seconds Mbit/s`, tab or spaces | the rate of row i on (t[i-1], t[i]]; row 0 is only the start, its rate is never used |
| `mahimahi` | whole milliseconds, never falling, last above 0 | one opportunity to send 1500 bytes; the last is also the period |
| `sabre` | `{"duration_ms": .., "bandwidth_kbps": .., "latency_ms": ..}` in a list | that rate for that long |
| `csv` | names of columns, then `time_s,rate_mbps,delay_ms,...` | capacity, delay and loss up to time_s: `traces/columns.py` |

A cooked file whose first time is not 0 is shifted to start at 0. SABRE's latency may not change within a file, because a path here has one
round-trip time, which is a setting of the run: one value throughout is kept as `RateTrace.latency_s` (and not applied), a changing one is
refused.
Numbers go through decimals, so that reading what was written gives the same trace to the last bit.
"""

import json
import math
import re
import stat
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from testbed.errors import UserError
from testbed.units import OPPORTUNITY_BYTES, bits_from_bytes, bytes_per_s_from_bps, ms_from_s, s_from_ms
from traces.columns import EXAMPLE, format_csv, read_csv
from traces.text import EXACT, decode, filled_lines, shown, to_decimal, to_float, to_rate_bps, to_text
from traces.trace import Conditions, OpportunityTrace, RateTrace, Trace

MOST_BYTES = 256 * 2**20
"""Of a trace file: an hour of packets at 100 Mbit/s."""
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_SABRE_KEYS = ("duration_ms", "bandwidth_kbps", "latency_ms")


def read_trace(path: str | Path) -> Trace:
    """The trace in `path`, named like the file. Raises `UserError` with file and line when it can't be used."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is a device, pipe or folder, wanted a trace file")
        if status.st_size > MOST_BYTES:
            raise UserError(f"{path}: has {status.st_size} bytes, wanted a trace file of at most {MOST_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}), wanted a trace file") from error
    return parse_trace(decode(content, str(path)), path.name, str(path))


def parse_trace(text: str, name: str, where: str) -> Trace:
    """The trace written in `text`; `where` (a path) begins each error."""
    return _READERS[detect(text, where)](text, name, where)


def detect(text: str, where: str = "text") -> str:
    """`pensieve`, `mahimahi`, `sabre` or `csv`, from the first line that is not blank."""
    first, line = next(((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()), (0, ""))
    if not first:
        wanted = "two columns (Pensieve), one (Mahimahi), a JSON list (SABRE) or named columns (csv)"
        raise UserError(f"{where}: is empty, wanted a trace: {wanted}")
    if line.lstrip()[0] in "[{":
        return "sabre"
    if "," in line or "time_s" in line:
        return "csv"
    columns = len(line.split())
    if columns not in (1, 2):
        wanted = f"two (Pensieve: seconds, Mbit/s), one (Mahimahi: milliseconds) or named ones ({EXAMPLE})"
        raise UserError(f"{where}:{first}: has {columns} columns, wanted {wanted}")
    return "mahimahi" if columns == 1 else "pensieve"


def write_trace(trace: Trace, path: str | Path, format: str) -> None:
    """Write `trace` to `path` in one of the formats above; changing its kind is left to `to_rates` and `to_opportunities`."""
    Path(path).write_text(format_trace(trace, format), encoding="utf-8")


def format_trace(trace: Trace, format: str) -> str:
    """`trace` in `format`, as text."""
    kind = OpportunityTrace if format == "mahimahi" else RateTrace
    if format not in _WRITERS:
        raise UserError(f"trace format {format!r} is unknown, wanted one of {', '.join(_WRITERS)}")
    if not isinstance(trace, kind):
        needed = "opportunities: convert it with to_opportunities" if kind is OpportunityTrace else "rates: convert it with to_rates"
        raise UserError(f"trace {trace.name}: is a {type(trace).__name__}, and format {format} wanted {needed}")
    if trace.conditions and format != "csv":
        raise UserError(f"trace {trace.name}: has delay or loss over time, which format {format} can't hold, wanted csv")
    return _WRITERS[format](trace)


def to_rates(trace: OpportunityTrace, bin_s: float) -> RateTrace:
    """Mean rates over bins of `bin_s`; each bin carries exactly the bytes of its opportunities.

    The last bin may be shorter; a rest of less than a thousandth of a bin, where one opportunity would be a huge rate, joins it. An
    opportunity on the edge between two bins counts for the earlier one, as segments are open on the left.
    """
    if not (math.isfinite(bin_s) and bin_s > 0):
        raise UserError(f"trace {trace.name}: can't be averaged over {bin_s} s, wanted a time above 0 s")
    count = max(math.ceil(trace.duration_s / bin_s - 1e-3), 1)
    edges_s = np.append(np.arange(count) * bin_s, trace.duration_s)  # (count + 1,)
    bins = np.clip(np.searchsorted(edges_s, trace.times_s, side="left") - 1, 0, count - 1)  # (opportunities,)
    sent_bytes = np.bincount(bins, minlength=count) * OPPORTUNITY_BYTES
    rates_bps = bits_from_bytes(sent_bytes) / np.diff(edges_s)
    return RateTrace(trace.name, tuple(edges_s.tolist()), tuple(rates_bps.tolist()), trace.source, conditions=trace.conditions)


def to_opportunities(trace: RateTrace) -> OpportunityTrace:
    """Opportunities spread so that each comes when the capacity for it has passed; the last ends the period.

    Their bytes differ from the trace's by at most half an opportunity a period. Times are rounded up to the millisecond, as Mahimahi has
    them, which lengthens the period by less than 1 ms. A trace with less capacity than half an opportunity is refused.
    """
    count = round(trace.capacity_bytes / OPPORTUNITY_BYTES)
    if not count:
        wanted = f"wanted at least one opportunity of {OPPORTUNITY_BYTES}"
        raise UserError(f"trace {trace.name}: carries {trace.capacity_bytes:.0f} bytes, {wanted}")
    widths_s = np.diff(trace.edges_s)
    passed = np.append(0.0, np.cumsum(widths_s * bytes_per_s_from_bps(np.asarray(trace.rates_bps))))  # (edges,), bytes
    wanted = np.minimum(passed[-1] * np.arange(1, count + 1) / count, passed[-1])
    # An outage makes `passed` flat: searching from the left finds the segment that filled it.
    segment = np.clip(np.searchsorted(passed, wanted, side="left") - 1, 0, len(widths_s) - 1)
    share = (wanted - passed[segment]) / (passed[segment + 1] - passed[segment])
    times_s = np.asarray(trace.edges_s)[segment] + np.clip(share, 0.0, 1.0) * widths_s[segment]
    times_s[-1] = trace.duration_s
    times_ms = np.maximum(np.ceil(ms_from_s(times_s) - 1e-6), 0)
    times_ms[-1] = max(times_ms[-1], 1)
    times_s = s_from_ms(times_ms)
    return OpportunityTrace(trace.name, tuple(times_s.tolist()), trace.source, _lasting(trace.conditions, float(times_s[-1])))


def _lasting(conditions: Conditions | None, duration_s: float) -> Conditions | None:
    """`conditions` with their last segment ending at `duration_s`, at most a millisecond from where it ended."""
    if conditions is None:
        return None
    count = sum(start_s < duration_s for start_s in conditions.edges_s[:-1])
    columns = (conditions.delay_s, conditions.loss, conditions.burst_packets)
    return Conditions((*conditions.edges_s[:count], duration_s), *(column and column[:count] for column in columns))


def _rows(text: str, columns: int, where: str, example: str) -> list[tuple[int, list[str]]]:
    """Line number and columns of each line that is not blank."""
    rows = []
    for line, row in filled_lines(text, where, example):
        words = row.split()
        if len(words) != columns:
            raise UserError(f"{where}:{line}: is {shown(row)} with {len(words)} columns, wanted {columns} ({example})")
        rows.append((line, words))
    return rows


def _read_pensieve(text: str, name: str, where: str) -> RateTrace:
    rows = _rows(text, 2, where, "seconds and Mbit/s")
    if len(rows) == 1:
        raise UserError(f"{where}:{rows[0][0]}: is the only row, wanted at least two, because the first is only the start")
    times_s, rates_bps = [], []
    for line, (time, rate) in rows:
        at = f"{where}:{line}"
        times_s.append(to_decimal(time, "time", "a number of seconds", at))
        rate_mbps = to_decimal(rate, "rate", "a finite number of at least 0 Mbit/s", at)
        if rate_mbps < 0:
            raise UserError(f"{at}: rate is {shown(rate)}, wanted a finite number of at least 0 Mbit/s")
        if len(times_s) > 1 and not float(times_s[-1] - times_s[0]) > float(times_s[-2] - times_s[0]):
            raise UserError(f"{at}: time is {shown(time)}, wanted later than {times_s[-2]} s of the row before")
        rates_bps.append(to_rate_bps(rate_mbps.scaleb(6), "rate", at, rate))
    if not any(rates_bps[1:]):
        raise UserError(f"{where}: every rate after the first row is 0 Mbit/s, wanted at least one above 0 (the first row's is never used)")
    edges_s = tuple(to_float(EXACT.subtract(t, times_s[0]), "time", where) for t in times_s)
    return RateTrace(name, edges_s, tuple(rates_bps[1:]), where)


def _read_mahimahi(text: str, name: str, where: str) -> OpportunityTrace:
    example = "whole milliseconds"
    times_ms: list[int] = []
    line = 0
    for line, (word,) in _rows(text, 1, where, example):
        if not _WHOLE.fullmatch(word):
            raise UserError(f"{where}:{line}: time is {shown(word)}, wanted {example} of at least 0")
        times_ms.append(int(word))
        if len(times_ms) > 1 and times_ms[-1] < times_ms[-2]:
            raise UserError(f"{where}:{line}: time is {word} ms, wanted at least the {times_ms[-2]} ms of the line before")
    if not times_ms[-1]:
        raise UserError(f"{where}:{line}: the last time is 0 ms, wanted above 0, because it is the period")
    return OpportunityTrace(name, tuple(s_from_ms(t) for t in times_ms), where)


def _read_sabre(text: str, name: str, where: str) -> RateTrace:
    entries = _sabre_entries(text, where)
    edges_ms = [Decimal(0)]
    rates_bps = []
    for number, (duration_ms, rate_kbps, latency_ms) in enumerate(entries, 1):
        at = f"{where}: entry {number}"
        edges_ms.append(EXACT.add(edges_ms[-1], duration_ms))
        rates_bps.append(to_rate_bps(rate_kbps.scaleb(3), "bandwidth_kbps", at, rate_kbps))
        if latency_ms != entries[0][2]:
            wanted = f"{entries[0][2]} as in the first entry, because a path has one round-trip time"
            raise UserError(f"{at}: latency_ms is {latency_ms}, wanted {wanted}")
    if not any(rates_bps):
        raise UserError(f"{where}: every bandwidth_kbps is 0, wanted at least one above 0")
    edges_s = tuple(to_float(e.scaleb(-3, EXACT), "duration_ms", where) for e in edges_ms)
    for number, (a, b) in enumerate(pairwise(edges_s), 1):
        if not b > a:
            raise UserError(f"{where}: entry {number}: duration_ms is {entries[number - 1][0]}, wanted above 0")
    latency_ms = entries[0][2]
    latency_s = None if latency_ms is None else to_float(latency_ms.scaleb(-3), "latency_ms", where)
    return RateTrace(name, edges_s, tuple(rates_bps), where, latency_s)


def _sabre_entries(text: str, where: str) -> list[tuple[Decimal, Decimal, Decimal | None]]:
    """Duration, rate and latency of each entry, checked one by one."""
    try:
        listed = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=str)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: is not JSON ({error.msg}), wanted SABRE's list") from error
    except ArithmeticError as error:
        raise UserError(f"{where}: has a number that is out of all range, wanted SABRE's list with finite numbers") from error
    except RecursionError as error:
        raise UserError(f"{where}: is JSON nested too deep, wanted SABRE's list") from error
    if not isinstance(listed, list) or not listed:
        seen = "an empty list" if listed == [] else f"a JSON {type(listed).__name__}"
        raise UserError(f"{where}: is {seen}, wanted a list of {{duration_ms, bandwidth_kbps, latency_ms}} with at least one entry")
    return [_sabre_entry(entry, f"{where}: entry {number}") for number, entry in enumerate(listed, 1)]


def _sabre_entry(entry: object, at: str) -> tuple[Decimal, Decimal, Decimal | None]:
    if not isinstance(entry, dict) or not {"duration_ms", "bandwidth_kbps"} <= entry.keys() <= set(_SABRE_KEYS):
        seen = sorted(entry) if isinstance(entry, dict) else entry
        raise UserError(f"{at}: is {shown(seen)}, wanted an object of {', '.join(_SABRE_KEYS)}")
    for key, value in entry.items():
        if not isinstance(value, Decimal) or value < 0 or value.adjusted() > 300 or (key == "duration_ms" and not value):
            wanted = "above 0" if key == "duration_ms" else "of at least 0"
            raise UserError(f"{at}: {key} is {shown(str(value))}, wanted a finite number {wanted}")
    return entry["duration_ms"], entry["bandwidth_kbps"], entry.get("latency_ms")


def _write_pensieve(trace: RateTrace) -> str:
    rates = [to_text(Decimal(repr(rate)).scaleb(-6)) for rate in trace.rates_bps]
    rows = zip(trace.edges_s, (rates[0], *rates), strict=True)
    return "".join(f"{to_text(Decimal(repr(time)))}\t{rate}\n" for time, rate in rows)


def _write_mahimahi(trace: OpportunityTrace) -> str:
    times_ms = [round(ms_from_s(t)) for t in trace.times_s]
    for number, (time_ms, time_s) in enumerate(zip(times_ms, trace.times_s, strict=True), 1):
        if s_from_ms(time_ms) != time_s:
            raise UserError(f"trace {trace.name}: opportunity {number} is at {time_s} s, and format mahimahi wanted whole milliseconds")
    return "".join(f"{t}\n" for t in times_ms)


def _write_sabre(trace: RateTrace) -> str:
    edges = [Decimal(repr(e)) for e in trace.edges_s]
    latency = "" if trace.latency_s is None else f', "latency_ms": {to_text(Decimal(repr(trace.latency_s)).scaleb(3))}'
    entries = []
    for (start, end), rate in zip(pairwise(edges), trace.rates_bps, strict=True):
        duration_ms = to_text(EXACT.subtract(end, start).scaleb(3, EXACT))
        entries.append(f'  {{"duration_ms": {duration_ms}, "bandwidth_kbps": {to_text(Decimal(repr(rate)).scaleb(-3))}{latency}}}')
    return "[\n" + ",\n".join(entries) + "\n]\n"


_READERS: dict[str, Callable[[str, str, str], Trace]] = {
    "pensieve": _read_pensieve,
    "mahimahi": _read_mahimahi,
    "sabre": _read_sabre,
    "csv": read_csv,
}
_WRITERS: dict[str, Callable[[Any], str]] = {
    "pensieve": _write_pensieve,
    "mahimahi": _write_mahimahi,
    "sabre": _write_sabre,
    "csv": format_csv,
}
