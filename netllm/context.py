"""The context of running sessions: cached keys and values, so that a decision costs only its new tokens; and how far a token looks back."""

from contextlib import nullcontext

import torch

from netllm.backbone import Backbone
from netllm.decoder import Decoder
from netllm.kernels import for_one_row, suits_one_row
from netllm.past import new_past

FEW_TOKENS, FEW_SESSIONS = 3, 8
"""As many new tokens, of as many sessions, the decoder reads token by token in less time than one pass of transformers takes."""


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
        if self._decoder and batch <= FEW_SESSIONS and new <= FEW_TOKENS:
            return torch.cat([self._decode(self._decoder, token) for token in torch.split(embeddings, 1, dim=1)], dim=1)
        return self._pass(embeddings)

    def _decode(self, decoder: Decoder, token: torch.Tensor) -> torch.Tensor:
        """(B, 1, width) to (B, 1, width)."""
        with for_one_row():
            hidden = decoder.read(token, self._past, seen(self.tokens, self._reach, self._step_tokens) if self._reach else 0)
        self.tokens += 1
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


def seen(place: int, reach: int, step_tokens: int) -> int:
    """How many tokens the one at `place` attends to, itself included, when it looks `reach` steps back at most."""
    return place + 1 - max(place // step_tokens - reach + 1, 0) * step_tokens


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
