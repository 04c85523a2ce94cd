"""What a reader needs in order to trust an evaluation of predictors and to repeat it."""

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controllers.loader import PolicyFactory
from controllers.weights import VP_SHIPPED, find_weights
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field, versions
from traces.catalog import load_catalog
from traces.viewport_splits import DATASET

ADAPTER = Path(__file__).resolve().parents[1] / "adapters" / "vp"
_FOLDERS = re.compile(r"(?<![\w.])[~/][^\s,=+]*/")


@dataclass(frozen=True)
class VpHeader:
    """The facts of an evaluation."""

    utc: str
    commit: str
    command: str
    hardware: str
    versions: dict[str, str]
    split: str
    data_sha256: str
    weights: dict[str, str]
    """Sha256 by name of policy; of an adapter that of its encoders and head."""


def vp_header(policies: Sequence[PolicyFactory], split: str) -> VpHeader:
    """Gather the facts."""
    words = [_FOLDERS.sub("", word) for word in sys.argv[1:]]
    return VpHeader(
        utc=utc_now().isoformat(timespec="seconds"),
        commit=checkout_commit() or "unknown",
        command=command_line("scripts/evaluate", words) if Path(sys.argv[0]).name == "evaluate" else "netllm.vp_suite.run.test(...)",
        hardware=cpu_field("model name") or "unknown processor",
        versions=versions(),
        split=split,
        data_sha256=load_catalog()[DATASET].splits[0].sha256,
        weights={each.name: _sha256(path) for each in policies if (path := _weights(each)).is_file()},
    )


def _weights(policy: PolicyFactory) -> Path:
    given, name = dict(policy.arguments).get("weights", ""), policy.name.partition("+")[0]
    if name == "netllm":
        return Path(str(dict(policy.arguments).get("adapter", "") or ADAPTER)).expanduser() / "modules.safetensors"
    return find_weights(str(given), name, VP_SHIPPED)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
