"""Viewings and windows that tests of viewport prediction make by arithmetic."""

import numpy as np

from controllers.api import VpObservation, VpSession
from traces.viewports import RATE_HZ, HeadMovement
from traces.windows import RULES, Windows, cut


def viewing(video: int = 1, user: int = 1, samples: int = 120, seed: int = 0) -> HeadMovement:
    """A head that wanders, and crosses yaw 180 now and then."""
    rng = np.random.default_rng([seed, video, user])
    yaw_deg = 150 + np.cumsum(rng.normal(0, 8, samples))
    angles_deg = np.stack([20 * np.sin(np.arange(samples) / 9 + user), rng.normal(0, 2, samples), (yaw_deg + 180) % 360 - 180], 1)
    return HeadMovement(video, user, np.arange(samples) / RATE_HZ, angles_deg)


def windows(history_s: float = 2.0, horizon_s: float = 4.0, users: tuple[int, ...] = (1, 2), rule: str = "figures") -> Windows:
    """Windows of these viewers on two videos."""
    return cut([viewing(video, user) for video in (1, 2) for user in users], RULES[rule], history_s, horizon_s)


def observation(history_deg: object, horizon: int = 20) -> VpObservation:
    """The moment after these samples."""
    known_deg = np.array(history_deg, dtype=float)
    return VpObservation(VpSession("test", horizon), np.arange(len(known_deg)) / RATE_HZ, known_deg)
