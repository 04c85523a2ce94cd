"""The part of a report that says whether the links and the host can be trusted: verdicts, lateness, use of capacity, the host over time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import polars as pl
from markupsafe import Markup

from testbed import stats
from testbed.events import Run
from testbed.link import LATE_S, MAX_LATE_SHARE, MAX_LATENESS_P99_S, MAX_RATE_ERROR_PCT, MIN_LATE_PACKETS, MIN_STALLED_S
from testbed.records import AnyTrialRow, HostRow
from testbed.report import linkfigures
from testbed.report.linkfigures import WINDOW_S, Windows
from testbed.report.summary import repeated, verdict
from testbed.units import ms_from_s

MOST_PICTURES = 4
"""Trials whose use of capacity is drawn per 100 ms; each takes about 60 kB."""
MOST_LISTED = 60
"""Trials listed with all that was measured of their links."""
_LIMITS_MS = {f"p99 at most {ms_from_s(MAX_LATENESS_P99_S):g} ms": ms_from_s(MAX_LATENESS_P99_S), "late from here": ms_from_s(LATE_S)}
_LINK_COLUMNS = ("allowed_bytes", "delivered_bytes", "dropped_bytes", "lost_bytes")


@dataclass(frozen=True)
class Measure:
    """A line of the table: what, its median and worst over trials, and what the verdict wants of each."""

    name: str
    median: float | None
    worst: float | None
    digits: int
    wanted: str = ""
    broken: bool = False


@dataclass(frozen=True)
class LinkPage:
    """A run's links, seen as what the template shows."""

    run: Run
    summary: Mapping[str, Any]

    @cached_property
    def trials(self) -> list[AnyTrialRow]:
        """The attempts that count."""
        return stats.last_attempts(self.run.trials)

    @property
    def verdict(self) -> str:
        """Of all links together."""
        return str(self.summary["fidelity"]["verdict"])

    @property
    def failed(self) -> int:
        """Trials whose links failed."""
        return sum(verdict(t) == "fail" for t in self.trials)

    @cached_property
    def repeated(self) -> list[AnyTrialRow]:
        """Attempts that were played again."""
        return repeated(self.run)

    def measures(self) -> list[Measure]:
        """The table."""
        p99, late, error = ms_from_s(MAX_LATENESS_P99_S), 100 * MAX_LATE_SHARE, MAX_RATE_ERROR_PCT
        late_name = f"Packets later than {ms_from_s(LATE_S):g} ms, per cent (judged if more than {MIN_LATE_PACKETS} are)"
        error_name = f"Rate error over 100 ms, per cent (judged if it is that of more than {ms_from_s(MIN_STALLED_S):g} ms)"
        use = self._use()
        return [
            self._of("Lateness of packets, median, ms", lambda t: t.lateness_ms_p50, 3),
            self._of("Lateness of packets, p99, ms", lambda t: t.lateness_ms_p99, 3, p99),
            self._of("Lateness of packets, greatest, ms", lambda t: t.lateness_ms_max, 3),
            self._of(late_name, late_pct, 4, late),
            self._of("Time the relay stood still, ms", lambda t: t.stalled_ms, 1),
            self._of(error_name, lambda t: t.rate_error_pct_100ms, 3, error),
            self._of("Losses not counted, packets", lambda t: t.uncounted_losses, 0, 0),
            self._of("Dropped on the way down, per cent of bytes", lambda t: use.get(t.trial_id, (None, None))[1], 3),
            self._of("Capacity used on the way down, per cent", lambda t: use.get(t.trial_id, (None, None))[0], 1),
            self._of("CPU time stolen from the host, per cent", lambda t: _pct(t.steal_share), 2),
            self._of("The same in the worst sample", lambda t: _pct(t.worst_steal_share), 1),
            self._of("CPU pressure: time some task waited, per cent", lambda t: _pct(t.cpu_pressure_share), 1),
            self._of("Time the relay waited for a core, per cent", lambda t: _pct(t.relay_wait_share), 3),
        ]

    def _of(self, name: str, value: Callable[[AnyTrialRow], float | None], digits: int, limit: float | None = None) -> Measure:
        values = [abs(v) for t in self.trials if (v := value(t)) is not None]
        worst = max(values, default=None)
        broken = bool(self.failed) and limit is not None and worst is not None and worst > limit
        return Measure(name, stats.quantile(values, 0.5), worst, digits, "" if limit is None else f"{limit:g}", broken)

    def _use(self) -> dict[str, tuple[float | None, float | None]]:
        """Of each trial's way down: per cent of its capacity that was used, and of its bytes that were dropped."""
        down = self.run.tables["links"].filter(pl.col("direction") == "down")
        sums = down.group_by("trial_id").agg(pl.col(name).sum() for name in _LINK_COLUMNS)
        return {
            trial_id: (
                100 * delivered / allowed if allowed else None,
                100 * dropped / (delivered + dropped) if delivered + dropped else None,
            )
            for trial_id, allowed, delivered, dropped, _ in sums.iter_rows()
        }

    def packets(self) -> dict[str, Any] | None:
        """All packets of all trials, and where they ended; None for runs that did not record it."""
        drops = self.summary["fidelity"]["drops"]
        if drops is None:
            return None
        into, out = (sum(getattr(t, name) or 0 for t in self.trials) for name in ("packets_in", "packets_out"))
        return {"into": into, "out": out, "drops": drops, "uncounted": self.summary["fidelity"]["uncounted_losses"]}

    def notes(self) -> list[str]:
        """What the links said that their verdicts don't judge, each sentence once, with how many trials said it."""
        said = [note for t in self.trials for note in _notes(t)]
        return [f"{note[:1].upper()}{note[1:]} (said of {said.count(note)} of {len(self.trials)} trials)." for note in dict.fromkeys(said)]

    def lateness(self) -> Markup:
        """The histogram: links that passed, and in front of them those that failed, attempts that were repeated among them."""
        failed = {t.trial_id for t in self.run.trials if verdict(t) == "fail"}
        series = {
            "hist": [row for row in self.run.lateness if row.trial_id not in failed],
            "hist-failed": [row for row in self.run.lateness if row.trial_id in failed],
        }
        return Markup(linkfigures.lateness(series, _LIMITS_MS, "Lateness of packets"))

    def host(self) -> Markup:
        """The host over the run; empty when it was not watched."""
        rows = [HostRow(**values) for values in self.run.tables["host"].sort("at_s").to_dicts()]
        return Markup(linkfigures.host(rows, self.run.trials, "The host over the run") if rows else "")

    def pictures(self) -> list[dict[str, Any]]:
        """What a few links did with their capacity: failed ones first, then those nearest to a limit."""
        recorded = set(self.run.tables["links"]["trial_id"].unique())
        ranked = [t for t in sorted(self.run.trials, key=nearness, reverse=True) if t.trial_id in recorded]
        return [{"trial": t, "ways": self._ways(t)} for t in ranked[:MOST_PICTURES]]

    def _ways(self, trial: AnyTrialRow) -> list[dict[str, Any]]:
        rows = self.run.tables["links"].filter(pl.col("trial_id") == trial.trial_id)
        ways = []
        for direction, label in (("down", "server to client"), ("up", "client to server")):
            way = rows.filter(pl.col("direction") == direction).sort("start_s")
            if way.is_empty():
                continue
            windows = _windows(way)
            whole, near = windows.drawable(), windows.close_up()
            title = f"{trial.trial_id}, {label}"
            ways.append(
                {
                    "label": label,
                    "width_ms": round(ms_from_s(whole.width_s)),
                    "whole": Markup(linkfigures.capacity_use(whole, f"{title}: capacity and its use")),
                    "near": Markup(linkfigures.capacity_use(near, f"{title}: close-up")),
                    "from_s": near.begin_s,
                }
            )
        return ways

    def listed(self) -> list[dict[str, Any]]:
        """Trials with all that was measured, failed ones first, then those nearest to a limit."""
        ranked = sorted(self.run.trials, key=nearness, reverse=True)[:MOST_LISTED]
        common = set.intersection(*(set(_notes(t)) for t in self.run.trials))
        return [{"trial": t, "late_pct": late_pct(t), "drops": sum(drops(t).values()), "told": _told(t, common)} for t in ranked]

    def after(self, trial: AnyTrialRow) -> str:
        """What followed an invalid trial."""
        if trial.trial_id not in {t.trial_id for t in self.repeated}:
            return "left out"
        later = next(t for t in self.trials if (t.policy, t.trace_sha256, t.offset_s, t.seed) == _cell(trial) and t.trace == trial.trace)
        return f"played again: {later.trial_id}, {'valid' if later.valid else 'invalid'}"


def _cell(trial: AnyTrialRow) -> tuple[str, str, float, int]:
    return trial.policy, trial.trace_sha256, trial.offset_s, trial.seed


def late_pct(trial: AnyTrialRow) -> float | None:
    """Packets later than `LATE_S`, per cent of those that came out, in the direction that has more of them."""
    return _pct(trial.late_share)


def drops(trial: AnyTrialRow) -> dict[str, int]:
    """By cause; empty when nobody counted."""
    return msgspec.structs.asdict(trial.drops) if trial.drops else {}


def _notes(trial: AnyTrialRow) -> list[str]:
    return [note for note in trial.link_notes.split("; ") if note]


def _told(trial: AnyTrialRow, common: set[str]) -> str:
    """Why its link failed, and what is to be known of it that is not so of all trials."""
    reasons = [trial.invalid_reason] if verdict(trial) == "fail" else []
    return "; ".join([*reasons, *(note for note in _notes(trial) if note not in common)])


def nearness(trial: AnyTrialRow) -> tuple[bool, float]:
    """How near a link came to failing: whether it did, and the greatest of its measures in units of its limit."""
    shares = (
        (trial.lateness_ms_p99 or 0.0) / ms_from_s(MAX_LATENESS_P99_S),
        (trial.rate_error_pct_100ms or 0.0) / MAX_RATE_ERROR_PCT,
        (late_pct(trial) or 0.0) / (100 * MAX_LATE_SHARE),
    )
    return verdict(trial) == "fail", max(shares)


def _pct(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _windows(rows: pl.DataFrame) -> Windows:
    """Of one direction of one trial, in order of time."""
    columns = (rows[name].to_numpy().astype(np.float64) for name in (*_LINK_COLUMNS, "queue_bytes"))
    return Windows(float(rows["start_s"][0]), WINDOW_S, *columns)


def of_run(run: Run, summary: Mapping[str, Any]) -> LinkPage | None:
    """None when no link was emulated."""
    emulated: Sequence[AnyTrialRow] = run.trials if run.header.mode == "emulation" else ()
    return LinkPage(run, summary) if emulated else None
