"""The model card of an adapter for viewport prediction."""

import csv
import json
from pathlib import Path
from typing import Any

from netllm.card import CARD, RESULTS_END, RESULTS_START, kept_results


def write_card(folder: Path, curve: Path | None = None) -> Path:
    """Write `README.md` from `netllm.json`, and keep the learning curve beside it; results of an earlier test are kept."""
    facts = json.loads((folder / "netllm.json").read_text(encoding="utf-8"))
    path = folder / CARD
    if curve is not None:
        (folder / "curve.csv").write_bytes(curve.read_bytes())
    lines = [*_front(facts), *_training(facts["trained"]), *_validation(facts["validation"], folder / "curve.csv")]
    lines += [RESULTS_START, kept_results(path) or "Not measured on test viewings yet.", RESULTS_END, ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _front(facts: dict[str, Any]) -> list[str]:
    backbone = facts["backbone"]
    settings = ", ".join(f"{name} {value}" for name, value in facts["settings"].items())
    return [
        "---",
        "library_name: peft",
        f"base_model: {backbone['name']}",
        "tags: [netllm, networking, lora]",
        "---",
        f"# NetLLM adapter for {facts['task']}",
        "",
        f"LoRA, encoders and head for the frozen backbone `{backbone['name']}` (width {backbone['width']}). Use: the policy `netllm`, or",
        "`netllm.adapter.load_adapter(FOLDER)`. It predicts where a viewer of 360-degree video will look, from the last seconds of head",
        "movement, by absolute error around the circle. It knows where the viewers of Jin2022 have their front, and does without on other",
        "videos. For research.",
        "",
        f"Task settings: {settings}; LoRA rank {facts['lora_rank']}.",
        "",
    ]


def _training(trained: dict[str, Any]) -> list[str]:
    data = trained["data"]
    return [
        "## Training",
        "| | |",
        "| --- | --- |",
        f"| date, commit | {trained['utc']}, `{trained['commit'][:12]}` |",
        f"| command | `{trained['command']}` |",
        f"| data | {_data(data)} |",
        f"| added to | {trained['base']} |",
        f"| seed | {trained['seed']} |",
        f"| length | {trained['steps']} steps of {trained['optimiser']['batch']} stretches, half mirrored, {trained['minutes']} min |",
        f"| weights | exponential mean, factor {trained['averaged']} a step |",
        f"| hardware | {trained['hardware']}, {trained['dtype']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in trained['versions'].items())} |",
        "",
    ]


def _data(data: dict[str, Any]) -> str:
    if "train" not in data:
        return str(data["data"])
    train, valid = data["train"], data["valid"]
    return (
        f"{data['data']}, sha256 `{data['sha256'][:16]}`: {train['windows']} windows of {len(train['users'])} viewers on "
        f"{len(train['videos'])} videos; validation on {valid['windows']} windows of {len(valid['users'])} other viewers on "
        f"{len(valid['videos'])} other videos"
    )


def _validation(validation: dict[str, Any], curve: Path) -> list[str]:
    with curve.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = [f"| {row['step']} | {row['training_mae_deg']} | {row['valid_mae_deg']} |" for row in rows]
    return [
        "## Validation",
        f"Mean absolute error on {validation['windows']} validation windows, 2 s to 4 s: {validation['mae_deg']:.3f} degrees.",
        "",
        "| step | training MAE | validation MAE |",
        "| --- | --- | --- |",
        *table,
        "",
    ]
