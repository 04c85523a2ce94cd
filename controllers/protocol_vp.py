"""What a headset player and the decision service say to each other about viewports; paths and failures are `controllers.protocol`'s.

A `DecideVp` holds all of the history that the player tells, so a session that the service lost goes on after a second `OpenVp`. Frames are
not sent: a policy that looks at pictures finds none here.
"""

import math

import msgspec
import numpy as np

from controllers.api import VpObservation, VpSession
from controllers.protocol import MAX_SECONDS, VERSION, Refusal, check, check_asking, check_opening, check_policy_s, check_session_id, decode
from testbed.errors import unread

MAX_SAMPLES = 10_000
MAX_RATE_HZ = 1000.0
AXES = 3
Angles = tuple[float, float, float]


class OpenVp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start a session."""

    version: int = VERSION
    session: VpSession
    policy: str
    """One of the references that the service preloaded."""
    seed: int


class DecideVp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where will the viewer look, over the session's horizon?"""

    version: int = VERSION
    deadline_s: float
    """How long the player waits; a decision that has not begun by then is not begun."""
    times_s: list[float]
    history_deg: list[Angles]
    """Roll, pitch, yaw, oldest first."""


class AnswerVp(msgspec.Struct, frozen=True, kw_only=True):
    """The horizon's samples, and how long the policy computed."""

    predicted_deg: list[Angles]
    policy_s: float


def decode_open(body: bytes) -> OpenVp:
    """A checked `OpenVp`; `Refusal` names the first field that is wrong."""
    message = decode(body, OpenVp)
    check_opening(message.version, message.policy, message.seed)
    session = message.session
    check_session_id(session.session_id)
    check("session.horizon", session.horizon, 1 <= session.horizon <= MAX_SAMPLES, f"1 to {MAX_SAMPLES}")
    check("session.rate_hz", session.rate_hz, 0 < session.rate_hz <= MAX_RATE_HZ, f"more than 0, at most {MAX_RATE_HZ:g}")
    front_deg = session.front_deg
    check("session.front_deg", front_deg, front_deg is None or abs(front_deg) <= 180, "-180 to 180 degrees, or none")
    return message


def decode_decide(body: bytes) -> DecideVp:
    """A checked `DecideVp`: as many angles as rising times, all of them finite."""
    message = decode(body, DecideVp)
    check_asking(message.version, message.deadline_s)
    count = len(message.history_deg)
    check("history_deg", count, 1 <= count <= MAX_SAMPLES, f"1 to {MAX_SAMPLES} samples")
    check("times_s", len(message.times_s), len(message.times_s) == count, f"{count} times")
    rising = all(a < b for a, b in zip(message.times_s, message.times_s[1:], strict=False))
    finite = all(0 <= time_s <= MAX_SECONDS for time_s in message.times_s)
    check("times_s", "out of order or range", rising and finite, f"rising times from 0 to {MAX_SECONDS:g} s")
    for i, angles in enumerate(message.history_deg):
        check(f"history_deg[{i}]", angles, all(abs(angle) <= 180 for angle in angles), "degrees from -180 to 180")
    return message


def observation(session: VpSession, message: DecideVp) -> VpObservation:
    """What the policy is told."""
    return VpObservation(session, np.array(message.times_s, dtype=float), np.array(message.history_deg, dtype=float).reshape(-1, AXES))


def answer(decided: object, seen: VpObservation, policy_s: float) -> AnswerVp:
    """What the policy decided, if it is a prediction of the whole horizon; else `Refusal`."""
    wanted = f"wanted {seen.session.horizon} samples of {AXES} finite degrees"
    try:
        numbers = np.asarray(decided, dtype=float)
    except Exception as error:  # whatever a user's array may raise
        raise Refusal("invalid", f"the policy answered {unread(decided, error)}, {wanted}") from None
    if numbers.shape != (seen.session.horizon, AXES) or not np.isfinite(numbers).all():
        raise Refusal("invalid", f"the policy answered numbers of shape {numbers.shape}, {wanted}")
    return AnswerVp(predicted_deg=[(roll, pitch, yaw) for roll, pitch, yaw in numbers.tolist()], policy_s=policy_s)


def decode_answer(body: bytes, session: VpSession) -> AnswerVp:
    """A checked `AnswerVp`; `Refusal("invalid")` when it is garbage or of another length."""
    try:
        message = decode(body, AnswerVp)
        count = len(message.predicted_deg)
        check("predicted_deg", count, count == session.horizon, f"{session.horizon} samples")
        finite = all(math.isfinite(angle) for angles in message.predicted_deg for angle in angles)
        check("predicted_deg", "not finite", finite, "finite degrees")
        check_policy_s(message.policy_s)
    except Refusal as refusal:
        raise Refusal("invalid", refusal.message) from None
    return message
