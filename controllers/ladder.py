"""Where the levels of any ladder stand in the ladder that a model was trained on."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LADDER_BPS = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
"""The ladder of Pensieve (SIGCOMM 2017, section 5.1), on which ours are trained."""


@dataclass(frozen=True)
class Places:
    """Levels and slots, paired in order and as near in log bitrate as can be.

    A shorter ladder leaves slots empty. Of a longer one as many levels are used as there are slots; the model never chooses the others.
    """

    slots: tuple[int, ...]
    """Slots that hold a level, rising."""
    levels: tuple[int, ...]
    """The level in each of them."""
    slot_of_level: tuple[int, ...]
    """Slot of every level; of a level that is not used, the slot of the nearest one that is."""


@lru_cache(maxsize=4096)
def places(bitrates_bps: tuple[int, ...], ladder_bps: tuple[int, ...] = LADDER_BPS) -> Places:
    """The pairing of a video's levels with the slots of `ladder_bps`."""
    logs, ladder = np.log(bitrates_bps), np.log(ladder_bps)
    if len(logs) <= len(ladder):
        levels, slots = tuple(range(len(logs))), _nearest(logs, ladder)
    else:
        levels, slots = _nearest(ladder, logs), tuple(range(len(ladder)))
    nearest = [int(np.argmin(np.abs(logs[list(levels)] - each))) for each in logs]
    return Places(slots, levels, tuple(slots[i] for i in nearest))


def _nearest(few: np.ndarray, many: np.ndarray) -> tuple[int, ...]:
    """For each of `few` another of `many`, in order, with the least sum of distances (dynamic programming over both)."""
    cost = np.full((len(few) + 1, len(many) + 1), np.inf)
    cost[0] = 0.0
    for i, value in enumerate(few):
        for j in range(i, len(many)):
            cost[i + 1, j + 1] = min(cost[i + 1, j], cost[i, j] + abs(value - many[j]))
    chosen, j = [], len(many)
    for i in range(len(few), 0, -1):
        while cost[i, j - 1] == cost[i, j]:
            j -= 1
        j -= 1
        chosen.append(j)
    return tuple(reversed(chosen))
