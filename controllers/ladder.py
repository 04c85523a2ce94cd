"""Where the levels of any ladder stand in the ladder that a model was trained on."""

from functools import lru_cache
from itertools import combinations

import numpy as np

from testbed.errors import UserError

LADDER_BPS = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
"""The ladder of Pensieve (SIGCOMM 2017, section 5.1), on which ours are trained."""


@lru_cache(maxsize=4096)
def slots(bitrates_bps: tuple[int, ...], ladder_bps: tuple[int, ...] = LADDER_BPS) -> tuple[int, ...]:
    """The slot of each level: in order, no slot twice, nearest in log bitrate. Raises `UserError` when there are more levels than slots."""
    if bitrates_bps == ladder_bps:
        return tuple(range(len(ladder_bps)))
    if len(bitrates_bps) > len(ladder_bps):
        raise UserError(f"the video has {len(bitrates_bps)} levels, wanted at most the {len(ladder_bps)} that the model was trained with")
    logs, ladder = np.log(bitrates_bps), np.log(ladder_bps)
    return min(combinations(range(len(ladder_bps)), len(bitrates_bps)), key=lambda chosen: float(np.abs(ladder[list(chosen)] - logs).sum()))
