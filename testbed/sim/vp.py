"""Plays recorded head movement to policies that predict viewports, and measures how far off they are.

A viewing is a session: the policy is reset, then asked at each window's moment, in order of time, and told the window's history alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from controllers.api import VpObservation, VpPolicy, VpSession
from testbed import vp_metrics
from testbed.clock import now_s
from testbed.errors import AnswerError, unread
from traces.frames import NO_FRAMES, Frames
from traces.viewports import Floats
from traces.windows import Integers, Windows


@dataclass(frozen=True, eq=False)
class WindowErrors:
    """One policy on N windows; measures as in `testbed.vp_metrics`, all in degrees."""

    video: Integers
    """(N,)"""
    user: Integers
    """(N,)"""
    at: Integers
    """The first future sample's number in its viewing, (N,)."""
    mae_deg: Floats
    """(N,)"""
    axis_mae_deg: Floats
    """(N, 3): roll, pitch, yaw."""
    rmse_deg: Floats
    """(N,)"""
    great_circle_deg: Floats
    """(N,)"""
    published_mae_deg: Floats
    """(N,)"""


def measure(policy: VpPolicy, windows: Windows, seed: int = 0, frames: Frames = NO_FRAMES) -> WindowErrors:
    """The policy's error on each window. Raises `ValueError` for an answer that is none."""
    predicted_deg, true_deg = predict(policy, windows, seed, frames), windows.future_deg
    return WindowErrors(
        windows.video,
        windows.user,
        windows.at,
        vp_metrics.mae_deg(predicted_deg, true_deg),
        vp_metrics.axis_mae_deg(predicted_deg, true_deg),
        vp_metrics.rmse_deg(predicted_deg, true_deg),
        vp_metrics.great_circle_deg(predicted_deg, true_deg),
        vp_metrics.published_mae_deg(predicted_deg, true_deg),
    )


def predict(policy: VpPolicy, windows: Windows, seed: int = 0, frames: Frames = NO_FRAMES) -> Floats:
    """What the policy answers, (N, horizon, 3); each viewing has a stream of random numbers of its own, the same for each policy."""
    predicted_deg = np.empty_like(windows.future_deg)
    for number, (rows, session) in enumerate(sessions(windows)):
        policy.reset(session, seed * 1_000_003 + number)
        predicted_deg[rows] = checked(
            policy.decide_all(observations(windows, rows, session, frames)), rows.stop - rows.start, session.horizon
        )
    return predicted_deg


def decision_times_s(policy: VpPolicy, windows: Windows, most: int, seed: int = 0, frames: Frames = NO_FRAMES) -> tuple[float, ...]:
    """How long single decisions take, seconds, of the first `most` windows; one decision goes before them, untimed."""
    times: list[float] = []
    for rows, session in sessions(windows):
        policy.reset(session, seed)
        seen = observations(windows, rows, session, frames)
        if not times:
            policy.decide(seen[0])
        for each in seen[: most - len(times)]:
            began_s = now_s()
            policy.decide(each)
            times.append(now_s() - began_s)
        if len(times) == most:
            break
    return tuple(times)


def sessions(windows: Windows) -> Iterator[tuple[slice, VpSession]]:
    """The rows of each viewing, and its session."""
    for rows in windows.viewings():
        name = f"video{windows.video[rows.start]}-viewer{windows.user[rows.start]}"
        yield rows, VpSession(name, windows.horizon, windows.rate_hz, windows.front_deg)


def observations(windows: Windows, rows: slice, session: VpSession, frames: Frames = NO_FRAMES) -> list[VpObservation]:
    """What a policy is told at each of these windows."""
    seen, video = zip(windows.times_s[rows], windows.history_deg[rows], strict=True), int(windows.video[rows.start])
    return [VpObservation(session, times_s, history_deg, frames.at(video, float(times_s[-1]))) for times_s, history_deg in seen]


def checked(answer: object, count: int, horizon: int) -> Floats:
    """A policy's answer to `count` observations as numbers, (count, horizon, 3). Raises `AnswerError` when it is none."""
    try:
        numbers = np.asarray(answer, dtype=float)
    except Exception as error:  # whatever a user's array may raise
        raise AnswerError(f"answered {unread(answer, error)}, wanted numbers of shape {(horizon, 3)}") from error
    if numbers.shape != (count, horizon, 3):
        seen = numbers.shape[1:] if len(numbers) == count else numbers.shape
        raise AnswerError(f"answered numbers of shape {seen}, wanted {(horizon, 3)} for each of {count} observations")
    if not np.isfinite(numbers).all():
        raise AnswerError("answered a number that is not finite, wanted degrees")
    return numbers
