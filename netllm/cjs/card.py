"""The model card of a scheduling adapter: what it learnt from, how, and how well it does."""

import csv
import json
from pathlib import Path
from typing import Any

from netllm.card import CARD, RESULTS_END, RESULTS_START

NOT_MEASURED = "Not measured on test workloads yet."


def write_card(folder: Path, curve: Path | None = None) -> Path:
    """Write `README.md` from `netllm.json`; results of an earlier evaluation are kept."""
    facts = json.loads((folder / "netllm.json").read_text(encoding="utf-8"))
    path = folder / CARD
    if curve is not None and curve.is_file():
        (folder / "curve.csv").write_bytes(curve.read_bytes())
    lines = [*_front(facts), *_training(facts["trained"]), *_validation(facts["validation"])]
    if (folder / "curve.csv").is_file():
        lines += _curve(folder / "curve.csv")
    kept = path.read_text(encoding="utf-8").partition(RESULTS_START)[2].partition(RESULTS_END)[0].strip() if path.is_file() else ""
    path.write_text("\n".join([*lines, RESULTS_START, kept or NOT_MEASURED, RESULTS_END, ""]), encoding="utf-8")
    return path


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
        f"LoRA, graph encoder and heads for the frozen backbone `{backbone['name']}` (width {backbone['width']}). Use: the policy",
        "`netllm` of `controllers/cjs/`, or `netllm.adapter.load_adapter(FOLDER)`. It learnt what a look-ahead in the simulator, which",
        "goes on by the rule `srpt_cap`, says of candidate decisions. Trained on TPC-H jobs, 8 to 60 executors (none of 25 to 35), at",
        "most 200 jobs; other clusters and jobs are outside that. For research.",
        "",
        f"Task settings: {', '.join(f'{name} {value}' for name, value in facts['settings'].items())}; LoRA rank {facts['lora_rank']}.",
        "",
    ]


def _training(trained: dict[str, Any]) -> list[str]:
    sources = trained["experience"]
    sessions = " + ".join(str(each["settings"]["sessions"]) for each in sources)
    seeds = ", ".join(str(each["settings"]["seed"]) for each in sources)
    return [
        "## Training",
        "| | |",
        "| --- | --- |",
        f"| date, commit | {trained['utc']}, `{trained['commit'][:12]}` |",
        f"| command | `{trained['command']}` |",
        f"| sessions | {sessions}, drawn from seeds {seeds}; no workload of an evaluation or of the published results |",
        f"| labelled windows | {' + '.join(map(str, trained['windows']))} (and DAgger) of {trained['collect']['window']} decisions |",
        f"| labels | {', '.join(f'{name} {value}' for name, value in trained['labels'].items())} |",
        f"| seed | {trained['seed']} |",
        f"| length | {trained['steps']} steps of {trained['optimiser']['batch']} windows, {trained['minutes']} min |",
        f"| without the language model | the first {trained['bare']:.0%}: encoder and heads alone |",
        f"| hardware | {trained['hardware']}, {trained['dtype']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in trained['versions'].items())} |",
        "",
    ]


def _validation(validation: dict[str, Any]) -> list[str]:
    kinds = "; ".join(f"{count} of {executors} executors and {jobs} jobs" for executors, jobs, count in validation["sessions"])
    return [
        "## Validation",
        f"JCT over that of the rule `srpt_cap` on the same workloads, geometric mean: {validation['jct_over_rule']:.3f} "
        f"(± {validation['log_ci95']:.3f} in logs, 95 %). Sessions: {kinds}, published rules.",
        "",
    ]


def _curve(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("step", "elapsed_s", "train_loss", "valid_loss", "valid_jct_over_rule")
    table = [f"| {' | '.join(row[name] for name in names)} |" for row in rows]
    return ["| step | seconds | training loss | validation loss | JCT over the rule's |", "| --- | --- | --- | --- | --- |", *table, ""]
