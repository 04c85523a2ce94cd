"""What a training run leaves: tensors with facts in the header, and a learning curve that grows by rows."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], key: str, facts: dict[str, Any]) -> None:
    """One file with tensors and facts, written beside the target and renamed: whole or not there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, scratch, metadata={key: json.dumps(facts)})
    scratch.chmod(0o644)
    os.replace(scratch, path)


def add_row(path: Path, row: dict[str, Any]) -> None:
    """One more row of a curve, with a heading before the first."""
    new = not path.exists() or not path.stat().st_size  # a kill leaves an empty file
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def cut_curve(path: Path, last: int) -> None:
    """Forget the rows after number `last` of the first column, which will come again, and what a kill left of a row."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = [line for line in file if line.endswith("\n")] or [""]
    numbers = [row.partition(",")[0] for row in rows]
    kept = [row for row, number in zip(rows, numbers, strict=True) if number.isdigit() and int(number) <= last]
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        file.writelines([head, *kept])
    os.replace(scratch, path)
