"""Who is measured: policies as `controllers.loader` names them, adapters as policy `netllm`, and families of several training seeds.

| kind | which | told by |
| --- | --- | --- |
| `netllm` | an adapted language model | the policy's class |
| `learned` | trained by us | its `__init__` takes `weights` |
| `rule` | all others | |

| role | which | where it stands |
| --- | --- | --- |
| `compared` | the policies | all tables; the first is the main one, taken against each other |
| `ablation` | `--adapters` | the table of ablations, against `--reference` |
| `seeds` | further weights of a learned policy, `controllers/abr/weights/NAME-2.safetensors` | the table of seeds |
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controllers.abr.netllm import NetLLM
from controllers.api import AbrPolicy
from controllers.loader import PolicyFactory, PolicyReference, discover, load, parse_reference
from controllers.weights import SHIPPED as NETWORKS
from netllm.identity import CHECKOUT, MODEL, WEIGHTS, defaults_of, identity, weights_of
from testbed.errors import UserError

if TYPE_CHECKING:
    from netllm.model import TaskModel

NETLLM, LEARNED, RULE = "netllm", "learned", "rule"
COMPARED, ABLATION, SEEDS = "compared", "ablation", "seeds"
CONTROLS = frozenset({"fixed"})
"""Policies that are controls for tests of the testbed, not contenders; name one to have it measured."""
SHIPPED = CHECKOUT / "netllm" / "adapters" / "abr"
SIMULATION = (
    "testbed/sim/abr.py",
    "testbed/metrics.py",
    "testbed/units.py",
    "netllm/abr/suite/play.py",
    "controllers/api.py",
    "controllers/ladder.py",
    "controllers/weights.py",
    "traces/formats.py",
    "traces/trace.py",
)
"""Sources that decide what any playback gives."""
_FAMILY = re.compile(r"([\w .:/()-]+?)=(.+)")
_COLOURS = ("#7048e8", "#0c8599", "#e8590c", "#5c940d", "#a61e4d", "#1864ab", "#862e9c", "#495057", "#d9480f", "#2b8a3e")


@dataclass(frozen=True)
class Member:
    """One policy of a family: a rule, or one training seed. It can be sent to another process."""

    reference: PolicyReference
    identity: str
    """Hash of the sources, options and weights that decide what it answers."""
    weights: tuple[Path, ...] = ()
    """Files and folders it was made with."""

    def make(self) -> AbrPolicy:
        """A fresh policy."""
        return load(self.reference)()

    @property
    def adapter(self) -> Path:
        """The folder of a language model's adapter."""
        return _adapter(self.reference)

    def model(self) -> "TaskModel":
        """The language model behind it."""
        from netllm.adapter import load_adapter

        given = dict(self.reference.options)
        return load_adapter(self.adapter, given.get("llm", ""), given.get("dtype", ""))


@dataclass(frozen=True)
class Contender:
    """A row of the tables: one policy, or the mean over a family's members."""

    name: str
    label: str
    colour: str
    citation: str
    kind: str
    role: str
    members: tuple[Member, ...]


def contenders(
    policies: Sequence[str], adapters: Sequence[str], adapter: str = "", llm: str = "", dtype: str = ""
) -> tuple[tuple[Contender, ...], tuple[str, ...]]:
    """All contenders, the main one first, and notes on what was left out. Without `policies` all that the folder holds are compared."""
    notes: list[str] = []
    if policies:
        found = [_contender(_parsed(text, adapter, llm, dtype), COMPARED) for text in policies]
    else:
        found = list(_discovered(adapter, llm, dtype, notes))
    found.sort(key=lambda each: each.kind != NETLLM)  # stable: the first language model is the main policy
    found += [_contender(_adapters(text, llm, dtype), ABLATION, i) for i, text in enumerate(adapters)]
    found += [family for each in found if each.role == COMPARED for family in _further_seeds(each)]
    for i, each in enumerate(found):
        if each.name in (other.name for other in found[:i]):
            raise UserError(f"policy {each.name!r} is given twice, wanted each name once")
    return tuple(found), tuple(notes)


def _discovered(adapter: str, llm: str, dtype: str, notes: list[str]) -> Iterable[Contender]:
    """Every policy of the folder that can be made. One that can't (its weights are not there) is left out, with a note."""
    for name in discover():
        if name in CONTROLS:
            continue
        found = _contender(_parsed(name, adapter, llm, dtype), COMPARED)
        if found.kind != NETLLM:
            try:
                found.members[0].make()
            except UserError as error:
                notes.append(f"{name} is left out: {_relative(str(error))}")
                continue
        yield found


Named = tuple[str, tuple[PolicyReference, ...]]
"""The name of a family (empty: that of its one member) and its members."""


def _parsed(text: str, adapter: str, llm: str, dtype: str) -> Named:
    """`bba`, `pensieve+weights=FILE` or a family `NAME=REFERENCE,REFERENCE`. Plain `netllm` takes the options of the command line."""
    family = _FAMILY.fullmatch(text)
    if family and "+" not in family[1]:
        return family[1].strip(), tuple(parse_reference(part) for part in family[2].split(","))
    if text == NETLLM:
        given = (("adapter", adapter), ("llm", llm), ("dtype", dtype))
        return NETLLM, (PolicyReference(NETLLM, NETLLM, tuple((name, value) for name, value in given if value)),)
    return "", (parse_reference(text),)


def _adapters(text: str, llm: str, dtype: str) -> Named:
    """`NAME=FOLDER,FOLDER`: one adapter per training seed."""
    name, equals, folders = text.partition("=")
    if not (equals and name.strip() and folders):
        raise UserError(f"adapters {text!r}: name or folder is missing, wanted NAME=FOLDER or NAME=FOLDER,FOLDER")
    options = tuple((key, value) for key, value in (("llm", llm), ("dtype", dtype)) if value)
    return name.strip(), tuple(PolicyReference(text, NETLLM, (("adapter", _folder(each, text)), *options)) for each in folders.split(","))


def _folder(text: str, where: str) -> str:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"adapters {where!r}: {folder} is no folder, wanted one made by scripts/adapt")
    return str(folder)


def _contender(named: Named, role: str, number: int = 0) -> Contender:
    name, references = named
    factories = [load(reference) for reference in references]
    first = factories[0]
    kinds = {_kind(factory) for factory in factories}
    if len(kinds) > 1:
        raise UserError(f"family {name!r} holds policies of the kinds {', '.join(sorted(kinds))}, wanted one kind")
    if kinds == {NETLLM}:
        for reference in references:
            _check_adapter(reference)
    label = name if name and name != NETLLM else first.policy_class.label if name else first.label
    colour = _COLOURS[number % len(_COLOURS)] if role == ABLATION else first.colour
    members = tuple(_member(factory) for factory in factories)
    return Contender(name or first.name, label or first.name, colour, first.citation, kinds.pop(), role, members)


def _member(factory: PolicyFactory) -> Member:
    adapted = _kind(factory) == NETLLM
    weights = weights_of(factory, NETWORKS, SHIPPED if adapted else None)
    return Member(factory.reference, identity(factory, SIMULATION, weights, MODEL if adapted else ()), tuple(weights))


def _check_adapter(reference: PolicyReference) -> None:
    """Now, not when all others have been played."""
    from netllm.backbone import check_backbone  # imports torch

    folder, given = _adapter(reference), dict(reference.options)
    if not (folder / "netllm.json").is_file():
        raise UserError(f"adapter {folder}: has no netllm.json, wanted a folder made by scripts/adapt")
    check_backbone(given.get("llm", ""), given.get("dtype", ""))


def _adapter(reference: PolicyReference) -> Path:
    return Path(dict(reference.options).get("adapter") or SHIPPED).expanduser()


def _kind(factory: PolicyFactory) -> str:
    if factory.policy_class is NetLLM:
        return NETLLM
    return LEARNED if WEIGHTS in defaults_of(factory) else RULE


def _further_seeds(contender: Contender) -> list[Contender]:
    """The other training seeds of a learned policy that is compared as it ships, together with that one."""
    first = contender.members[0].reference
    if contender.kind != LEARNED or len(contender.members) > 1 or first.options:
        return []
    files = sorted(NETWORKS.glob(f"{first.target}-[0-9]*.safetensors"))
    others = [PolicyReference(file.stem, first.target, ((WEIGHTS, str(file)),)) for file in files]
    if not others:
        return []
    name = f"{contender.name}, all seeds"
    return [_contender((name, (first, *others)), SEEDS)]


def _relative(sentence: str) -> str:
    return sentence.replace(f"{CHECKOUT}/", "")
