"""What a reader needs in order to trust an evaluation of schedulers and to repeat it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controllers.cjs.netllm import NetLLM
from controllers.loader import PolicyFactory
from controllers.weights import CJS_SHIPPED, weights_sha256
from netllm import identity as identities
from netllm.adapter import SHIPPED
from netllm.evaluation.origin import Origin, origin


@dataclass(frozen=True)
class CjsHeader(Origin):
    """The facts of an evaluation."""

    semantics: str
    weights: dict[str, str]
    """Sha256 by name of policy."""


def cjs_header(policies: Sequence[PolicyFactory], semantics: str) -> CjsHeader:
    """Gather the facts."""
    return CjsHeader(
        **origin("netllm.cjs.suite.run.test"),
        semantics=semantics,
        weights={each.name: weights_sha256(found[0]) for each in policies if (found := weights_of(each))},
    )


SIMULATION = (
    "testbed/sim/cjs*.py",
    "testbed/sim/compiled.py",
    "testbed/cluster/*.py",
    "testbed/units.py",
    "netllm/cjs/suite/play.py",
    "traces/durations.py",
    "traces/pickled.py",
    "traces/tpch.py",
    "traces/tpch_own.py",
    "traces/workload.py",
    "controllers/api.py",
    "controllers/shares.py",
    "controllers/weights.py",
)
"""Sources that decide what any schedule gives."""
MODEL = (*identities.MODEL, "netllm/cjs/*.py", "controllers/cjs/srpt_cap.py")
"""Sources that decide what a language model answers."""


def identity(policy: PolicyFactory) -> str:
    """Hash of all that decides what the policy answers, and what comes of it."""
    return identities.identity(policy, SIMULATION, weights_of(policy), MODEL if policy.policy_class is NetLLM else ())


def weights_of(policy: PolicyFactory) -> list[Path]:
    """What the policy has learnt: a file, or an adapter's folder; nothing for a rule."""
    return identities.weights_of(policy, CJS_SHIPPED, SHIPPED / "cjs" if policy.policy_class is NetLLM else None)
