"""Ablations of any task: one training, repeated with one thing changed each time, over several seeds.

A run has a folder of its own, OUT/NAME-SEED, and beside it the settings that it was begun with (NAME-SEED.json). A run that is complete
is kept, one that was cut goes on, one of other settings is refused: compared with the others it would tell of more than the change.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from controllers.learning.start import check_least
from testbed.errors import UserError, suggestion

REFERENCE = "reference"
DONE = "done"
"""A file that says that a run has taken all its steps."""
_NO_MATTER = ("out", "resume", "experience", "threads", "checkpoint_minutes")
"""Settings that don't change what is learnt (experience is the same of all runs of a seed)."""
_RUNS = re.compile(r" --(?:names|seeds|out)(?:[ =](?!--)\S+)*")
"""Words of a command that say which runs it does, and where."""
Training = TypeVar("Training")


@dataclass(frozen=True)
class Change(Generic[Training]):
    """What is changed."""

    said: str
    """For people."""
    make: Callable[[Training], Training]
    """From the reference's settings."""


class Asked(Protocol):
    """Settings of `scripts/ablate`, of any task."""

    @property
    def names(self) -> tuple[str, ...]:
        """Changes to try."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One run of each change per seed."""

    @property
    def steps(self) -> int:
        """Optimiser steps of each run."""

    @property
    def out(self) -> Path:
        """Folder for all runs."""


def check(asked: Asked, changes: Iterable[str]) -> None:
    """Refuse what can't be done."""
    check_least(asked, 1, ["steps"])
    for name in asked.names:
        if name not in changes:
            raise UserError(f"scripts/ablate: change {name!r} is unknown: {suggestion(name, tuple(changes))}")


def run(
    task: str,
    asked: Asked,
    changes: Mapping[str, Change[Training]],
    reference: Callable[[int], Training],
    train: Callable[[Training, int, Path, bool], Path],
    console: Console,
) -> list[Path]:
    """Train what is missing; returns the adapters' folders. `reference` tells a seed's settings; `train` gets settings, seed, folder, and
    whether the folder holds a run that goes on.
    """
    check(asked, changes)
    runs = {(name, seed): changes[name].make(reference(seed)) for seed in asked.seeds for name in asked.names}
    folders = {(name, seed): asked.out / f"{name}-{seed}" for name, seed in runs}
    missing = [key for key, training in runs.items() if not _complete(folders[key], training, asked.steps, key[1])]
    for key in missing:
        (name, seed), folder = key, folders[key]
        console.print(f"{name}, seed {seed}")
        begun = _begun(folder)
        asked.out.mkdir(parents=True, exist_ok=True)
        _kept(folder).write_text(json.dumps(_facts(runs[key]), indent=1) + "\n", encoding="utf-8")
        train(runs[key], seed, folder, begun)
        (folder / DONE).touch()
    groups = [f"{name}={','.join(str(folders[name, seed] / 'adapter') for seed in asked.seeds)}" for name in asked.names]
    console.print(
        f"compare them: scripts/evaluate {task} --reference {asked.names[0]} --adapters {' '.join(groups)}", markup=False, soft_wrap=True
    )
    return [folder / "adapter" for folder in folders.values()]


def _begun(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _kept(folder: Path) -> Path:
    """The settings that the run was begun with."""
    return folder.with_name(f"{folder.name}.json")


def _complete(folder: Path, training: Any, steps: int, seed: int) -> bool:
    """Whether the run was made before; refused if it was another one."""
    if not _begun(folder):
        return False
    if not _kept(folder).is_file():
        return _complete_by_card(folder, steps, seed)
    was, wanted = (_flat(each) for each in (json.loads(_kept(folder).read_text(encoding="utf-8")), _facts(training)))
    if other := sorted(key for key in was.keys() | wanted.keys() if was.get(key) != wanted.get(key)):
        seen = ", ".join(f"{key} {was.get(key)} (now {wanted.get(key)})" for key in other)
        raise UserError(f"{folder}: was begun with {seen}, wanted equal settings, or another --out")
    return (folder / DONE).is_file()


def _complete_by_card(folder: Path, steps: int, seed: int) -> bool:
    """The same of a run without its settings: its adapter tells the seed, its learning curve the steps."""
    try:
        was = int(json.loads((folder / "adapter" / "netllm.json").read_text(encoding="utf-8"))["trained"]["seed"])
        with (folder / "curve.csv").open(encoding="utf-8") as file:
            taken = [int(row["step"]) for row in csv.DictReader(file)][-1]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{folder}: holds no run that tells its settings ({error!r}), wanted another --out") from error
    if (was, taken) != (seed, steps):
        raise UserError(f"{folder}: was trained with seed {was} for {taken} steps, wanted seed {seed} and {steps} steps, or another --out")
    return True


def _facts(training: Any) -> dict[str, Any]:
    """What is learnt depends on, as JSON gives it back."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(training), default=str))
    return {name: value for name, value in facts.items() if name not in _NO_MATTER}


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`optimiser: {batch: 16}` as `optimiser.batch: 16`."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


TRAINED = ("variant", "what is changed", "trained by")


def trainings(families: Mapping[str, Sequence[Path]], changes: Mapping[str, Change[Any]]) -> list[tuple[str, str, str]]:
    """How the adapters of each row of a table were trained, as `TRAINED` has it; the command makes those of the row alone."""
    rows = []
    for row, adapters in families.items():
        commands: dict[tuple[str, str], list[str]] = {}
        for adapter in adapters:
            told = json.loads((adapter / "netllm.json").read_text(encoding="utf-8")).get("trained", {}).get("command", "")
            name, _, seed = adapter.parent.name.rpartition("-")
            if told.startswith("scripts/ablate ") and name in changes:
                program, task, *options = _RUNS.sub("", told).split(" ", 2)
                told = " ".join([program, task, f"--names {name}", "--seeds {}", f"--out {_shown(adapter.parents[1])}", *options])
                said = f"`{name}`: {changes[name].said}"
            else:
                said = "no ablation: an adapter by itself"
            commands.setdefault((said, told), []).append(seed)
        rows += [(row, said, f"`{told.replace('{}', ' '.join(seeds))}`") for (said, told), seeds in commands.items() if told]
    return rows


def _shown(folder: Path) -> Path:
    """As it is called from here; of another place only its own name."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else Path(folder.name)
