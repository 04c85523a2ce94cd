"""What a reader needs in order to trust an evaluation of predictors and to repeat it."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controllers.loader import PolicyFactory
from controllers.vp.netllm import NetLLM
from controllers.weights import VP_SHIPPED
from netllm.adapter import SHIPPED
from netllm.identity import weights_of, weights_sha256
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field, versions
from traces.catalog import load_catalog
from traces.viewport_splits import DATASET

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
    """Sha256 by name of policy."""


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
        weights={each.name: weights_sha256(found[0]) for each in policies if (found := _weights(each))},
    )


def _weights(policy: PolicyFactory) -> list[Path]:
    return weights_of(policy, VP_SHIPPED, SHIPPED / "vp" if policy.policy_class is NetLLM else None)
