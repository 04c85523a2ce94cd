"""What `catalog.toml` names, as frozen objects, and the hash that says whether a folder holds it."""

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).with_name("catalog.toml")


@dataclass(frozen=True)
class Upstream:
    """A git repository at one commit."""

    repository: str
    url: str
    commit: str


@dataclass(frozen=True)
class Split:
    """Some files of a set: in a folder of their own; or picked by `pattern`, when all splits share the set's folder; or `names` of the
    split `of`.
    """

    name: str
    files: int
    sha256: str
    pattern: str = ""
    names: tuple[str, ...] = ()
    of: str = ""


@dataclass(frozen=True)
class CatalogSet:
    """A catalogued set: where it comes from, where it is kept, how it is split."""

    name: str
    kind: str
    """`traces`, `video`, `workload` or `viewports`."""
    title: str
    upstream: Upstream
    paths: tuple[str, ...]
    """Folders and files of the upstream repository that are fetched."""
    folder: str
    """Where the set is kept, below the data folder."""
    format: str
    rule: str
    """The function of `traces/splits.py` that makes our files of upstream's."""
    licence: str
    default_split: str
    splits: tuple[Split, ...]
    """For a set without splits one split without a name, whose folder is the set's."""

    def split(self, name: str) -> Split | None:
        """The split called `name`, if there is one."""
        return next((split for split in self.splits if split.name == name), None)


@cache
def load_catalog(path: Path = CATALOG) -> dict[str, CatalogSet]:
    """All sets by name."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    upstreams = {name: Upstream(**fields) for name, fields in content["upstreams"].items()}
    return {name: _catalog_set(name, dict(fields), upstreams) for name, fields in content["sets"].items()}


def _catalog_set(name: str, fields: dict[str, Any], upstreams: dict[str, Upstream]) -> CatalogSet:
    splits = tuple(_split(split, dict(given)) for split, given in fields.pop("splits", {}).items())
    if not splits:
        splits = (Split("", fields.pop("files"), fields.pop("sha256")),)
    upstream, paths = upstreams[fields.pop("upstream")], tuple(fields.pop("paths"))
    return CatalogSet(name=name, upstream=upstream, paths=paths, splits=splits, **({"default_split": ""} | fields))


def _split(name: str, fields: dict[str, Any]) -> Split:
    return Split(name, names=tuple(fields.pop("names", ())), **fields)


def split_folder(data: Path, entry: CatalogSet, split: Split) -> Path:
    """Where `split` is kept below the data folder."""
    return data / entry.folder if split.pattern or not split.name else data / entry.folder / (split.of or split.name)


def split_files(folder: Path, split: Split) -> list[Path]:
    """The files of `split` in its folder, in order of name; hidden ones don't count."""
    found = folder.glob(split.pattern) if split.pattern else folder.rglob("*")
    files = sorted(p for p in found if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return [file for file in files if file.name in split.names] if split.of else files


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash over names (below `folder`) and contents, in order of name."""
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
