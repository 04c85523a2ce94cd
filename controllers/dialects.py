"""The messages of each task: how the decision service reads a question, and what it takes for an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from controllers import protocol, protocol_cjs, protocol_vp
from controllers.api import AbrSession, CjsSession, VpSession

AnySession = AbrSession | CjsSession | VpSession
AnyOpen = protocol.Open | protocol_cjs.OpenCjs | protocol_vp.OpenVp
AnyAnswer = protocol.Answer | protocol_cjs.AnswerCjs | protocol_vp.AnswerVp


class AnyPolicy(Protocol):
    """A policy of any task: that it is told of sessions and observations of its own task is the dialect's doing."""

    def reset(self, session: Any, seed: int) -> None:
        """Start `session`."""
        ...

    def decide(self, observation: Any) -> object:
        """The policy's answer, unchecked."""
        ...


@dataclass(frozen=True)
class Dialect:
    """Each raises `protocol.Refusal` for what it can't take."""

    decode_open: Callable[[bytes], AnyOpen]
    decode_decide: Callable[[bytes], Any]
    observation: Callable[[Any, Any], Any]
    """What the policy is told, from the session and the message."""
    answer: Callable[[object, Any, float], AnyAnswer]
    """The answer, from what the policy decided on which observation, and how long it took, seconds."""


DIALECTS = {
    "abr": Dialect(protocol.decode_open, protocol.decode_decide, protocol.observation, protocol.answer),
    "cjs": Dialect(protocol_cjs.decode_open, protocol_cjs.decode_decide, protocol_cjs.observation, protocol_cjs.answer),
    "vp": Dialect(protocol_vp.decode_open, protocol_vp.decode_decide, protocol_vp.observation, protocol_vp.answer),
}
"""By task."""
