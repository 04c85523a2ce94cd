"""What a reader needs in order to trust an evaluation of predictors and to repeat it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controllers.loader import PolicyFactory
from controllers.vp.netllm import NetLLM
from controllers.weights import VP_SHIPPED, weights_sha256
from netllm.adapter import SHIPPED
from netllm.evaluation.origin import Origin, origin
from netllm.identity import weights_of
from testbed.host import versions
from traces.catalog import load_catalog
from traces.viewport_splits import DATASET


@dataclass(frozen=True)
class VpHeader(Origin):
    """The facts of an evaluation."""

    versions: dict[str, str]
    split: str
    data_sha256: str
    weights: dict[str, str]
    """Sha256 by name of policy."""


def vp_header(policies: Sequence[PolicyFactory], split: str) -> VpHeader:
    """Gather the facts."""
    return VpHeader(
        **origin("netllm.vp.suite.run.test"),
        versions=versions(),
        split=split,
        data_sha256=load_catalog()[DATASET].splits[0].sha256,
        weights={each.name: weights_sha256(found[0]) for each in policies if (found := _weights(each))},
    )


def _weights(policy: PolicyFactory) -> list[Path]:
    return weights_of(policy, VP_SHIPPED, SHIPPED / "vp" if policy.policy_class is NetLLM else None)
