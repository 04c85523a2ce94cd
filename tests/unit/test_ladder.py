"""Any ladder finds its places in the one trained on."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.ladder import LADDER_BPS, places


def test_the_ladder_trained_on_is_itself():
    found = places(LADDER_BPS)
    assert found.slots == found.levels == found.slot_of_level == (0, 1, 2, 3, 4, 5)


@given(st.sets(st.integers(1_000, 10**8), min_size=1, max_size=9))
def test_levels_and_slots_are_paired_in_order_and_nearest(bitrates):
    ladder = tuple(sorted(bitrates))
    found = places(ladder)
    assert len(found.slots) == len(found.levels) == min(len(ladder), 6)
    assert list(found.slots) == sorted(set(found.slots)) and list(found.levels) == sorted(set(found.levels))
    few, many = sorted((np.log(ladder), np.log(LADDER_BPS)), key=len)
    best = min(np.abs(few - many[list(chosen)]).sum() for chosen in combinations(range(len(many)), len(few)))
    logs = np.log(ladder)[list(found.levels)] - np.log(LADDER_BPS)[list(found.slots)]
    assert np.abs(logs).sum() == pytest.approx(best)
    assert all(found.slot_of_level[level] == slot for level, slot in zip(found.levels, found.slots, strict=True))
    assert len(found.slot_of_level) == len(ladder) and set(found.slot_of_level) == set(found.slots)
