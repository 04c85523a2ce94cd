"""Who a policy is: hashes of the sources, options and weights that decide what it answers. Evaluations know stored sessions by it.

Of a Python source what is run counts, not comments, docstrings and layout: sessions that took hours are not played again for a sentence.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from controllers.loader import PolicyFactory

CHECKOUT = Path(__file__).resolve().parents[1]
_MODULES = "adapter attention backbone context decoder encoders heads kernels lora model past quantised graph tasks/*"
MODEL = tuple(f"netllm/{name}.py" for name in _MODULES.split())
"""Sources that decide what a language model answers."""
WEIGHTS, ADAPTER, LLM = "weights", "adapter", "llm"
"""Options of policies that name what they have learnt."""


def identity(factory: PolicyFactory, simulation: tuple[str, ...], weights: Sequence[Path], model: tuple[str, ...] = ()) -> str:
    """Hash of all that decides what the policy answers, and what comes of it. `model` is empty for all but language models; those have an
    adapter's folder among their `weights`.
    """
    parts = [repr(factory.arguments), hash_tree(simulation), hash_source(Path(inspect.getfile(factory.policy_class)))]
    if model:
        from netllm.backbone import DEFAULT_DTYPE  # torch takes seconds: who asks for no language model's identity doesn't pay

        versions = (importlib.metadata.version(package) for package in ("torch", "transformers"))
        parts += [hash_tree(model), DEFAULT_DTYPE, *versions, _hash_backbone(_backbone(factory, weights))]
    parts += [_hash_path(path) for path in weights]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _backbone(factory: PolicyFactory, weights: Sequence[Path]) -> str:
    """The language model that the policy's options name, or its adapter was trained with."""
    if given := dict(factory.arguments).get(LLM):
        return str(given)
    told = next(path / "netllm.json" for path in weights if (path / "netllm.json").is_file())
    return str(json.loads(told.read_text(encoding="utf-8"))["backbone"]["name"])


def _hash_backbone(llm: str) -> str:
    """Of the packaged weights, or a folder's; the name alone of what is neither."""
    from controllers.loader import RANDOM
    from netllm.backbone import EMBEDDED, embedded_folder

    source = llm.removesuffix(RANDOM)
    if source == EMBEDDED:
        return f"{llm} {embedded_folder().name}"
    folder = Path(source).expanduser()
    return f"{llm} {_hash_path(folder)}" if folder.is_dir() else llm


def weights_of(factory: PolicyFactory, folder: Path, adapter: Path | None = None) -> list[Path]:
    """Files and folders that the policy's options name, given or by default.

    `folder` is that of the task's small networks; `adapter` is the one that ships, of a language model.
    """
    given = defaults_of(factory) | dict(factory.arguments)
    if adapter:
        given[ADAPTER] = given.get(ADAPTER) or str(adapter)
    found = []
    if WEIGHTS in given:
        named = str(given[WEIGHTS] or factory.reference.target)
        found += [folder / f"{named}.safetensors", folder / named]
    found += [Path(value).expanduser() for value in given.values() if isinstance(value, str | Path) and str(value)]
    return [path for path in dict.fromkeys(found) if path.is_file() or (path.is_dir() and any(path.glob("*.json")))]


def defaults_of(factory: PolicyFactory) -> dict[str, object]:
    """The options that the policy takes, with their defaults."""
    if factory.policy_class.__init__ is object.__init__:
        return {}
    return {name: parameter.default for name, parameter in inspect.signature(factory.policy_class).parameters.items()}


@cache
def hash_tree(patterns: tuple[str, ...]) -> str:
    """Of the sources that `patterns` find in the checkout."""
    files = sorted({file for pattern in patterns for file in CHECKOUT.glob(pattern)})
    return hashlib.sha256("".join(f"{file.name} {hash_source(file)}\n" for file in files).encode()).hexdigest()


def hash_source(path: Path) -> str:
    """Of what a Python file runs; of another file its content."""
    if path.suffix != ".py":
        return hash_file(str(path))
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    """Whether it is a docstring, of whatever."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def hash_file(path: str) -> str:
    """Of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash_path(path: Path) -> str:
    """Of a file; of a folder its weights and settings (a model card may change)."""
    files = (
        [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".json", ".bin", ".gguf"))
    )
    return "".join(hash_file(str(file)) for file in files)
