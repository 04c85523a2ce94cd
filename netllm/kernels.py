"""Which kernels compute a single row on a CPU.

oneDNN, PyTorch's choice for products in bfloat16, rearranges a weight whenever it is used. That pays for many rows; for one, PyTorch's
own kernels take two thirds of the time on an AMD EPYC (10 ms instead of 15 ms for all of SmolLM2-135M's weights, which are read in 7 ms at
best). Weights of 16 levels have a kernel of their own (`netllm.quantised`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def suits_one_row(model: nn.Module) -> bool:
    """Whether PyTorch's own kernels are quick with its weights: not with those that are kept transposed (GPT-2's)."""
    return not any(isinstance(module, Conv1D) for module in model.modules())


_LOCK = threading.Lock()
_inside = 0
"""How often `for_one_row` is entered now, in all threads: the setting is the process's."""
_usual = True
"""The setting as it was before."""


@contextmanager
def for_one_row() -> Iterator[None]:
    """Compute with PyTorch's own kernels within. What other threads compute meanwhile is as right, only slower.

    Who switches `torch.backends.mkldnn` itself meanwhile, in another thread, may find it switched otherwise afterwards.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _usual
    with _LOCK:
        if not _inside:
            _usual = torch.backends.mkldnn.enabled  # type: ignore[assignment]
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        _inside += 1


def _leave() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        if not _inside:
            torch.backends.mkldnn.enabled = _usual  # type: ignore[assignment]
