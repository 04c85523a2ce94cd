"""Cached keys and values in memory that doubles when it is full: a new token is written, the past is not copied."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """`keys` and `values` are (B, heads, tokens, size), views of the room they have."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, new, size) to both; returns all of both."""
        read = self.get_seq_length()
        total = read + key_states.shape[2]
        if not self.is_initialized or total > self._room[0].shape[2]:
            self._move(key_states, value_states, 2 * total)
        keys, values = self._room
        keys[:, :, read:total] = key_states
        values[:, :, read:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def _move(self, key_states: torch.Tensor, value_states: torch.Tensor, tokens: int) -> None:
        """Into more room."""
        room = []
        for states, before in ((key_states, self.keys), (value_states, self.values)):
            batch, heads, _, size = states.shape
            room.append(states.new_empty(batch, heads, tokens, size))
            if before is not None:
                room[-1][:, :, : before.shape[2]] = before
        self._room = tuple(room)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Forget all rows of the batch but those at `indices`."""
        read = self.get_seq_length()
        keys, values = (each[indices] for each in self._room)
        self._room = keys, values
        self.keys, self.values = keys[:, :, :read], values[:, :, :read]


def new_past() -> Cache:
    """An empty one, for transformers' models and for `netllm.decoder`."""
    return Cache(layer_class_to_replicate=_Layer)
