"""Teachers: policies that say what a student should have done. Several speak with one voice, the mean of their log-probabilities."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from controllers.loader import load, parse_reference
from controllers.weights import find_weights, read_story

LEAST = 1e-3
"""Least probability that a teacher among several gives a level: a single one must not forbid what all others want."""


class Teachers:
    """One or more policies, by reference (`controllers/loader.py`), that serve one session at a time."""

    def __init__(self, references: Sequence[str]) -> None:
        self._policies: list[AbrPolicy] = [load(reference)() for reference in references]
        if not self._policies:
            raise ValueError("no teacher is named, wanted at least one")

    def reset(self, session: AbrSession, seed: int) -> None:
        """Start a session."""
        for policy in self._policies:
            policy.reset(session, seed)

    def probabilities(self, observation: AbrObservation) -> np.ndarray:
        """A probability for each level, (levels,): a single teacher's own, else the normalised geometric mean."""
        answers = np.array([policy.probabilities(observation) for policy in self._policies])  # (teachers, levels)
        chances: np.ndarray = answers[0]
        if len(answers) > 1:
            mixed = np.exp(np.log(np.maximum(answers, LEAST)).mean(axis=0))
            chances = mixed / mixed.sum()
        return chances


def story_of(reference: str) -> dict[str, Any]:
    """What a teacher has learnt from, its student has, too: file, hash and training videos of its weights; empty for a rule."""
    parsed = parse_reference(reference)
    path = find_weights(dict(parsed.options).get("weights", ""), parsed.target)
    if path.suffix != ".safetensors" or not path.is_file():  # a user's policy may keep its weights in any form
        return {}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"weights": path.name, "sha256": sha256, "videos": list(read_story(path).get("videos", ()))}
