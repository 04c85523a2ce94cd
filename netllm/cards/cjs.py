"""What the card of an adapter for scheduling says beyond the frame."""

from typing import Any

from netllm.cards.frame import LOSSES, Card, weights_kept
from netllm.tasks.cjs import TRUST_ABOVE


def _about(facts: dict[str, Any]) -> str:
    return (
        "It learnt what a look-ahead in the simulator, which\ngoes on by the rule `srpt_cap`, says of candidate decisions. Trained on "
        "TPC-H jobs, 8 to 60 executors (none of 25 to 35), at\nmost 200 jobs; other clusters and jobs are outside that." + _leaning(facts)
    )


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


def _training(trained: dict[str, Any]) -> dict[str, str]:
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
        "without the language model": f"the first {trained['bare']:.0%}: encoder and heads alone",
    }


def _validation(validation: dict[str, Any]) -> list[str]:
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
