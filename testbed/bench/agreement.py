"""`sudo scripts/bench dashjs`: the headless player beside dash.js in Chromium, on the same links, fetching the same chunks.

Both play the same script of levels (`testbed.bench.jumps`) over the same traces, several times each. What is compared is the session: its
levels, start-up, stalls and end; medians over the repeats, so that one late timer on a busy host decides nothing. Single requests may
differ by more: one that leaves a little later meets another step of the trace. And dash.js's throughput estimate is computed from the
page's own timing in Python, decision by decision, and must equal what dash.js says, to the kbit/s.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import polars as pl
from rich.console import Console

from testbed.bench import jumps
from testbed.bench.page import table
from testbed.commit import command_line
from testbed.errors import TestbedError, UserError
from testbed.events import Run, read_run
from testbed.host import host_facts
from testbed.spec import Experiment

PLAYERS = ("headless", "dashjs", "dashjs_sync")
TRACES: dict[str, tuple[float, ...]] = {
    "steady 3": (3.0,),
    "slow steps 0.5-4": (1.5, 0.5, 3.0, 1.0, 4.0, 0.7),
    "fast steps 1.5-9": (4.0, 9.0, 1.5, 6.0, 2.5),
}
"""Mbit/s, each for `STEP_S`."""
STEP_S = 10
STALL_S = 0.1
"""A shorter one is a hiccup of the decoder."""
START_TOLERANCE_S, END_TOLERANCE_S = 0.2, 0.5
REBUFFER_TOLERANCE_S, REBUFFER_TOLERANCE = 0.3, 0.05
MARKS = ("<!-- agreement: written by scripts/bench dashjs -->", "<!-- end of agreement -->")


@dataclass(frozen=True)
class AgreementSettings:
    """Play the same chunks with the headless player and with dash.js in Chromium, and compare. Needs root."""

    chunks: int = 20
    """Chunks of each playback."""
    repeats: int = 3
    """Playbacks of each trace with each player."""
    parallel: int = 1
    """Lanes at once. Browsers that share a machine's cores take longer over each chunk: more lanes ask another question."""
    out: Path = Path("results/agreement")
    """Folder of the runs."""
    played: bool = False
    """Compare the newest runs there instead of playing."""
    write: Path | None = None
    """Also put the tables into this page (Markdown), between its marks."""


@dataclass(frozen=True)
class Session:
    """One playback, as far as it is compared; a link that failed its verdict says nothing about players."""

    levels: tuple[int, ...]
    startup_s: float
    stalls: int
    rebuffer_s: float
    end_s: float


@dataclass(frozen=True)
class Medians:
    """Of one trace with one player."""

    levels: frozenset[tuple[int, ...]]
    startup_s: float
    stalls: float
    rebuffer_s: float
    end_s: float
    sessions: int


def agreement(settings: AgreementSettings, console: Console) -> str:
    """Play, compare, and return the page's part. Raises `TestbedError` when players disagree."""
    if not settings.played:
        _play(settings, console)
    runs = {player: read_run((settings.out / player / "latest").resolve()) for player in PLAYERS}
    found = {player: _medians(run) for player, run in runs.items()}
    estimates = {player: _estimates(settings.out / player / "latest" / "browser") for player in PLAYERS[1:]}
    rows, faults = _compared(found)
    faults += [
        f"{player}: {seen - same} of {seen} throughput estimates differ" for player, (seen, same) in estimates.items() if seen != same
    ]
    text = _page(runs["dashjs"], rows, estimates, faults)
    if settings.write:
        _put(settings.write, text)
    if faults:
        raise TestbedError(f"the players disagree: {'; '.join(faults)}\n{text}")
    return text


def _play(settings: AgreementSettings, console: Console) -> None:
    from testbed.experiment import run

    folder = settings.out / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rates_mbps in TRACES.items():
        lines = (f"{STEP_S * i} {rates_mbps[i % len(rates_mbps)]}\n" for i in range(31))
        (folder / f"{name}.txt").write_text("".join(lines), encoding="ascii")
    common = Experiment(
        trace=(str(folder),),
        policies=str(Path(jumps.__file__).resolve()),
        trials="all",
        seeds=tuple(range(1, settings.repeats + 1)),
        chunks=settings.chunks,
        parallel=settings.parallel,
        repeats=2,
    )
    for player in PLAYERS:
        console.print(f"[bold]{player}[/]")
        run(dataclasses.replace(common, player=player, out=str(settings.out / player)), console)  # type: ignore[arg-type]


def _medians(run: Run) -> dict[str, Medians]:
    by_trace: dict[str, list[Session]] = {}
    for trial in run.playbacks:
        if trial.valid and trial.wall_s is not None and trial.startup_s is not None:
            of_trial = {name: run.tables[name].filter(pl.col("trial_id") == trial.trial_id) for name in ("chunks", "stalls")}
            lengths_s = [end - start for start, end in of_trial["stalls"].select("start_s", "end_s").iter_rows()]
            by_trace.setdefault(trial.trace, []).append(
                Session(
                    levels=tuple(of_trial["chunks"].sort("index")["level"]),
                    startup_s=trial.startup_s,
                    stalls=sum(length_s >= STALL_S for length_s in lengths_s),
                    rebuffer_s=sum(lengths_s),
                    end_s=trial.wall_s,
                )
            )
    return {trace: _median(sessions) for trace, sessions in by_trace.items()}


def _median(sessions: Sequence[Session]) -> Medians:
    return Medians(
        levels=frozenset(session.levels for session in sessions),
        startup_s=median(session.startup_s for session in sessions),
        stalls=median(session.stalls for session in sessions),
        rebuffer_s=median(session.rebuffer_s for session in sessions),
        end_s=median(session.end_s for session in sessions),
        sessions=len(sessions),
    )


def _estimates(folder: Path) -> tuple[int, int]:
    """Decisions at which dash.js had an estimate, and those at which ours was the same."""
    seen = same = 0
    for path in sorted(folder.glob("*.page.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            message = json.loads(line)
            if message["message"] == "decide":
                seen += 1
                same += message["throughput_kbps"]["dashjs"] == message["throughput_kbps"]["here"]
    return seen, same


def _compared(found: Mapping[str, Mapping[str, Medians]]) -> tuple[list[list[str]], list[str]]:
    """A row for each trace and player, and what is beyond the tolerances, in sentences."""
    rows, faults = [], []
    for name in (f"{trace}.txt" for trace in TRACES):
        ours = found["headless"].get(name)
        if ours is None:
            raise TestbedError(f"no valid playback of {name} by the headless player: its links failed, wanted a less busy machine")
        for player in PLAYERS:
            seen = found[player].get(name)
            if seen is None:
                faults.append(f"{player} on {name}: no valid playback")
                continue
            broken = _broken(ours, seen) if player != "headless" else []
            faults += [f"{player} on {name}: {what}" for what in broken]
            numbers = [f"{seen.startup_s:.2f}", f"{seen.stalls:g}", f"{seen.rebuffer_s:.2f}", f"{seen.end_s:.2f}", str(seen.sessions)]
            rows.append([name.removesuffix(".txt"), player, *numbers, "-" if player == "headless" else ", ".join(broken) or "agrees"])
    return rows, faults


def _broken(ours: Medians, browser: Medians) -> list[str]:
    most_s = max(REBUFFER_TOLERANCE_S, REBUFFER_TOLERANCE * ours.rebuffer_s)
    checks = {
        "other levels": len(ours.levels | browser.levels) == 1,
        "start-up": abs(ours.startup_s - browser.startup_s) <= START_TOLERANCE_S,
        "number of stalls": abs(ours.stalls - browser.stalls) < 1,
        "length of stalls": abs(ours.rebuffer_s - browser.rebuffer_s) <= most_s,
        "end": abs(ours.end_s - browser.end_s) <= END_TOLERANCE_S,
    }
    return [what for what, kept in checks.items() if not kept]


def _page(run: Run, rows: list[list[str]], estimates: Mapping[str, tuple[int, int]], faults: Sequence[str]) -> str:
    facts, command = host_facts(), command_line("scripts/bench", [word for word in sys.argv[1:] if word != "--played"])
    heads = ["trace, Mbit/s", "player", "start-up s", "stalls", "stalled s", "end s", "sessions", "verdict"]
    exact = "; ".join(f"{player}: {same} of {seen} decisions" for player, (seen, same) in estimates.items())
    return "\n".join(
        [
            f"{run.header.started_utc[:10]}, commit `{run.header.commit}`, {facts['cpu_model']}, {facts['os']}: `{command}`. Medians.",
            "",
            table(heads, rows),
            f"Throughput estimate equal to dash.js's own, to the kbit/s: {exact}.",
            f"Verdict: {'the players agree' if not faults else '; '.join(faults)}.",
            "",
        ]
    )


def _put(path: Path, text: str) -> None:
    """Replace what stands between the marks."""
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not (found and ended):
        raise UserError(f"{path}: has no lines {MARKS[0]!r} and {MARKS[1]!r}, wanted them around the tables")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
