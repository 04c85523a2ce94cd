"""The context of running sessions: cached keys and values, so that a decision costs only its new tokens; and how far a token looks back."""

from contextlib import nullcontext

import torch
from transformers import DynamicCache

from netllm.backbone import Backbone
from netllm.kernels import for_one_row, suits_one_row


class Context:
    """What the backbone has read of a batch of sessions that advance together. Never shared: each session (or batch) has its own."""

    def __init__(self, backbone: Backbone, reach: int = 0, step_tokens: int = 1) -> None:
        self._backbone = backbone
        self._cache = DynamicCache()
        self._reach, self._step_tokens = reach, step_tokens
        self._suits_one_row = suits_one_row(backbone.model)
        self.tokens = 0
        """Tokens read so far."""

    def extend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read `embeddings` (B, new, width) after all that was read before; returns the outputs at their places (B, new, width)."""
        new = embeddings.shape[1]
        if self.tokens + new > self._backbone.max_tokens:
            raise ValueError(
                f"{self.tokens + new} tokens are more than the {self._backbone.max_tokens} that {self._backbone.name} knows positions for"
            )
        limits = band(new, self.tokens + new, self._reach, self._step_tokens, embeddings.dtype)
        one_row = self._suits_one_row and embeddings.shape[:2].numel() == 1
        with for_one_row() if one_row else nullcontext():
            result = self._backbone.model(inputs_embeds=embeddings, past_key_values=self._cache, use_cache=True, **limits)
        self.tokens += new
        return result.last_hidden_state

    def keep(self, places: torch.Tensor) -> None:
        """Forget all sessions of the batch but those at `places`."""
        if self.tokens:
            self._cache.batch_select_indices(places)


def band(new: int, total: int, reach: int, step_tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments that let the last `new` of `total` tokens attend to the past, and there to `reach` steps at most, their own included.

    With a `reach` of 0 that is all of the past. Positions are told, for some models would work them out from a mask of another shape.
    """
    places = torch.arange(total)
    own = places[total - new :, None]
    seen = places <= own  # (new, total)
    if reach:
        seen &= own // step_tokens - places // step_tokens < reach
    mask = torch.zeros(new, total, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {"attention_mask": mask[None, None], "position_ids": places[None, total - new :]}
