"""What the card of an adapter for scheduling says beyond the frame."""

from typing import Any

from controllers.learning.cjs_sessions import EXECUTORS, LEFT_OUT, SMALL_EXECUTORS, SMALL_JOBS, USUAL_EXECUTORS
from netllm.cards.frame import LOSSES, Card, weights_kept
from netllm.tasks.cjs import TRUST_ABOVE
from traces.workload import JOBS


def _about(facts: dict[str, Any]) -> str:
    collected = [each["settings"] for each in facts["trained"]["experience"]]
    alone = " In some sessions it was taught by\nthat rule's own decisions alone." if any(each["rule_only"] for each in collected) else ""
    return (
        f"It learnt what a look-ahead in the simulator, which\ngoes on by the rule `srpt_cap`, says of candidate decisions.{alone} Trained "
        f"on TPC-H jobs, {_sizes(collected)}; other clusters and jobs are outside that." + _leaning(facts)
    )


def _sizes(collected: list[dict[str, Any]]) -> str:
    """Of the clusters and workloads that were drawn (`controllers.learning.cjs_sessions.draw_session`)."""
    usual, small = (any(each[name] for each in collected) for name in ("usual", "small"))
    others = any(each["usual"] + each["small"] < 1 for each in collected)
    if others:
        low, high = EXECUTORS[0] if small else SMALL_EXECUTORS, EXECUTORS[1]
        executors = f"{low} to {high} executors (none of {LEFT_OUT[0]} to {LEFT_OUT[1]})"
    else:
        kinds = [f"{EXECUTORS[0]} to {SMALL_EXECUTORS}"] * small + [str(USUAL_EXECUTORS)] * usual
        executors = f"{' and '.join(kinds)} executors"
    return f"{executors}, at\nmost {JOBS if usual or others else SMALL_JOBS} jobs"


def _leaning(facts: dict[str, Any]) -> str:
    if "trust" not in facts:
        return ""
    tried = ", ".join(f"{each['bonus']:g}: {each['jct_over_rule']:.4f} (± {each['log_ci95']:.4f})" for each in facts["trust"]["tried"])
    kinds = "; ".join(f"{count} of {executors} executors and {jobs} jobs" for executors, jobs, count in facts["trust"]["sessions"])
    return (
        f" In clusters of more than {TRUST_ABOVE}\nexecutors it leans on that rule: `trust` is added to the log-probabilities of its "
        f"choices. `scripts/adapt cjs-trust`\n(commit `{facts['trust']['commit'][:12]}`) chose it among these, with JCT over the rule's in "
        f"validation sessions ({kinds}): {tried}."
    )


def _training(facts: dict[str, Any]) -> dict[str, str]:
    trained = facts["trained"]
    sources = trained["experience"]
    sessions = " + ".join(str(each["settings"]["sessions"]) for each in sources)
    dagger = " (and DAgger)" if trained["dagger_rounds"] else ""
    seeds = ", ".join(str(each["settings"]["seed"]) for each in sources)
    return {
        "sessions": f"{sessions}, drawn from seeds {seeds}; no workload of an evaluation or of the published results",
        "labelled windows": f"{' + '.join(map(str, trained['windows']))}{dagger} of {trained['collect']['window']} decisions",
        "labels": ", ".join(f"{name} {value}" for name, value in trained["labels"].items()),
        "length": f"{trained['steps']} steps of {trained['optimiser']['batch']} windows, {trained['minutes']} min",
        "weights": weights_kept(trained),
        "without the language model": f"the first {trained['bare']:.0%} of the {_budget(trained)}: encoder and heads alone",
    }


def _budget(trained: dict[str, Any]) -> str:
    """What a share of the training is one of; runs that did not record it tell by their command."""
    return str(trained.get("budget") or ("time" if " --minutes " in trained["command"] else "budget"))


def _validation(facts: dict[str, Any]) -> list[str]:
    validation = facts["validation"]
    kinds = "; ".join(f"{count} of {executors} executors and {jobs} jobs" for executors, jobs, count in validation["sessions"])
    return [
        f"JCT over that of the rule `srpt_cap` on the same workloads, geometric mean: {validation['jct_over_rule']:.3f} "
        f"(± {validation['log_ci95']:.3f} in logs, 95 %). Sessions: {kinds}, published rules."
    ]


CARD = Card(
    about=_about,
    training=_training,
    validation=_validation,
    curve=LOSSES | {"valid_jct_over_rule": "JCT over the rule's"},
    unmeasured="Not measured on test workloads yet.",
)
