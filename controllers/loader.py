"""Finds policies (ours by reading the task's folder, `controllers/abr/`, a user's by path or module) and turns references into factories.

| reference | names |
| --- | --- |
| `bba` | `controllers/abr/bba.py` |
| `robust_mpc+jumps=adjacent+chunk_index=late` | the same with options, keyword arguments of the policy's `__init__` |
| `~/mine.py`, `mine.py:Second` | the policy in a user's file (the class is named when there are several; tables say `mine:Second`) |
| `package.module:Class` | an importable class |
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from controllers.api import AbrPolicy, CjsPolicy, VpPolicy
from controllers.options import typed_options
from controllers.weights import weights_sha256
from testbed.errors import AnswerError, UserError, suggestion
from testbed.user import expanded

RANDOM = ":random"
"""Ends the name of a language model whose weights are drawn anew: the ablation of what pre-training is worth."""
COLOUR = re.compile(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
"""What style sheets and figures for papers both understand."""
TESTBED = Path(__file__).resolve().parents[1] / "testbed"

ABR_FOLDER = Path(__file__).parent / "abr"
"""Each file in it is a policy, named like the file."""


@dataclass(frozen=True)
class PolicyKind:
    """What the policies of a task extend, and the package whose files are ours."""

    base: type[Any]
    package: str

    @property
    def folder(self) -> Path:
        """Each file in it is a policy, named like the file."""
        return Path(__file__).parent / self.package.rpartition(".")[2]

    @property
    def wanted(self) -> str:
        """The end of a sentence on a module without a policy."""
        return f"wanted a class that extends controllers.api.{self.base.__name__} and defines decide"


KINDS = {
    "abr": PolicyKind(AbrPolicy, "controllers.abr"),
    "cjs": PolicyKind(CjsPolicy, "controllers.cjs"),
    "vp": PolicyKind(VpPolicy, "controllers.vp"),
}
"""By task."""


@dataclass(frozen=True)
class PolicyReference:
    """What `--policies` names: where the policy is (`target`) and its options as text, in the order given."""

    text: str
    target: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def canonical(self) -> str:
        """The reference written from its parts: `load` understands it."""
        return "+".join([self.target, *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True)
class PolicyFactory:
    """Makes one policy, as often as wanted; calling it is all that may be slow. `name` stands in tables and must be unique in a run."""

    name: str
    label: str
    colour: str
    citation: str
    reference: PolicyReference
    """Holds absolute paths, of a user's file and of those that options name: `reference.canonical` loads it in a process anywhere."""
    policy_class: type[Any]
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def source_sha256(self) -> str:
        """Of the user's file that defines the class; empty for one of ours, which the commit tells."""
        file = Path(getattr(sys.modules.get(self.policy_class.__module__), "__file__", None) or "")
        ours = file.is_relative_to(Path(__file__).parent)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() and not ours else ""

    @property
    def options_sha256(self) -> str:
        """Of what options name, weights and adapters, as model cards have it: `weights 3f07..., llm 91c2...`; empty where none is a file.

        Raises `UserError` for what can't be read.
        """
        named = {option: path for option, value in self.reference.options if (path := _named_by(value))}
        try:
            return ", ".join(f"{option} {weights_sha256(path)}" for option, path in named.items())
        except OSError as error:
            raise UserError(f"policy {self.name!r}: {error.filename}: can't be read: {error.strerror}") from None

    def __call__(self) -> Any:
        """A fresh policy; one serves one session at a time."""
        return self.policy_class(**dict(self.arguments))


def discover(folder: Path = ABR_FOLDER) -> dict[str, Path]:
    """Name to file of every policy in `folder`, sorted; nothing is imported."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def parse_reference(text: str, task: str = "abr") -> PolicyReference:
    """Split `target+option=value+...`; raises `UserError` when an option has no value, no name or comes twice."""
    target, *parts = text.strip().split("+")
    while parts and "=" not in parts[0] and _is_path(target + "+" + parts[0]):
        target += "+" + parts.pop(0)  # a '+' in a path
    options: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UserError(f"policy {text!r}: option {part!r} is incomplete, wanted name=value")
        if name in options:
            raise UserError(f"policy {text!r}: option {name!r} comes twice, wanted once")
        options[name] = value
    if not target:
        raise UserError(
            f"policy {text!r} is empty, wanted a name ({', '.join(discover(KINDS[task].folder))}), a file or package.module:Class"
        )
    return PolicyReference(text.strip(), target, tuple(options.items()))


def whole_path(value: str) -> str:
    """An option's value; the path of what is there, whole."""
    path = _named_by(value)
    return value if path is None else f"{path}{RANDOM if value.endswith(RANDOM) else ''}"


def _named_by(value: str) -> Path | None:
    """What is there under an option's value. Names such as `decima-2` are no paths, and a plus in a whole path would end the option."""
    path = value.removesuffix(RANDOM)
    whole = Path(os.path.expanduser(path)).absolute()
    return whole if ("/" in path or Path(path).suffix) and os.path.exists(whole) and "+" not in str(whole) else None


def load(reference: str | PolicyReference, task: str = "abr") -> PolicyFactory:
    """The factory behind a reference. The file is imported, the policy not yet made. Raises `UserError` for whatever is wrong with it."""
    if isinstance(reference, str):
        reference = parse_reference(reference, task)
    target, kind = reference.target, KINDS[task]
    if _is_path(target):
        file, _, wanted = target.partition(".py:")
        path = expanded(file + ".py" if wanted else file).absolute()
        found, stem = _class_in(_import_file(path, kind), str(path), wanted, kind), f"{path.stem}:{wanted}" if wanted else path.stem
        target = f"{path}:{wanted}" if wanted else str(path)
    elif ":" in target:
        module, _, wanted = target.partition(":")
        if not (module and wanted) or module.startswith("."):
            raise UserError(f"policy {reference.text!r} names no class of a module, wanted package.module:Class")
        found, stem = _class_in(_import_module(module, kind), module, wanted, kind), wanted
    else:
        found, stem = _class_in(_import_named(target, kind), target, "", kind), target
    name = PolicyReference("", stem, reference.options).canonical
    _check_look(found, name)
    reference = PolicyReference(reference.text, target, tuple((option, whole_path(value)) for option, value in reference.options))
    return PolicyFactory(
        name=name,
        label=name if reference.options or not found.label else found.label,
        colour=found.colour,
        citation=found.citation,
        reference=reference,
        policy_class=found,
        arguments=typed_options(found, reference.options, f"policy {reference.text!r}"),
    )


def _check_look(policy: type[Any], name: str) -> None:
    """Raise `UserError` unless tables and figures can show the policy."""
    for field in ("label", "colour", "citation"):
        if not isinstance(value := getattr(policy, field), str):
            raise UserError(f"policy {name!r}: {field} is {value!r:.100}, wanted a text")
    if not COLOUR.fullmatch(policy.colour):
        raise UserError(f"policy {name!r}: colour is {policy.colour!r:.100}, wanted #rrggbb")


def load_all(references: Sequence[str], task: str = "abr") -> tuple[PolicyFactory, ...]:
    """A factory for each reference; raises `UserError` when two would bear the same name in tables."""
    factories = tuple(load(reference, task) for reference in references)
    for i, factory in enumerate(factories):
        for other in factories[:i]:
            if factory.name == other.name:
                one, another = other.reference.target, factory.reference.target
                told = "is given twice" if one == another else f"is the name of both {one} and {another}"
                raise UserError(f"policy {factory.name!r} {told}, wanted each name once")
    return factories


def _is_path(target: str) -> bool:
    return target.endswith(".py") or ".py:" in target or "/" in target


def _import_named(name: str, kind: PolicyKind) -> ModuleType:
    known = discover(kind.folder)
    if name not in known:
        raise UserError(f"policy {name!r} is unknown, {suggestion(name, known)}, or a file (mine.py), or package.module:Class")
    return importlib.import_module(f"{kind.package}.{name}")


def _import_module(name: str, kind: PolicyKind) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"policy module {name!r} can't be imported ({error.msg}), wanted an importable package.module:Class") from error
    except (Exception, SystemExit) as error:  # whatever a user's module may raise
        raise UserError(_told(error, name, kind)) from error


def _look_in(folder: Path) -> None:
    """Let a user's modules be found in `folder`, where the launcher's processes don't look; last, so that nothing of ours is hidden."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_file(path: Path, kind: PolicyKind) -> ModuleType:
    """Run a user's file as a module, which may import its neighbours. It is registered by its path, so that two of one name don't meet."""
    try:
        lack = "" if path.is_file() else "is no file" if path.exists() else "does not exist"
    except OSError as error:  # a folder that the user may not look into, a name that is too long
        lack = f"can't be read ({error.strerror})"
    if lack:
        raise UserError(f"policy file {path!s:.300} {lack}, {_wanted_file(kind)}")
    _look_in(path.parent)
    name = f"user_policy_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"policy file {path} is no Python file, wanted one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        del sys.modules[name]
        raise UserError(_told(error, str(path), kind)) from error
    return module


def _wanted_file(kind: PolicyKind) -> str:
    return f"wanted a Python file with {'an' if kind.base.__name__[0] in 'AEIOU' else 'a'} {kind.base.__name__}"


def _told(error: BaseException, where: str, kind: PolicyKind) -> str:
    """One sentence on why a user's file can't be imported, with the line in that file when there is one."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or where}:{error.lineno}: syntax error ({error.msg}), {_wanted_file(kind)}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
    place = f"{where}:{lines[-1]}" if lines else where
    return f"{place}: importing it raised {type(error).__name__}: {_message(error)}, {_wanted_file(kind)}"


def _message(error: BaseException) -> str:
    """What an exception says, on one line that any file and terminal can hold."""
    try:
        said = str(error)
    except Exception as another:  # of a class of the user's
        said = f"a message that raised {type(another).__name__}"
    return " ".join(said.split()).encode(errors="backslashreplace").decode()


def _class_in(module: ModuleType, where: str, wanted: str, kind: PolicyKind) -> type[Any]:
    """The policy of a module: the class named, else the only one defined there (imported ones don't count)."""
    policies: dict[str, type[Any]] = {name: value for name, value in vars(module).items() if _is_policy(value, kind.base)}
    if wanted:
        if wanted not in policies:
            known = suggestion(wanted, policies) if policies else kind.wanted
            raise UserError(f"{where}: has no {kind.base.__name__} {wanted!r}, {known}")
        return policies[wanted]
    own = [name for name, value in policies.items() if value.__module__ == module.__name__ and not name.startswith("_")]
    if not own:
        raise UserError(f"{where}: holds no policy, {kind.wanted}")
    if len(own) > 1:
        raise UserError(f"{where}: holds {len(own)} policies ({', '.join(own)}), wanted one, or one named: {Path(where).name}:{own[0]}")
    return policies[own[0]]


def _is_policy(value: object, base: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)


def raised(error: BaseException) -> str:
    """What a policy raised and where, on one line: the last line of a policy's file, for what it was told is in the hands of others.

    An answer that can't be meant was not raised by the policy: it is told as it is.
    """
    if isinstance(error, AnswerError):
        return " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not Path(frame.filename).is_relative_to(TESTBED)]
    frame = (own or frames)[-1]
    return f"raised {type(error).__name__}: {_message(error)[:500]} ({Path(frame.filename).name}:{frame.lineno})"
