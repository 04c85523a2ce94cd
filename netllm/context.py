"""The context of running sessions: cached keys and values, so that a decision costs only its new tokens."""

import torch
from transformers import DynamicCache

from netllm.backbone import Backbone


class Context:
    """What the backbone has read of a batch of sessions that advance together. Never shared: each session (or batch) has its own."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._cache = DynamicCache()
        self.tokens = 0
        """Tokens read so far."""

    def extend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read `embeddings` (B, new, width) after all that was read before; returns the outputs at their places (B, new, width)."""
        new = embeddings.shape[1]
        if self.tokens + new > self._backbone.max_tokens:
            raise ValueError(
                f"{self.tokens + new} tokens are more than the {self._backbone.max_tokens} that {self._backbone.name} knows positions for"
            )
        result = self._backbone.model(inputs_embeds=embeddings, past_key_values=self._cache, use_cache=True)
        self.tokens += new
        return result.last_hidden_state
