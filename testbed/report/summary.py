"""`summary.json`, version 1: the contract that scripts and other people's tools read. What is unknown is null.

| key | meaning |
| --- | --- |
| trace | the set: name, split, `source` (`model` means: modelled, not measured), number of traces, sha256 |
| video | of the chunks that were played: name, sha256 of durations, ladder and sizes; null for other tasks |
| policies.NAME.trials | trials that ended, invalid ones among them; one that was played again is one trial |
| policies.NAME.source_sha256 | of the file of a user's own policy; null for ours, which the commit tells |
| policies.NAME.options_sha256 | option and hash (as in model cards) of what its options name; null where they name no file |
| policies.NAME.invalid | how many of them are invalid, the last attempt counting: shown, counted, and in no other number |
| policies.NAME.failed | how many of those because the policy raised, hung, starved jobs, or left all decisions to the local rule. If any |
| | did, its mean and all that rests on it are null and it is in no comparison: leaving out where it failed would flatter it |
| policies.NAME.mean, ci95 | over traces (seeds and offsets averaged first), `stats.over_traces` |
| policies.NAME.decision_ms | what the player waited for a decision, fallbacks and the queue behind other sessions included |
| policies.NAME.policy_ms | of that, what the policy itself computed |
| policies.NAME.simulation | the simulator twin on the same trials: its mean, emulation minus it, whether that is within 10 % or 0.1 |
| policies.NAME.simulation.same_levels_mean | the twin's mean when it plays the very levels that the emulated trials chose |
| optimum | the offline optimum, of an emulated run in the simulator, too: mean and ci95 over `n` traces, components, `grid_s`; or null |
| policies.NAME.share_of_optimum | mean QoE over the mean optimum of the same traces (a ratio of means); null where that is not above 0 |
| policies.NAME.gap_to_optimum | the optimum minus the policy, paired by trace: mean, ci95, traces; `trials_above` it, or null |
| comparisons | the main policy (netllm, else the first asked for) minus each other, strongest first; paired by trace |
| comparisons.p, p_holm | two-sided, of no difference, from the interval; adjusted by Holm for their number; or null |
| fidelity | over ALL trials, invalid ones included, of a repeated one the last attempt: the links' verdict and what it rests on |
| fidelity.verdict | `fail` if one trial's link failed |
| fidelity.lateness_ms_p99, rate_error_pct_100ms | of the worst trial |
| fidelity.late_packets, uncounted_losses | sums: packets later than 5 ms, packets lost behind the model's back |
| fidelity.drops | packets dropped by cause (`records_trial.Drops`), sums |
| fidelity.steal_pct, cpu_pressure_pct | the host over the whole run: cores' time that was stolen, time in which a task waited for a core |
| fidelity.repeated | attempts that were played again because their link failed; they are in no number but this |
| unfinished | trials that began but did not end (the run was cut short) |
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl

from testbed import stats
from testbed.events import Run
from testbed.pressure import weighted_mean
from testbed.records import AnyTrialRow, TrialRow
from testbed.terminal import MODELLED
from testbed.units import ms_from_s

VERSION = 1
COMPONENTS = {
    "abr": ("bitrate_mbps", "rebuffer_s", "switch_mbps", "startup_s"),
    "vp": ("quality_mbps", "rebuffer_s", "switch_mbps", "blank_share", "wasted_share", "mae_deg", "startup_s"),
    "cjs": ("p50_jct_s", "p95_jct_s", "makespan_s", "busy_share", "shuffled_mb"),
}
MOST_REASONS = 3
"""Trials that were played again and are named with the reason; the report lists all."""
POLICY, STARVED = "policy ", "starved"
"""How the end of a trial that its policy failed in reads (`testbed.twin`, `testbed.cluster`)."""
AGREEMENT_SHARE = 0.10
AGREEMENT_LEAST = 0.1
"""Emulated and simulated QoE agree within 10 %, or 0.1 where that is more."""


def summarise(run: Run) -> dict[str, Any]:
    """The summary of a run, ready for JSON."""
    header = run.header
    names = policy_names(run)
    policies = {name: _policy(run, name) for name in names}
    trace = {key: header.trace.get(key) for key in ("name", "split", "source", "traces", "sha256")}
    return {
        "version": VERSION,
        "task": header.task,
        "metric": header.metric,
        "unit": header.unit,
        "mode": header.mode,
        "trace": trace,
        "video": header.trace.get("video"),
        "host": {**header.versions, **header.host},
        "policies": policies,
        "optimum": optimum(run),
        "comparisons": _comparisons(run),
        "fidelity": fidelity(run),
        "unfinished": run.unfinished,
        "notes": notes(run),
    }


def policy_names(run: Run) -> list[str]:
    """The policies in the order asked for, then any that only the trials name."""
    return list(dict.fromkeys([*run.header.policies, *(t.policy for t in run.trials)]))


def main_policy(names: Sequence[str]) -> str | None:
    """The policy that the others are compared with: netllm (with or without options), else the first."""
    return next((n for n in names if n.split("+")[0] == "netllm"), names[0] if names else None)


def comparisons(run: Run) -> list[stats.Comparison]:
    """The main policy against each other one, the strongest of them first; without those that failed or share no trace with it."""
    names = policy_names(run)
    main = main_policy(names)
    if main is None or failures(run, main):
        return []
    metric = run.header.metric
    means = {n: _mean([t for t in run.trials if t.policy == n], "value") for n in names if n != main and not failures(run, n)}
    ordered = []
    while (best := stats.strongest(means, metric)) is not None:
        ordered.append(best)
        del means[best]
    pairs = (stats.compare(main, other, run.trials, metric) for other in ordered)
    return [pair for pair in pairs if pair.differences]


def failures(run: Run, name: str) -> list[AnyTrialRow]:
    """Trials that are invalid because policy `name` failed in them."""
    return [trial for trial in stats.last_attempts(run.trials) if trial.policy == name and _policy_failed(trial)]


def _policy_failed(trial: AnyTrialRow) -> bool:
    """Whether a trial speaks against its policy: it raised or hung, starved jobs, or left all decisions to the local rule."""
    ended = trial.end_reason == STARVED or trial.end_reason.startswith(POLICY)
    return not trial.valid and (ended or 0 < trial.decisions == trial.fallbacks)


def notes(run: Run) -> list[str]:
    """What a reader must know before the numbers: the header's notes, modelled traces, a run cut short."""
    found = list(run.header.notes)
    if modelled(run) and not any(MODELLED in note for note in found):
        found.append(f"The traces are {MODELLED}: drawn from a model of the set, whose level is off by some 0.1 QoE.")
    if again := repeated(run):
        found.append(_played_again(again))
    found += [*_failed(run), *_too_slow(run), *_stolen(run), *_without_optimum(run), *_above_optimum(run)]
    ended = len(stats.last_attempts(run.trials))
    if run.end is None:
        began = f" {run.unfinished} more had begun." if run.unfinished else ""
        found.append(f"The run was cut short, or still goes on: the numbers are of the {ended} trials that ended.{began}")
    elif run.end.reason != "complete":
        found.append(f"The run ended early ({run.end.reason}): the numbers are of the {ended} trials that ended.")
    return found


def _failed(run: Run) -> list[str]:
    """A sentence on each policy that has no mean because it failed."""
    found = []
    for name in policy_names(run):
        if failed := failures(run, name):
            trials = sum(trial.policy == name for trial in stats.last_attempts(run.trials))
            first = f"{failed[0].trial_id}: {failed[0].invalid_reason}"
            found.append(
                f"{name} has no mean, for it failed in {len(failed)} of {trials} trials ({first}): leaving those out would flatter it."
            )
    return found


def _too_slow(run: Run) -> list[str]:
    """A sentence on each policy whose simulated decisions a player would not have waited for."""
    deadline_ms = run.header.spec.get("deadline_ms")
    if run.header.mode != "simulation" or deadline_ms is None:
        return []
    found = []
    for name in policy_names(run):
        took_ms = _decisions_ms(run, [trial for trial in stats.last_attempts(run.trials) if trial.policy == name], "latency_s")
        if late := sum(ms > deadline_ms for ms in took_ms):
            share = f"{late} of {len(took_ms)} decisions of {name}"
            found.append(f"{share} took longer than the deadline, {deadline_ms:g} ms: in real time they would be fallbacks.")
    return found


def modelled(run: Run) -> bool:
    """Whether traces of this run were drawn from a model (of several sets, the sources are joined by +)."""
    return "model" in str(run.header.trace.get("source")).split("+")


def repeated(run: Run) -> list[AnyTrialRow]:
    """Attempts that were played again, so that they count no more."""
    counting = {trial.trial_id for trial in stats.last_attempts(run.trials)}
    return [trial for trial in run.trials if trial.trial_id not in counting]


def _played_again(again: Sequence[AnyTrialRow]) -> str:
    """How many, and why."""
    shown = "; ".join(f"{trial.trial_id}: {trial.invalid_reason}" for trial in again[:MOST_REASONS])
    more = f"; and {len(again) - MOST_REASONS} more" if len(again) > MOST_REASONS else ""
    many = "1 trial was" if len(again) == 1 else f"{len(again)} trials were"
    fair = "The verdict looks only at the link, never at the result, so none was chosen; but again means last, beside fewer other trials."
    return f"{many} played again because the link failed ({shown}{more}). {fair}"


def _stolen(run: Run) -> list[str]:
    """What to do where links failed and the hypervisor took CPU time."""
    stolen_pct = _host_pct(run, "steal_share") if run.header.mode == "emulation" else None
    failed = any(verdict(trial) == "fail" for trial in run.trials)
    if not stolen_pct or not failed:
        return []
    halting = "" if run.header.host.get("awake") else " Cores were let halt, and a host may be slow to run them again (--awake)."
    return [
        f"The host of this virtual machine took {stolen_pct:.1f} % of its CPU time while links failed: --repeats 6 plays a failed trial "
        f"more often than once.{halting}"
    ]


def fidelity(run: Run) -> dict[str, Any]:
    """The links' verdict over all trials, invalid ones included; of a repeated trial the last attempt."""
    trials = stats.last_attempts(run.trials)
    verdicts = {verdict(trial) for trial in trials} if run.header.mode == "emulation" else set()
    drops = [msgspec.structs.asdict(trial.drops) for trial in trials if trial.drops]
    return {
        "verdict": next((v for v in ("fail", "pass") if v in verdicts), None),
        "lateness_ms_p99": _worst(trials, "lateness_ms_p99"),
        "rate_error_pct_100ms": _worst(trials, "rate_error_pct_100ms"),
        "uncounted_losses": _sum(trials, "uncounted_losses"),
        "late_packets": _sum(trials, "late_packets"),
        "drops": {cause: sum(one[cause] for one in drops) for cause in drops[0]} if drops else None,
        "steal_pct": _host_pct(run, "steal_share"),
        "cpu_pressure_pct": _host_pct(run, "cpu_pressure_share"),
        "repeated": len(run.trials) - len(trials) if verdicts else None,
    }


def _host_pct(run: Run, column: str) -> float | None:
    """Mean share over the run in per cent, each window of the host by its length."""
    known = run.tables["host"].drop_nulls(column)
    mean = weighted_mean(zip(known[column], known["window_s"], strict=True))
    return None if mean is None else 100 * mean


def verdict(trial: AnyTrialRow) -> str | None:
    """The verdict on a trial's link; one that recorded none counts by its validity, if it was emulated."""
    if trial.fidelity is not None or trial.mode != "emulation":
        return trial.fidelity
    return "pass" if trial.valid else "fail"


def agrees(emulated: float, simulated: float) -> bool:
    """Whether emulation and simulation are within 10 %, or 0.1."""
    return abs(emulated - simulated) <= max(AGREEMENT_SHARE * abs(simulated), AGREEMENT_LEAST)


def _mean(trials: Sequence[AnyTrialRow], field: str) -> float | None:
    """Mean over traces of the valid ones of `trials`."""
    values = list(stats.per_trace(trials, field).values())
    return sum(values) / len(values) if values else None


def _worst(trials: Sequence[AnyTrialRow], field: str) -> float | None:
    return max((abs(v) for t in trials if (v := getattr(t, field)) is not None), default=None)


def _sum(trials: Sequence[AnyTrialRow], field: str) -> int | None:
    values = [v for t in trials if (v := getattr(t, field)) is not None]
    return sum(values) if values else None


def _policy(run: Run, name: str) -> dict[str, Any]:
    trials = [t for t in stats.last_attempts(run.trials) if t.policy == name]
    valid = [t for t in trials if t.valid]
    failed = len(failures(run, name))
    counted = [] if failed else valid
    qoe = stats.over_traces(stats.per_trace(counted))
    components = COMPONENTS.get(run.header.task, ())
    return {
        "trials": len(trials),
        "source_sha256": run.header.policies.get(name, {}).get("source_sha256") or None,
        "options_sha256": run.header.policies.get(name, {}).get("options_sha256") or None,
        "invalid": len(trials) - len(valid),
        "failed": failed,
        "mean": qoe.mean,
        "ci95": list(qoe.ci95) if qoe.ci95 else None,
        "components": {c: _mean(counted, c) for c in components},
        "decision_ms": _decision_ms(run, valid, "latency_s"),
        "policy_ms": _decision_ms(run, valid, "policy_s"),
        "decisions": sum(t.decisions for t in valid),
        "fallbacks": sum(t.fallbacks for t in valid),
        "simulation": _simulation(counted),
        "share_of_optimum": _share_of_optimum(counted),
        "gap_to_optimum": _gap_to_optimum(counted),
    }


def optimum(run: Run) -> dict[str, Any] | None:
    """The offline optimum over the run's traces, the offsets of a trace averaged first; None where none was computed."""
    found = [row for row in run.optima.values() if row.qoe is not None]
    if not found:
        return None

    def over_traces(field: str) -> stats.Estimate:
        by_trace: dict[stats.TraceKey, list[float]] = defaultdict(list)
        for row in found:
            by_trace[row.trace, row.trace_sha256].append(getattr(row, field))
        return stats.over_traces({key: sum(values) / len(values) for key, values in by_trace.items()})

    qoe = over_traces("qoe")
    return {
        "mean": qoe.mean,
        "ci95": list(qoe.ci95) if qoe.ci95 else None,
        "n": qoe.n,
        "grid_s": max(row.grid_s for row in found),
        "components": {c: over_traces(c).mean for c in COMPONENTS.get(run.header.task, ())},
    }


def gaps_to_optimum(valid: Sequence[AnyTrialRow]) -> dict[stats.TraceKey, float]:
    """The optimum minus ONE policy's valid trials, by trace."""
    both = _with_optimum(valid)
    policy, best = stats.per_trace(both, "qoe"), stats.per_trace(both, "optimum_qoe")
    return {key: best[key] - policy[key] for key in policy}


def _with_optimum(trials: Sequence[AnyTrialRow]) -> list[TrialRow]:
    return [t for t in trials if isinstance(t, TrialRow) and t.valid and t.qoe is not None and t.optimum_qoe is not None]


def _share_of_optimum(valid: Sequence[AnyTrialRow]) -> float | None:
    both = _with_optimum(valid)
    policy, best = _mean(both, "qoe"), _mean(both, "optimum_qoe")
    return policy / best if policy is not None and best is not None and best > 0 else None


def _gap_to_optimum(valid: Sequence[AnyTrialRow]) -> dict[str, Any] | None:
    gap = stats.over_traces(gaps_to_optimum(valid))
    if gap.mean is None:
        return None
    above = len(_above(_with_optimum(valid)))
    return {"mean": gap.mean, "ci95": list(gap.ci95) if gap.ci95 else None, "traces": gap.n, "trials_above": above}


def _above(trials: Sequence[TrialRow]) -> list[float]:
    """By how much trials score more than their optimum, for those that do."""
    return [over for t in trials if t.qoe is not None and t.optimum_qoe is not None and (over := t.qoe - t.optimum_qoe) > stats.TIE]


def _without_optimum(run: Run) -> list[str]:
    """A sentence on traces whose optimum could not be computed."""
    without = [row for row in run.optima.values() if row.qoe is None]
    if not without:
        return []
    reasons = "; ".join(dict.fromkeys(row.reason for row in without))
    return [f"{len(without)} of {len(run.optima)} traces have no offline optimum: {reasons}."]


def _above_optimum(run: Run) -> list[str]:
    """A sentence on trials that score more than what is called the optimum."""
    both = _with_optimum(stats.last_attempts(run.trials))
    if not (over := _above(both)):
        return []
    emulated = "it is the simulated path's, from which an emulated one differs a little"
    simulated = "it is a lower bound, found on a grid of the trace's time"
    why = emulated if run.header.mode == "emulation" else simulated
    many = f"{len(over)} of {len(both)} trials" if len(both) > 1 else "The trial"
    return [f"{many} score{'' if len(over) > 1 else 's'} above the offline optimum, by up to {max(over):.3f}: {why}."]


def _decision_ms(run: Run, valid: Sequence[AnyTrialRow], column: str) -> dict[str, float | None]:
    waits_ms = _decisions_ms(run, valid, column)
    return {"p50": stats.quantile(waits_ms, 0.5), "p99": stats.quantile(waits_ms, 0.99), "max": max(waits_ms, default=None)}


def _decisions_ms(run: Run, trials: Sequence[AnyTrialRow], column: str) -> list[float]:
    """A time of each decision of these trials."""
    ids = [trial.trial_id for trial in trials]
    return [ms_from_s(s) for s in run.tables["decisions"].filter(pl.col("trial_id").is_in(ids))[column].drop_nulls()]


def _simulation(valid: Sequence[AnyTrialRow]) -> dict[str, Any] | None:
    both = [t for t in valid if t.simulated is not None and t.value is not None]
    if not both:
        return None
    emulated, simulated = _mean(both, "value"), _mean(both, "simulated")
    if emulated is None or simulated is None:
        return None
    played = [t for t in both if isinstance(t, TrialRow) and t.replayed_qoe is not None]
    same_levels = _mean(played, "replayed_qoe") if len(played) == len(both) else None
    return {"mean": simulated, "difference": emulated - simulated, "within": agrees(emulated, simulated), "same_levels_mean": same_levels}


def _comparisons(run: Run) -> list[dict[str, Any]]:
    pairs = comparisons(run)
    p_values = [stats.p_value_of(pair.estimate) for pair in pairs]
    return [_comparison(*each) for each in zip(pairs, p_values, stats.holm(p_values), strict=True)]


def _comparison(pair: stats.Comparison, p: float | None, p_holm: float | None) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "mean_difference": pair.estimate.mean,
        "ci95": list(pair.estimate.ci95) if pair.estimate.ci95 else None,
        "p": p,
        "p_holm": p_holm,
        "wins": pair.wins,
        "losses": pair.losses,
        "ties": pair.ties,
        "traces": pair.estimate.n,
    }
