"""What a reader needs in order to trust an evaluation and to repeat it: when, from what, with what, on which traces."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from controllers.weights import weights_sha256
from netllm.abr.suite.contenders import NETLLM, Contender, Member
from netllm.abr.suite.settings import Prepared
from netllm.evaluation.origin import Origin, origin, without_folders
from testbed.host import versions


@dataclass(frozen=True)
class Header(Origin):
    """The facts of an evaluation."""

    versions: dict[str, str]
    samples: int
    """Sampling seeds of policies that draw random numbers: 0 .. samples-1."""
    quick: bool
    sets: tuple[dict[str, Any], ...]
    """Traces and video of each setting, with their hashes."""
    policies: tuple[dict[str, Any], ...]
    """Reference, identity, weights and their story, of every member."""
    notes: tuple[str, ...]
    seconds: dict[str, float]
    """CPU time per policy, over all settings, of the cells as they were played."""

    def as_json(self) -> str:
        """For the results' metadata."""
        return json.dumps(asdict(self))


def header(
    prepared: Sequence[Prepared],
    contenders: Sequence[Contender],
    samples: int,
    quick: bool,
    notes: Sequence[str],
    seconds: dict[str, float],
) -> Header:
    """Gather the facts; notes on what the settings and the policies' training imply are added."""
    policies = tuple(_described(each, member) for each in contenders for member in each.members)
    implied = dict.fromkeys((*_modelled(prepared), *_seen_videos(prepared, policies)))
    return Header(
        **origin("netllm.test"),
        versions=versions(),
        samples=samples,
        quick=quick,
        sets=tuple(_set(each) for each in prepared),
        policies=policies,
        notes=(*notes, *implied),
        seconds=seconds,
    )


def _set(prepared: Prepared) -> dict[str, Any]:
    setting, session = prepared.setting, prepared.session
    return {
        "setting": setting.name,
        "traces": setting.traces,
        "source": prepared.source,
        "sha256": prepared.sha256,
        "played": len(prepared.playbacks),
        "video": setting.video,
        "video_sha256": session.video.sha256,
        "rtt_s": session.rtt_s,
        "buffer_cap_s": session.buffer_cap_s,
        "chunks": session.chunks,
    }


def _described(contender: Contender, member: Member) -> dict[str, Any]:
    return {
        "name": contender.name,
        "kind": contender.kind,
        "reference": without_folders(member.reference.canonical),
        "identity": member.identity,
        "weights": {path.name: weights_sha256(path) for path in member.weights},
        "story": story(member),
    }


def story(member: Member) -> dict[str, Any]:
    """How the member's weights were made, as they tell it; empty for a rule."""
    for path in member.weights:
        beside = path / "netllm.json" if path.is_dir() else path.with_suffix(".json")
        for told in (beside, path):
            if found := _told(told):
                return found
    return {}


def _told(path: Path) -> dict[str, Any]:
    """The content of a JSON file or of the header of a safetensors file."""
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="numpy") as file:
                return {key: json.loads(value) if value[:1] in "{[" else value for key, value in (file.metadata() or {}).items()}
    except (OSError, ValueError, SafetensorError):
        pass  # weights without a story are no fault of the evaluation
    return {}


def _modelled(prepared: Sequence[Prepared]) -> list[str]:
    return list(dict.fromkeys(each.note for each in prepared if each.note))


def _seen_videos(prepared: Sequence[Prepared], policies: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A video that counts as unseen may have been trained on: then the reader is told."""
    tested = {each.setting.video for each in prepared if "video" in each.setting.unseen}
    for policy in policies:
        both = sorted(tested & _videos(policy["story"]))
        if both:
            who = "the adapter" if policy["kind"] == NETLLM else "the policy"
            yield f"{policy['name']}: {who} was trained on {', '.join(both)} too, so {' and '.join(both)} is not unseen to it"


def _videos(told: Any) -> set[str]:
    """Names under any key `videos`, those of the teachers among them; a changed ladder is still that video."""
    if isinstance(told, dict):
        named = told.get("videos", ())
        own = {re.split("[*@]", str(each))[0] for each in named} if isinstance(named, list | tuple) else set()
        return own.union(*(_videos(each) for each in told.values()))
    return set().union(*(_videos(each) for each in told)) if isinstance(told, list) else set()
