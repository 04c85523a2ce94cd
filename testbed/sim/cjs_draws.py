"""Task durations in the compiled scheduling simulator: what `traces.durations` draws, from the same streams, to the last bit."""
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import numpy as np

from testbed.sim.cjs_board import COLD, EXPECTED, FIRST_TASK, FROZEN, HOW_MANY, PROFILE, START, WARM_UP, WORD, WORDS
from testbed.sim.compiled import compiled_in_place, inlined
from traces.tpch import LEVELS

_LEVELS = np.array(LEVELS, np.int64)


@compiled_in_place
def twist(words):
    """The next state of CPython's `random` (Matsumoto and Nishimura, MT19937)."""
    for i in range(WORDS):
        mixed = (words[i] & np.uint32(0x80000000)) | (words[(i + 1) % WORDS] & np.uint32(0x7FFFFFFF))
        twisted = words[(i + 397) % WORDS] ^ (mixed >> np.uint32(1))
        words[i] = twisted ^ np.uint32(0x9908B0DF) if mixed & np.uint32(1) else twisted


@inlined
def word(b):
    """The next 32 bits of CPython's `random`."""
    if b.numbers[WORD] == WORDS:
        twist(b.words)
        b.numbers[WORD] = 0
    bits = np.uint32(b.words[b.numbers[WORD]])
    b.numbers[WORD] += 1
    bits ^= bits >> np.uint32(11)
    bits ^= (bits << np.uint32(7)) & np.uint32(0x9D2C5680)
    bits ^= (bits << np.uint32(15)) & np.uint32(0xEFC60000)
    bits ^= bits >> np.uint32(18)
    return np.int64(bits)


@inlined
def uniform(b):
    """As `random.random()`: 53 bits of two words."""
    high, low = word(b) >> 5, word(b) >> 6
    return (high * 67108864.0 + low) / 9007199254740992.0


@inlined
def below(b, count):
    """As the index of `random.choice`."""
    width = 0
    while count >> width:
        width += 1
    drawn = word(b) >> (32 - width)
    while drawn >= count:
        drawn = word(b) >> (32 - width)
    return drawn


@inlined
def draw_ms(b, stage, task, kind, attached):
    """As `traces.durations`: frozen, or the next of the stream. In a look-ahead: what is to be expected."""
    row, level, right = b.stages[stage, PROFILE], b.spans[attached, 0], b.spans[attached, 1]
    gap, beyond = _LEVELS[right] - _LEVELS[level], attached - _LEVELS[level]
    if b.numbers[FROZEN] == EXPECTED:
        at_left = beyond / gap if right != level else 1.0
        return at_left * b.uniforms[row, level, kind] + (1 - at_left) * b.uniforms[row, right, kind]
    if b.numbers[FROZEN]:
        first = b.stages[stage, FIRST_TASK] + task
        if right != level and b.uniforms[first, kind, 0] * gap >= beyond:
            level = right
        place = np.int64(b.uniforms[first, kind, 1] * b.recorded[row, level, kind, HOW_MANY])
    else:
        if right != level and 1 + np.int64(uniform(b) * gap) > beyond:
            level = right
        place = below(b, b.recorded[row, level, kind, HOW_MANY])
    return b.durations_ms[b.recorded[row, level, kind, START] + place] + b.recorded[row, level, kind, COLD] * b.clock[WARM_UP]
