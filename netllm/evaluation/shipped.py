"""Whose results go into the model card of the adapter that ships."""

from collections.abc import Sequence

from controllers.loader import PolicyFactory
from testbed.errors import UserError

NETLLM = "netllm"


def measures_shipped(policies: Sequence[PolicyFactory], ours: type) -> bool:
    """Whether plain `netllm`, of class `ours`, is among the policies. Raises `UserError` where another policy bears its name."""
    for policy in policies:
        if policy.name == NETLLM:
            if policy.policy_class is not ours:
                where = policy.reference.target
                raise UserError(f"--write: the policy {NETLLM!r} is {where}, wanted our own under that name, or a file of another name")
            return True
    return False
