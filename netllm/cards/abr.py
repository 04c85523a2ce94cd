"""What the card of an adapter for ABR says beyond the frame."""

from collections import Counter
from typing import Any

from netllm.cards.frame import LOSSES, Card, weights_kept
from traces.synthetic import MEAN_MBPS

_SETS = {"fcc": "FCC broadband", "norway": "Norwegian 3G"}


def _about(facts: dict[str, Any]) -> str:
    teachers = " and ".join(f"`{each}`" for each in facts["trained"]["experience"]["teachers"])
    return f"It imitates {teachers}. Trained on {_rates(facts['trained']['experience'])}; other rates are outside that." + _chosen(facts)


def _rates(source: dict[str, Any]) -> str:
    """What the traces were that it was trained on."""
    names = " and ".join(dict.fromkeys(_SETS.get(each["name"], f"`{each['name']}`") for each in source["sets"]))
    share, (low, high) = source["settings"]["synthetic"], MEAN_MBPS
    synthetic = f"synthetic traces between {low:g} and {high:g} Mbit/s"
    if share >= 1:
        return f"{synthetic}, some of them with pieces of {names} rates"
    return f"{names} rates" + (f"\nand on {synthetic}" if share else "")


def _chosen(facts: dict[str, Any]) -> str:
    if "chosen" not in facts:
        return ""
    chosen = facts["chosen"]
    tried = ", ".join(f"{each['qoe']:.4f} (seed {each['seed']})" for each in chosen["tried"])
    return (
        f" `scripts/adapt abr-choose` (commit `{chosen['commit'][:12]}`)\nchose it by QoE in {chosen['sessions']} validation sessions, "
        f"none of a test split, among {len(chosen['tried'])} adapters: {tried}; their commands are in\n`netllm.json`."
    )


def _training(facts: dict[str, Any]) -> dict[str, str]:
    trained = facts["trained"]
    source = trained["experience"]
    sets = "; ".join(f"{each['name']}/{each['split']}, {each['traces']} traces, sha256 `{each['sha256'][:16]}`" for each in source["sets"])
    kinds = Counter(each.partition(":")[0] for each in source["held_out"])
    held_out = ", ".join(f"{count} {kind}s" for kind, count in sorted(kinds.items()))
    apart = [f"{held_out} (named in `netllm.json`)"] if held_out else []
    apart += ["fcc/valid"] if "valid" in facts["validation"]["families"] else []
    synthetic = source["settings"]["synthetic"]
    collected, played, rounds = trained["sessions"][0], sum(trained["sessions"][1:]), trained["dagger_rounds"]
    sessions, student = f"{collected} collected", ""
    if rounds:
        sessions, student = f"{sessions} and {played} of {rounds} DAgger rounds", "; in DAgger rounds the student"
    return {
        "data": sets + (f"; synthetic traces drawn from them ({synthetic:.0%})" if synthetic else ""),
        "held out for validation": "; ".join(apart) or "nothing",
        "sessions": f"{sessions}, all states labelled by the teachers",
        "who decided": _behaviours(source["settings"]["behaviours"]) + student,
        "length": f"{trained['steps']} steps of {trained['optimiser']['batch']} sessions, {trained['minutes']} min",
        "weights": weights_kept(trained),
    }


def _behaviours(turns: list[str]) -> str:
    return ", ".join(f"{name} {count / len(turns):.0%}" for name, count in Counter(turns).items())


def _validation(facts: dict[str, Any]) -> list[str]:
    validation = facts["validation"]
    return [
        f"QoE per chunk in {validation['sessions']} sessions, mean over families (± 95 %): "
        f"{validation['qoe']:.3f} ± {validation['ci95']:.3f}; the teacher in the same sessions: {validation['teacher_qoe']:.3f}.",
        "",
        "| family | this adapter | teacher |",
        "| --- | --- | --- |",
        *(f"| {name} | {qoe:.3f} | {validation['teacher_families'][name]:.3f} |" for name, qoe in validation["families"].items()),
    ]


CARD = Card(
    about=_about,
    training=_training,
    validation=_validation,
    curve=LOSSES | {"valid_qoe": "validation QoE"},
    hidden=("ladder_bps",),
    unmeasured="Not measured on test traces yet.",
)
