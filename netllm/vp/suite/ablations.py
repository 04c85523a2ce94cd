"""Adapters trained with one thing changed (`scripts/ablate vp`), several seeds each, against one of them or against the policy that ships.

A row is the mean over its training seeds, window by window; its difference from the reference is paired on the windows, with intervals over
viewers and over videos, which hold how far seeds lie apart, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controllers.loader import PolicyFactory, load
from netllm.adapter import SHIPPED
from netllm.vp.suite.analysis import Outcome
from testbed.errors import UserError, suggestion
from testbed.sim.vp import WindowErrors

NETLLM = "netllm"


@dataclass(frozen=True)
class Family:
    """One training, in several seeds."""

    name: str
    members: tuple[PolicyFactory, ...]

    @property
    def adapters(self) -> list[Path]:
        """Folders of the members."""
        return [Path(str(dict(each.arguments).get("adapter") or SHIPPED / "vp")) for each in self.members]


def families(adapters: Sequence[str], reference: str) -> tuple[Family, ...]:
    """`NAME=FOLDER` or `NAME=FOLDER,FOLDER`, each once, the reference among them (`netllm` is what ships)."""
    found = [_family(text) for text in adapters]
    names = [each.name for each in found]
    if doubled := next((name for i, name in enumerate(names) if name in names[:i]), ""):
        raise UserError(f"adapters {doubled!r} are given twice, wanted each name once")
    if found and reference not in names:
        if reference != NETLLM:
            raise UserError(f"--reference is {reference!r}: {suggestion(reference, (NETLLM, *names))}")
        found.insert(0, Family(NETLLM, (load(NETLLM, "vp"),)))
    return tuple(found)


def _family(text: str) -> Family:
    name, equals, folders = text.partition("=")
    if not (equals and name.strip() and folders):
        raise UserError(f"adapters {text!r}: name or folder is missing, wanted NAME=FOLDER or NAME=FOLDER,FOLDER")
    paths = [Path(each).expanduser().absolute() for each in folders.split(",")]
    for path in paths:
        if not (path / "netllm.json").is_file():
            raise UserError(f"adapter {path}: has no netllm.json, wanted a folder made by scripts/adapt")
    return Family(name.strip(), tuple(load(f"{NETLLM}+adapter={path}", "vp") for path in paths))


def joined(family: Family, errors: Sequence[WindowErrors]) -> Outcome:
    """One outcome: the mean error over the members, window by window."""
    first, measures = errors[0], ("mae_deg", "axis_mae_deg", "rmse_deg", "great_circle_deg", "published_mae_deg")
    means = {name: np.mean([getattr(each, name) for each in errors], axis=0) for name in measures}
    return Outcome(replace(family.members[0], name=family.name, label=family.name), replace(first, **means))


def seeds_deg(errors: Mapping[str, Sequence[WindowErrors]]) -> dict[str, tuple[float, ...]]:
    """The mean error of each seed, by family."""
    return {name: tuple(float(each.mae_deg.mean()) for each in members) for name, members in errors.items()}
