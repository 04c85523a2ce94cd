"""`scripts/bench live RESULTS ...`: emulated runs beside their twins in the simulator, and where the two part.

A trial differs from its twin for two reasons that can be told apart, because the twin is played twice. *Path*: when the simulator plays the
very levels of the emulated trial, bitrates and changes are the same, so what differs is stall alone. *Choice*: under the same policy it
plays other levels, because the policy saw other throughputs and buffers.

What the path costs is counted chunk by chunk. The simulator's own formula, applied to the moment when the real request was sent, says how
long the chunk would take there; three steps lead from it to the time that the chunk really took:

| step | what changes |
| --- | --- |
| clock | the trace goes on during the round trip, which it does not in the simulator |
| headers | the share of bytes that is not media is the one that the link counted, not the simulator's 5 % |
| the rest | TCP's slow start, first and after each pause, its recovery from drops, HTTP and both programs |
"""

import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from testbed import stats
from testbed.bench.page import table
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.drawing.typography import STYLE, save
from testbed.errors import UserError
from testbed.events import Run, read_run
from testbed.metrics import REBUF_PENALTY
from testbed.records import TrialRow
from testbed.report.summary import fidelity, main_policy, optimum, policy_names, summarise
from testbed.results import as_trace
from testbed.sim.abr import PAYLOAD_SHARE
from testbed.units import ms_from_s, s_from_ms
from traces.trace import RateTrace

DOWN = "down"
"""The direction of `LinkRow` that carries media."""


@dataclass(frozen=True)
class LiveSettings:
    """Compare emulated runs with the simulator. No root; nothing is played."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Result folders of emulated runs."""
    write: Path | None = None
    """Also write the page (Markdown) to this file, and its figure beside it."""


@dataclass(frozen=True)
class Costs:
    """Means per chunk, seconds."""

    download_s: float
    """From request to last byte, as the player saw it."""
    simulated_s: float
    """What the simulator says of a request at that moment of the trace."""
    clock_s: float
    headers_s: float
    rest_s: float
    """`download_s` is the sum of the other four."""


def live(settings: LiveSettings) -> str:
    """The page as text."""
    runs = [_emulated(folder) for folder in settings.results]
    shown = settings.write.with_suffix(".svg") if settings.write else None
    text = "\n".join([_introduction(shown), *(_section(run) for run in runs)])
    if settings.write and shown:
        settings.write.write_text(text, encoding="utf-8")
        figure(runs, shown)
    return text


def _emulated(folder: Path) -> Run:
    run = read_run(folder)
    if run.header.mode != "emulation" or run.header.task != "abr":
        raise UserError(f"{folder}: holds a run of {run.header.task} in {run.header.mode}, wanted one of abr in emulation")
    if not any(trial.valid and trial.simulated_qoe is not None for trial in run.playbacks):
        raise UserError(f"{folder}: holds no valid trial with a twin in the simulator, wanted a run that ended")
    return run


def chunk_costs(run: Run, trials: Sequence[TrialRow]) -> pl.DataFrame:
    """One row per chunk of `trials`: its index, whether the player had paused before it, and its time in the parts of `Costs`."""
    return pl.concat([_of_trial(run, trial) for trial in trials])


def _of_trial(run: Run, trial: TrialRow) -> pl.DataFrame:
    trace = as_trace(run.traces[trial.trace_sha256])
    chunks = run.tables["chunks"].filter(pl.col("trial_id") == trial.trial_id).sort("index")
    sizes = chunks["size_bytes"].to_numpy().astype(float)
    begin_s = trial.offset_s + chunks["request_s"].to_numpy()
    rtt_s = s_from_ms(float(run.header.spec["rtt_ms"]))
    sent_bytes = sizes * _overhead(run, trial, float(sizes.sum()))
    simulated_s = rtt_s + seconds_for(trace, begin_s, sizes / PAYLOAD_SHARE)
    going_on_s = rtt_s + seconds_for(trace, begin_s + rtt_s / 2, sizes / PAYLOAD_SHARE)
    counted_s = rtt_s + seconds_for(trace, begin_s + rtt_s / 2, sent_bytes)
    download_s = chunks["download_s"].to_numpy()
    waited_s = chunks["waited_s"].to_numpy()
    return pl.DataFrame(
        {
            "trial_id": trial.trial_id,
            "index": chunks["index"],
            "paused": np.append(False, waited_s[:-1] > 0),
            "download_s": download_s,
            "simulated_s": simulated_s,
            "clock_s": going_on_s - simulated_s,
            "headers_s": counted_s - going_on_s,
            "rest_s": download_s - counted_s,
        }
    )


def _overhead(run: Run, trial: TrialRow, media_bytes: float) -> float:
    """IP bytes that the link delivered per byte of media."""
    links = run.tables["links"].filter((pl.col("trial_id") == trial.trial_id) & (pl.col("direction") == DOWN))
    return float(links["delivered_bytes"].sum()) / media_bytes


def seconds_for(trace: RateTrace, begin_s: np.ndarray, sent_bytes: np.ndarray) -> np.ndarray:
    """Until so many bytes have passed from `begin_s` of the trace on, which wraps, (n,)."""
    carried_bytes = np.append(trace.bytes_by(np.asarray(trace.edges_s[:-1])), trace.capacity_bytes)
    periods, rest_bytes = np.divmod(trace.bytes_by(begin_s) + sent_bytes, trace.capacity_bytes)
    return periods * trace.duration_s + np.interp(rest_bytes, carried_bytes, trace.edges_s) - begin_s


def costs(chunks: pl.DataFrame) -> Costs:
    """Means over `chunks`, of which there is at least one."""
    return Costs(**{each.name: float(chunks[each.name].to_numpy().mean()) for each in fields(Costs)})


def figure(runs: Sequence[Run], path: Path) -> Path:
    """A panel per run: each policy's mean and interval live, its mean in the simulator, the optimum there as a dashed line."""
    most = max(len(policy_names(run)) for run in runs)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(0.6 + 2.6 * len(runs), 0.5 + 0.2 * most), layout="constrained")
        for axes, run in zip(drawn.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
            _panel(axes, run)
        return save(drawn, path)


def _panel(axes: Axes, run: Run) -> None:
    policies = summarise(run)["policies"]
    names = sorted(policies, key=lambda name: policies[name]["mean"] or -np.inf)
    for i, name in enumerate(names):
        look, found = run.header.policies.get(name, {}), policies[name]
        if found["ci95"]:
            axes.plot(found["ci95"], [i, i], color=look.get("colour", "#777777"), linewidth=2.2, alpha=0.5, solid_capstyle="butt")
        axes.plot([found["mean"]], [i], "o", color=look.get("colour", "#777777"), markersize=4)
        if found["simulation"]:
            axes.plot([found["simulation"]["mean"]], [i], "|", color="black", markersize=8)
    if best := optimum(run):
        axes.axvline(best["mean"], color="#a04000", linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(names)), [run.header.policies.get(name, {}).get("label") or name for name in names])
    axes.grid(axis="y", visible=False)
    axes.set_title(_title(run), fontsize=8)
    axes.set_xlabel("QoE per chunk")


def _title(run: Run) -> str:
    traces = len({(trial.trace, trial.trace_sha256) for trial in run.trials})
    return f"{run.header.trace.get('name')}/{run.header.trace.get('split')}: {traces} traces"


def _introduction(shown: Path | None) -> str:
    told = (__doc__ or "").split("\n\n", 1)[1].rstrip()
    command = command_line("scripts/bench", [Path(word).name if Path(word).is_dir() else word for word in sys.argv[1:]])
    made = f"Made by `{command}` on {utc_now():%Y-%m-%d}, commit `{checkout_commit()[:12]}`; don't edit. What made each run stands with it."
    picture = (
        "Dots and bars: live, with 95 % intervals (traces of one household or ride are one measurement); strokes: the simulator; dashed: "
        "the offline optimum there."
    )
    seen = [f"![QoE live and in the simulator]({shown.name})", "", picture, ""] if shown else []
    return "\n".join(["# Live: emulation beside the simulator", "", made, "", told, "", *seen])


def _section(run: Run) -> str:
    header, found = run.header, fidelity(run)
    trials = stats.last_attempts(run.playbacks)
    valid = [trial for trial in trials if trial.valid]
    steal = "" if found["steal_pct"] is None else f", {found['steal_pct']:.2f} % of CPU time stolen by the host"
    again = len(run.trials) - len(trials)
    facts = [
        f"`{header.command}`, {header.started_utc[:10]}, commit `{header.commit[:12]}`, {header.host.get('cpu_model', 'unknown CPU')}.",
        f"{len(valid)} of {len(trials)} trials are valid; {again} attempts were played again because their link failed.",
        f"Worst p99 lateness {found['lateness_ms_p99']:.2f} ms, uncounted losses {found['uncounted_losses']}{steal}.",
    ]
    return "\n".join([f"## {_title(run)}", "", " ".join(facts), "", _policies(run), _differences(run), _chunks(run, valid)])


def _policies(run: Run) -> str:
    """QoE live, in the simulator, and why they differ."""
    policies, trials = summarise(run)["policies"], stats.last_attempts(run.playbacks)
    rows = []
    for name in sorted(policy_names(run), key=lambda name: -(policies[name]["mean"] or -np.inf)):
        found, mine = policies[name], [t for t in trials if t.policy == name and t.valid and t.replayed_qoe is not None]
        parts, decision, twin = found["components"], found["decision_ms"], found["simulation"] or {}  # the browser's own rules have no twin
        path = _mean([t.qoe - t.replayed_qoe for t in mine if t.qoe is not None and t.replayed_qoe is not None])
        choice = _mean([t.replayed_qoe - t.simulated_qoe for t in mine if t.replayed_qoe is not None and t.simulated_qoe is not None])
        rows.append(
            (
                f"`{name}`", _within(stats.over_traces(stats.per_trace(mine))), _percent(found["share_of_optimum"]),
                _signed(twin.get("mean"), ""), _signed(twin.get("difference")), _signed(path), _signed(choice),
                _signed(parts["bitrate_mbps"], "", 2), _signed(parts["rebuffer_s"], "", 4), _signed(parts["switch_mbps"], ""),
                _signed(parts["startup_s"], "", 2), f"{_signed(decision['p50'], '', 0)}, {_signed(decision['p99'], '', 0)}",
                f"{found['fallbacks']} of {found['decisions']}",
                f"{found['trials'] - found['invalid']} of {found['trials']}",
            )
        )  # fmt: skip
    headings = (
        "policy", "QoE, live", "of the optimum", "simulator", "live minus simulator", "of it path", "choice", "Mbit/s", "stall, s a chunk",
        "change, Mbit/s", "start-up, s", "decision ms, p50, p99", "fallbacks", "valid trials",
    )  # fmt: skip
    best = optimum(run)
    said = f"\nOffline optimum in the simulator, on the same traces: {best['mean']:.3f}.\n" if best else ""
    return table(headings, rows) + said


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _differences(run: Run) -> str:
    """The main policy minus each other, live and in the simulator on the same trials."""
    names = policy_names(run)
    main = main_policy(names)
    if main is None or len(names) < 2:
        return ""
    rows = []
    for other in (name for name in names if name != main):
        emulated, simulated = (stats.compare(main, other, run.trials, value=value) for value in ("qoe", "simulated_qoe"))
        interval = emulated.estimate.ci95
        clear = "yes" if interval and not interval[0] <= 0 <= interval[1] else "no"
        rows.append(
            (f"`{other}`", _signed(emulated.estimate.mean), _interval(emulated.estimate),
             f"{emulated.wins}, {emulated.losses}, {emulated.ties}", clear, _signed(simulated.estimate.mean),
             _interval(simulated.estimate), str(emulated.estimate.n))
        )  # fmt: skip
    headings = (f"`{main}` minus", "live", "95 % interval", "won, lost, tied", "clear of 0", "in the simulator", "95 % interval", "traces")
    return "Paired on each trace where both have a valid trial:\n\n" + table(headings, rows)


def _chunks(run: Run, valid: Sequence[TrialRow]) -> str:
    """Where a chunk's time goes."""
    every = chunk_costs(run, valid)
    after = every.filter(pl.col("index") > 0)
    kinds = {
        "the first, which is start-up": every.filter(pl.col("index") == 0),
        "asked for at once": after.filter(~pl.col("paused")),
        "after a pause at a full buffer": after.filter(pl.col("paused")),
    }
    rows = [(kind, f"{len(chunks):,}", *map(_ms, astuple(costs(chunks)))) for kind, chunks in kinds.items() if len(chunks)]
    decisions = run.tables["decisions"].filter(pl.col("trial_id").is_in([trial.trial_id for trial in valid]))
    waits_ms = ms_from_s(float(decisions["latency_s"].to_numpy().mean()))
    return "\n".join(
        [
            "Mean time of a chunk from request to last byte, beside what the simulator says of the same request, and the steps between:",
            "",
            table(("chunks", "how many", "live, ms", "simulator, ms", "clock", "headers", "the rest"), rows),
            f"Before each request but the first the player waits for a decision, {waits_ms:.1f} ms on average; the simulator decides in no "
            f"time. A second of stall costs {REBUF_PENALTY} QoE.\n",
        ]
    )


def _ms(seconds: float) -> str:
    return f"{ms_from_s(seconds):,.0f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float | None, sign: str = "+", digits: int = 3) -> str:
    return "\N{EN DASH}" if value is None else f"{value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _within(found: stats.Estimate) -> str:
    half = f" ± {found.half_width:.3f}" if found.ci95 else ""
    return _signed(found.mean, "") + half


def _interval(found: stats.Estimate) -> str:
    return f"{_signed(found.ci95[0])} to {_signed(found.ci95[1])}" if found.ci95 else "\N{EN DASH}"


def _percent(share: float | None) -> str:
    return "\N{EN DASH}" if share is None else f"{100 * share:.0f} %"
