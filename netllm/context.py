"""The context of running sessions: cached keys and values, so that a decision costs only its new tokens; and how far a token looks back."""

from contextlib import nullcontext

import torch

from netllm.backbone import Backbone
from netllm.decoder import Decoder
from netllm.kernels import for_one_row, suits_one_row
from netllm.past import new_past

FEW_ROWS = 8
"""As many new tokens, of all sessions, the decoder reads in less time than transformers' pass takes."""


class Context:
    """What the backbone has read of a batch of sessions that advance together. Never shared: each session (or batch) has its own."""

    def __init__(self, backbone: Backbone, reach: int = 0, step_tokens: int = 1, decoder: Decoder | None = None) -> None:
        self._backbone, self._decoder = backbone, decoder
        self._past = new_past()
        self._reach, self._step_tokens = reach, step_tokens
        self._suits_one_row = suits_one_row(backbone.model)
        self.tokens = 0
        """Tokens read so far."""

    def extend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read `embeddings` (B, new, width) after all that was read before; returns the outputs at their places (B, new, width)."""
        batch, new = embeddings.shape[:2]
        if self.tokens + new > self._backbone.max_tokens:
            raise ValueError(
                f"{self.tokens + new} tokens are more than the {self._backbone.max_tokens} that {self._backbone.name} knows positions for"
            )
        if self._decoder and batch * new <= FEW_ROWS:
            return self._decode(self._decoder, embeddings)
        return self._pass(embeddings)

    def _decode(self, decoder: Decoder, embeddings: torch.Tensor) -> torch.Tensor:
        new, mask = embeddings.shape[1], None
        if new > 1 or self._reach:
            mask = allowed(new, self.tokens + new, self._reach, self._step_tokens, embeddings.dtype)
        with for_one_row():
            hidden = decoder.read(embeddings, self._past, mask)
        self.tokens += new
        return hidden

    def _pass(self, embeddings: torch.Tensor) -> torch.Tensor:
        new = embeddings.shape[1]
        limits = band(new, self.tokens + new, self._reach, self._step_tokens, embeddings.dtype)
        one_row = self._suits_one_row and embeddings.shape[:2].numel() == 1
        with for_one_row() if one_row else nullcontext():
            result = self._backbone.model(inputs_embeds=embeddings, past_key_values=self._past, use_cache=True, **limits)
        self.tokens += new
        return result.last_hidden_state

    def keep(self, places: torch.Tensor) -> None:
        """Forget all sessions of the batch but those at `places`."""
        if self.tokens:
            self._past.batch_select_indices(places)


def band(new: int, total: int, reach: int, step_tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments of transformers' pass: `allowed`, and positions, for some models would work them out from a mask of another shape."""
    mask = allowed(new, total, reach, step_tokens, dtype)
    return {"attention_mask": mask[None, None], "position_ids": torch.arange(total - new, total)[None]}


def allowed(new: int, total: int, reach: int, step_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """What lets the last `new` of `total` tokens attend to the past, and there to `reach` steps at most, their own included: a mask to add.

    With a `reach` of 0 that is all of the past.
    """
    places = torch.arange(total)
    own = places[total - new :, None]
    seen = places <= own  # (new, total)
    if reach:
        seen &= own // step_tokens - places // step_tokens < reach
    return torch.zeros(new, total, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
