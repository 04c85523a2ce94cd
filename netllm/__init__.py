"""A language model adapted for networking (NetLLM, SIGCOMM 2024): one frozen backbone, one small adapter per task.

`collect` gathers experience in the simulator, `adapt` trains an adapter on it, `test` measures it beside others. Importing this
package loads no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {"collect": "netllm.abr.experience", "adapt": "netllm.abr.adapt", "test": "netllm.abr.suite.run"}

__all__ = ["adapt", "collect", "test"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
