"""The model card of an adapter: what it learnt from, how, and how well it does."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

CARD = "README.md"
RESULTS_START, RESULTS_END = "<!-- results -->", "<!-- end of results -->"


def write_card(folder: Path, curve: Path | None = None) -> Path:
    """Write `README.md` from `netllm.json`; results of an earlier test are kept."""
    facts = json.loads((folder / "netllm.json").read_text(encoding="utf-8"))
    path = folder / CARD
    lines = [*_front(facts), *_training(facts["trained"]), *_validation(facts["validation"])]
    if curve is not None and curve.is_file():
        (folder / "curve.csv").write_bytes(curve.read_bytes())
    if (folder / "curve.csv").is_file():
        lines += _curve(folder / "curve.csv")
    lines += [RESULTS_START, kept_results(path) or "Not measured on test traces yet.", RESULTS_END, ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def set_results(folder: Path, text: str) -> None:
    """Put the results of a test into the card."""
    path = folder / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else write_card(folder).read_text(encoding="utf-8")
    before, _, rest = card.partition(RESULTS_START)
    _, _, after = rest.partition(RESULTS_END)
    path.write_text(f"{before}{RESULTS_START}\n{text}\n{RESULTS_END}{after}", encoding="utf-8")


def kept_results(path: Path) -> str:
    """What an earlier test put into the card; empty when none did."""
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    return card.partition(RESULTS_START)[2].partition(RESULTS_END)[0].strip()


def _front(facts: dict[str, Any]) -> list[str]:
    backbone = facts["backbone"]
    return [
        "---",
        "library_name: peft",
        f"base_model: {backbone['name']}",
        "tags: [netllm, networking, lora]",
        "---",
        f"# NetLLM adapter for {facts['task']}",
        "",
        f"LoRA, encoders and head for the frozen backbone `{backbone['name']}` (width {backbone['width']}). Use: the policy `netllm`,",
        f"or `netllm.adapter.load_adapter(FOLDER)`. It imitates {_teachers(facts)}. Trained on FCC broadband and Norwegian 3G rates",
        "and on synthetic traces between 0.4 and 8 Mbit/s; other rates are outside that. For research.",
        "",
        f"Task settings: {_settings(facts)}; LoRA rank {facts['lora_rank']}.",
        "",
    ]


def _teachers(facts: dict[str, Any]) -> str:
    return " and ".join(f"`{each}`" for each in facts["trained"]["experience"]["teachers"])


def _settings(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts["settings"].items() if name != "ladder_bps")


def _training(trained: dict[str, Any]) -> list[str]:
    source = trained["experience"]
    sets = "; ".join(f"{each['name']}/{each['split']}, {each['traces']} traces, sha256 `{each['sha256'][:16]}`" for each in source["sets"])
    kinds = Counter(each.partition(":")[0] for each in source["held_out"])
    held_out = ", ".join(f"{count} {kind}s" for kind, count in sorted(kinds.items()))
    return [
        "## Training",
        "| | |",
        "| --- | --- |",
        f"| date, commit | {trained['utc']}, `{trained['commit'][:12]}` |",
        f"| command | `{trained['command']}` |",
        f"| data | {sets}; synthetic traces drawn from them ({source['settings']['synthetic']:.0%}) |",
        f"| held out for validation | {held_out} (named in `netllm.json`); fcc/valid |",
        f"| sessions | {' + '.join(map(str, trained['sessions']))} (collected + DAgger), all states labelled by the teachers |",
        f"| who decided | {_behaviours(source['settings']['behaviours'])}; then the student |",
        f"| seed | {trained['seed']} |",
        f"| length | {trained['steps']} steps of {trained['optimiser']['batch']} sessions, {trained['minutes']} min |",
        f"| hardware | {trained['hardware']}, {trained['dtype']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in trained['versions'].items())} |",
        "",
    ]


def _behaviours(turns: list[str]) -> str:
    return ", ".join(f"{name} {count / len(turns):.0%}" for name, count in Counter(turns).items())


def _validation(validation: dict[str, Any]) -> list[str]:
    return [
        "## Validation",
        f"QoE per chunk in {validation['sessions']} sessions, mean over families (± 95 %): "
        f"{validation['qoe']:.3f} ± {validation['ci95']:.3f}; the teacher in the same sessions: {validation['teacher_qoe']:.3f}.",
        "",
        "| family | this adapter | teacher |",
        "| --- | --- | --- |",
        *(f"| {name} | {qoe:.3f} | {validation['teacher_families'][name]:.3f} |" for name, qoe in validation["families"].items()),
        "",
    ]


def _curve(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = [f"| {r['step']} | {float(r['elapsed_s']) / 60:.0f} | {r['train_loss']} | {r['valid_loss']} | {r['valid_qoe']} |" for r in rows]
    return ["| step | minutes | training loss | validation loss | validation QoE |", "| --- | --- | --- | --- | --- |", *table, ""]
