"""Our own TPC-H profile, which stands in where Decima's can't be had: recorded by `scripts/profile_tpch`, kept in `tpch_own.json`.

The file holds what was measured: of each stage its parents, the bytes that it wrote to the shuffle, and how long each of its tasks took
with each number of executors. A small machine makes small data, whose tasks are over in milliseconds; moving an executor to another job
takes 2 s all the same, so schedulers would decide about nothing but moves. A workload's task therefore stands for `stretch` recorded ones:
it takes `stretch` times as long and writes `stretch` times the bytes. `stretch` makes the mean job as much work as Decima's, so that the
usual arrivals load a cluster as they do there.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from testbed.errors import UserError, suggestion
from traces.tpch import NAME, QUERIES, Maker, NotHereError, Profiles, load_profiles

OWN: Final = "tpch_own"
OWN_FILE = Path(__file__).with_name("tpch_own.json")
VERSION = 1
WORK_S = 889.0
"""Mean of Decima's 154 templates: tasks x mean recorded duration, summed over the stages of a job."""
WANTED = "wanted a profile that scripts/profile_tpch wrote"

_Durations = tuple[Annotated[int, msgspec.Meta(ge=1, lt=2**16)], ...]
"""In ms."""


class Waves(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Durations of a stage's tasks, by what their executor did before."""

    fresh: _Durations
    """Nothing in this query."""
    first: _Durations
    """A task of another stage."""
    rest: _Durations
    """A task of this stage."""

    @property
    def all_ms(self) -> _Durations:
        """Of all tasks."""
        return self.fresh + self.first + self.rest


class StageProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage of a template."""

    parents: tuple[int, ...]
    """Places in the template."""
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    """Written to the shuffle by all tasks."""
    executors: dict[int, Waves]
    """By number of executors."""

    @property
    def tasks(self) -> int:
        """The same with any number of executors."""
        return len(next(iter(self.executors.values())).all_ms)

    @property
    def work_ms(self) -> float:
        """Tasks x mean duration over all numbers of executors."""
        return self.tasks * float(np.mean([ms for waves in self.executors.values() for ms in waves.all_ms]))


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query at a size; parents come before children."""

    query: Annotated[int, msgspec.Meta(ge=1, le=QUERIES)]
    size: str
    stages: Annotated[tuple[StageProfile, ...], msgspec.Meta(min_length=1)]


class OwnProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    version: int
    made: dict[str, Any]
    """When, how, by which versions, on what machine, and how busy that was."""
    stretch: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    sizes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    executors: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    templates: tuple[Template, ...]
    """All queries at the first size, then all at the next."""


def profiles_named(name: str) -> Profiles:
    """The profiles that a workload of this name is drawn from. Raises `UserError` when there are none, or they can't be had."""
    if name not in (NAME, OWN):
        raise UserError(f"workload {name!r} is unknown: {suggestion(name, (NAME, OWN))}")
    return load_profiles() if name == NAME else load_own()


def find_profiles(name: str) -> tuple[Profiles, str]:
    """As `profiles_named`, but our own profile stands in for Decima's where those can't be had; then the note says so."""
    try:
        return profiles_named(name), ""
    except NotHereError as error:
        return load_own(), f"{OWN}, a profile of our own on small data, stands in for Decima's: {error}"


@cache
def load_own(path: Path = OWN_FILE) -> Profiles:
    """The own profile as arrays, stretched. Raises `UserError` when the file is bad."""
    profile = read_own(path)
    maker = Maker(profile.stretch)
    for template in profile.templates:
        edges = [(parent, number) for number, stage in enumerate(template.stages) for parent in stage.parents]
        maker.add((len(template.stages), sorted(edges)), dict(enumerate(map(_waves, template.stages))), path)
    shuffled_bytes = [float(profile.stretch * stage.bytes) for template in profile.templates for stage in template.stages]
    return replace(maker.profiles(), name=OWN, sizes=profile.sizes, shuffled_bytes=np.array(shuffled_bytes))


def _waves(stage: StageProfile) -> dict[str, dict[int, list[int]]]:
    """As Decima's files have it, where the first wave has the fresh ones, too."""
    return {
        "fresh_durations": {level: list(waves.fresh) for level, waves in stage.executors.items()},
        "first_wave": {level: [*waves.fresh, *waves.first] for level, waves in stage.executors.items()},
        "rest_wave": {level: list(waves.rest) for level, waves in stage.executors.items()},
    }


def read_own(path: Path) -> OwnProfile:
    """The file, checked. Raises `UserError` when it is bad."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=OwnProfile)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, {WANTED}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}, {WANTED}") from error
    for problem in _problems(profile):
        raise UserError(f"{path}: {problem}, {WANTED}")
    return profile


def _problems(profile: OwnProfile) -> Iterator[str]:
    if profile.version != VERSION:
        yield f"has version {profile.version} instead of {VERSION}"
    wanted = [(query, size) for size in profile.sizes for query in range(1, QUERIES + 1)]
    if [(each.query, each.size) for each in profile.templates] != wanted:
        yield f"doesn't hold queries 1 to {QUERIES} once at each of the sizes {', '.join(profile.sizes)}, in order"
    for template in profile.templates:
        for number, stage in enumerate(template.stages):
            where = f"stage {number} of q{template.query}-{template.size}"
            if any(not 0 <= parent < number for parent in stage.parents) or len(set(stage.parents)) < len(stage.parents):
                yield f"{where} has parents {list(stage.parents)}, which are not earlier stages"
            if tuple(stage.executors) != profile.executors:
                yield f"{where} was recorded with {list(stage.executors)} executors instead of {list(profile.executors)}"
            elif len({len(waves.all_ms) for waves in stage.executors.values()} | {0}) != 2:
                yield f"{where} has no tasks, or not as many with each number of executors"


def to_json(profile: OwnProfile) -> bytes:
    """What the file holds: a line for each template."""
    built = msgspec.to_builtins(profile, str_keys=True)
    templates = ",\n".join(json.dumps(each, separators=(",", ":")) for each in built.pop("templates"))
    head = json.dumps(built, indent=1).removesuffix("\n}")
    return f'{head},\n "templates": [\n{templates}\n]\n}}\n'.encode()
