"""Find traces by name or path: in `$NETLLM_DATA`, in `../shared/data` beside the checkout, in the checkout's `data/`.

`resolve` takes what `--trace` takes:

| reference | meaning |
| --- | --- |
| `fcc` | the set's default split (`test`; `down` for lte) |
| `fcc/train` | a split |
| `fcc/test:FILE`, `fcc:FILE` | one file of it |
| a path | a file, or a folder whose files are all traces |

A name of the catalogue wins over a path of the same name; write `./fcc` for the path.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from testbed.errors import TestbedError, UserError, suggestion
from testbed.user import expanded
from traces.catalog import CatalogSet, Split, hash_files, load_catalog, split_files, split_folder
from traces.fetch import fetch_set
from traces.formats import read_trace
from traces.model import draw
from traces.trace import Trace

CHECKOUT = Path(__file__).resolve().parent.parent
DATA_VARIABLE = "NETLLM_DATA"
MODELLED = "fcc"
"""The set that `traces/model.py` stands in for."""


@dataclass(frozen=True)
class TraceSet:
    """Traces in order of file name, with what a result must say about them."""

    name: str
    split: str
    source: str
    """`store` (a catalogued set, hash checked), `path` (the user's own) or `model` (modelled, not measured)."""
    traces: tuple[Trace, ...]
    sha256: str
    """For a whole split the catalogue's hash, else the same kind of hash over the files read."""
    note: str = ""
    """What the user must be told; for `model`: why the traces are modelled, not measured."""


@dataclass(frozen=True)
class SetListing:
    """A line of `run.py list`."""

    name: str
    kind: str
    title: str
    format: str
    splits: tuple[tuple[str, int], ...]
    """Name and number of files of each split."""
    present: bool
    where: str
    """The folder when present, else how to get it."""


def data_roots(root: str | Path | None = None) -> tuple[Path, ...]:
    """The data folders looked into, in order; `root` alone when given."""
    if root is not None:
        return (Path(root),)
    chosen = os.environ.get(DATA_VARIABLE)
    return (*([Path(chosen)] if chosen else []), CHECKOUT.parent / "shared" / "data", CHECKOUT / "data")


def resolve(reference: str, root: str | Path | None = None, fetch: bool = True) -> TraceSet:
    """The traces that `reference` names (see the table above). Raises `UserError` when there are none or a file is bad.

    A catalogued set that is in no data folder is fetched into the last one (unless `fetch` is off). If that fails too, a whole split of
    `fcc` is drawn from `traces/model.py` instead: then `source` is `model`, and `note` says why.
    """
    name, split_name, file = _parts(reference)
    if not reference.strip() or reference.startswith((".", "/", "~")) or name not in load_catalog():
        return _resolve_path(reference)
    entry, split = _named_split(name, split_name)
    folder, lack = find_or_fetch(entry, split, root, fetch)
    if folder is not None:
        return _from_store(entry, split, folder, file)
    if name == MODELLED and not file:
        return _modelled(split, lack)
    raise UserError(f"trace set {reference} is not on this machine ({lack}), wanted it there: run scripts/fetch_data {name}")


def resolve_uplink(reference: str, root: str | Path | None = None, fetch: bool = True) -> TraceSet:
    """As `resolve`, but a set with a split `up` gives that one unless another is named."""
    name, split, file = _parts(reference)
    entry = load_catalog().get(name)
    if entry and not split and entry.split("up"):
        reference = f"{name}/up:{file}" if file else f"{name}/up"
    return resolve(reference, root, fetch)


def _modelled(split: Split, lack: str) -> TraceSet:
    """As many traces as `split` has, drawn from the model; each split has its own seed."""
    seed = sorted(each.name for each in load_catalog()[MODELLED].splits).index(split.name)
    traces = draw(split.files, seed)
    total = hashlib.sha256("".join(trace.sha256 for trace in traces).encode())
    note = f"{MODELLED}/{split.name} is modelled, not measured: the traces are not on this machine ({lack})"
    return TraceSet(MODELLED, split.name, "model", traces, total.hexdigest(), note)


def _parts(reference: str) -> tuple[str, str, str]:
    """Name, split and file of `NAME[/split][:file]`."""
    head, _, file = reference.partition(":")
    name, _, split = head.partition("/")
    return name, split, file


def _named_split(name: str, split_name: str) -> tuple[CatalogSet, Split]:
    entry = load_catalog()[name]
    if entry.kind != "traces":
        names = (each.name for each in load_catalog().values() if each.kind == "traces")
        raise UserError(f"{name} is a catalogued {entry.kind}, not a set of traces: {suggestion(name, names)}")
    split = entry.split(split_name or entry.default_split)
    if split is None:
        raise UserError(f"trace set {name} has no split {split_name!r}: {suggestion(split_name, (each.name for each in entry.splits))}")
    return entry, split


def find_split(entry: CatalogSet, split: Split, root: str | Path | None = None) -> Path | None:
    """The folder that holds `split`, None when no data folder has it; raises `UserError` when its files are not the catalogued ones."""
    for data in data_roots(root):
        folder = split_folder(data, entry, split)
        files = split_files(folder, split) if folder.is_dir() else []
        if files:
            _verify(entry, split, folder, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
            return folder
    return None


def find_or_fetch(entry: CatalogSet, split: Split, root: str | Path | None = None, fetch: bool = True) -> tuple[Path | None, str]:
    """The folder that holds `split`, fetched into the last data folder if need be (and allowed); or None, and why it can't be had."""
    folder, target = find_split(entry, split, root), data_roots(root)[-1]
    if folder is None and fetch:
        try:
            fetch_set(entry, target)
        except TestbedError as error:
            return None, str(error)
        folder = find_split(entry, split, root)
    return folder, "" if folder else f"not in {target}"


@cache
def _verify(entry: CatalogSet, split: Split, folder: Path, files: tuple[tuple[Path, int, int], ...]) -> None:
    """Raise unless `folder` holds the catalogued files; remembered as long as no size or time of change differs."""
    seen = hash_files(folder, (file for file, _, _ in files))
    if seen != split.sha256:
        name = f"{entry.name}/{split.name}" if split.name else entry.name
        raise UserError(
            f"{name} in {folder} has {len(files)} files with sha256 {seen[:12]}, wanted {split.files} with {split.sha256[:12]}: "
            f"remove that folder and run scripts/fetch_data {entry.name}, or name it as a path"
        )


def _from_store(entry: CatalogSet, split: Split, folder: Path, file: str) -> TraceSet:
    files = split_files(folder, split)
    if not file:
        return TraceSet(entry.name, split.name, "store", _read(files), split.sha256)
    chosen = [each for each in files if each.name == file]
    if not chosen:
        near = suggestion(file, (each.name for each in files)) if len(files) <= 20 else _near(file, files)
        raise UserError(f"{entry.name}/{split.name} has no file {file!r}: {near}")
    return TraceSet(entry.name, split.name, "store", _read(chosen), hash_files(folder, chosen))


def _near(file: str, files: Sequence[Path]) -> str:
    """`suggestion` without a list of a hundred names."""
    near = suggestion(file, (each.name for each in files))
    return near.partition(" (known:")[0] if near.startswith("did you mean") else f"wanted one of the {len(files)} in {files[0].parent}"


def _read(files: Sequence[Path]) -> tuple[Trace, ...]:
    return tuple(read_trace(file) for file in sorted(files))


def _resolve_path(reference: str) -> TraceSet:
    path = expanded(reference)
    if not reference.strip() or not path.exists():
        names = (entry.name for entry in load_catalog().values() if entry.kind == "traces")
        raise UserError(f"trace {reference!r} is neither a catalogued set nor a file or folder: {suggestion(reference, names)}")
    folder = path if path.is_dir() else path.parent
    files = [file for file in split_files(folder, Split("", 0, "", pattern="*")) if file.suffix != ".md"] if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: is a folder without files, wanted at least one trace")
    inner = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")) if path.is_dir() else []
    note = f"{path}: the files in it are read, not its folders ({', '.join(inner[:3])}{', ...' if len(inner) > 3 else ''})" if inner else ""
    return TraceSet(path.resolve().name, "", "path", _read(files), hash_files(folder, files), note)


def list_sets(root: str | Path | None = None) -> tuple[SetListing, ...]:
    """Every catalogued set, and where it is."""
    return tuple(_listing(entry, root) for entry in load_catalog().values())


def _listing(entry: CatalogSet, root: str | Path | None) -> SetListing:
    splits = tuple((split.name, split.files) for split in entry.splits)
    try:
        found = [find_split(entry, split, root) for split in entry.splits]
    except UserError as error:
        return SetListing(entry.name, entry.kind, entry.title, entry.format, splits, False, str(error))
    folders = sorted({str(_set_folder(entry, folder)) for folder in found if folder})
    where = ", ".join(folders) if all(found) else f"scripts/fetch_data {entry.name}"
    return SetListing(entry.name, entry.kind, entry.title, entry.format, splits, all(found), where)


def _set_folder(entry: CatalogSet, folder: Path) -> Path:
    return folder if folder.as_posix().endswith(entry.folder) else folder.parent


def obtain(name: str, root: str | Path | None = None, fetch: bool = True) -> tuple[Path | None, str]:
    """The folder of a catalogued set without splits (a video, a workload, viewports), fetched if need be; or None, and why."""
    entry = load_catalog()[name]
    return find_or_fetch(entry, entry.splits[0], root, fetch)


def find_video(name: str, root: str | Path | None = None) -> Path | None:
    """The folder with `video_size_0` to `video_size_5` of a catalogued video; None when it is not on this machine."""
    entry = load_catalog().get(name)
    if entry is None or entry.kind != "video":
        videos = (each.name for each in load_catalog().values() if each.kind == "video")
        raise UserError(f"video {name!r} is not catalogued: {suggestion(name, videos)}")
    return find_split(entry, entry.splits[0], root)
