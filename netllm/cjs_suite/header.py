"""What a reader needs in order to trust an evaluation of schedulers and to repeat it."""

import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controllers.loader import PolicyFactory
from controllers.weights import CJS_SHIPPED, find_weights
from netllm.adapter import LORA, MODULES, SHIPPED
from netllm.suite.contenders import MODEL, hash_file, hash_tree
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field


@dataclass(frozen=True)
class CjsHeader:
    """The facts of an evaluation."""

    utc: str
    commit: str
    command: str
    semantics: str
    hardware: str
    weights: dict[str, str]
    """Sha256 by name of policy."""


def cjs_header(policies: Sequence[PolicyFactory], semantics: str) -> CjsHeader:
    """Gather the facts."""
    program = Path(sys.argv[0]).name
    return CjsHeader(
        utc=utc_now().isoformat(timespec="seconds"),
        commit=checkout_commit() or "unknown",
        command=command_line("scripts/evaluate", sys.argv[1:]) if program == "evaluate" else "netllm.cjs_suite.run.test(...)",
        semantics=semantics,
        hardware=cpu_field("model name") or "unknown processor",
        weights={each.name: sha256 for each in policies if (sha256 := weights_sha256(each))},
    )


SIMULATION = (
    "testbed/sim/cjs*.py",
    "testbed/sim/compiled.py",
    "testbed/cluster/*.py",
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


def identity(policy: PolicyFactory) -> str:
    """Hash of the sources and weights that decide what the policy answers, and what comes of it."""
    sources = (*SIMULATION, *((*MODEL, "netllm/cjs/*.py") if policy.name.partition("+")[0] == "netllm" else ()))
    parts = [repr(policy.arguments), hash_tree(sources), hash_file(inspect.getfile(policy.policy_class)), weights_sha256(policy)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def weights_sha256(policy: PolicyFactory) -> str:
    """Of the files that the policy has learnt; empty for a rule."""
    arguments = dict(policy.arguments)
    target = policy.name.partition("+")[0]
    if target == "netllm":
        folder = Path(str(arguments.get("adapter") or SHIPPED / "cjs")).expanduser()
        files = [folder / LORA, folder / MODULES]
    else:
        files = [find_weights(str(arguments.get("weights", "")), target, CJS_SHIPPED)]
    found = [path.read_bytes() for path in files if path.is_file()]
    return hashlib.sha256(b"".join(found)).hexdigest() if found else ""
