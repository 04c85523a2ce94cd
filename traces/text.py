"""Text and numbers as trace files hold them: read by decimals, so that what was written comes back to the last bit."""

import math
import re
from decimal import Context, Decimal, InvalidOperation, Overflow

from testbed.errors import UserError
from traces.trace import MAX_RATE_BPS

MAX_LINE_CHARS = 200
"""Longest line of a text format; a real one has about 40."""
EXACT = Context(prec=100, traps=[InvalidOperation, Overflow])
"""For sums of decimals without rounding."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""What a compressed file begins with; no trace does."""


def decode(content: bytes, where: str) -> str:
    """The text in `content`; raises `UserError` for bytes that are no text."""
    for beginning, packer in _PACKERS.items():
        if content.startswith(beginning):
            raise UserError(f"{where}: is compressed ({packer}), wanted a trace in a text format: unpack it first")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}:{line}: byte 0x{content[error.start]:02x} is not text, wanted a trace in a text format") from error
    control = re.search(r"[^\t\n\v\f\r -\U0010ffff]", text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise UserError(f"{where}:{line}: byte 0x{ord(control[0]):02x} is not text, wanted a trace in a text format")
    return text


def filled_lines(text: str, where: str, example: str) -> list[tuple[int, str]]:
    """Each line that is not blank, with its number; an error tells of the `example` of a line."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE_CHARS:
            raise UserError(f"{where}:{number}: has {len(line)} characters, wanted at most {MAX_LINE_CHARS} ({example})")
        if line.strip():
            found.append((number, line))
    return found


def shown(value: object) -> str:
    """`value` as an error shows it."""
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 42 else f"{text[:40]}..."


def is_number(word: str) -> bool:
    """Whether `word` is a finite number in the usual notation."""
    return bool(_NUMBER.fullmatch(word))


def to_decimal(word: str, what: str, wanted: str, where: str) -> Decimal:
    """`word` as a decimal."""
    if not is_number(word):
        raise UserError(f"{where}: {what} is {shown(word)}, wanted {wanted}")
    return Decimal(word)


def to_float(number: Decimal, what: str, where: str, written: object = None) -> float:
    """`number` as a float; an error shows it as it was `written`."""
    value = float(number)
    if not math.isfinite(value):
        raise UserError(f"{where}: {what} is {shown(str(written or number))}, wanted a finite number")
    return value


def to_rate_bps(number: Decimal, what: str, where: str, written: object) -> float:
    """`number` as a rate that a trace may have; an error shows it as it was `written`."""
    value = to_float(number, what, where, written)
    if value > MAX_RATE_BPS:
        raise UserError(f"{where}: {what} is {shown(str(written))}, wanted at most {MAX_RATE_BPS:g} bit/s")
    return value


def to_text(number: Decimal) -> str:
    """`number` without trailing zeros after the point, and without an exponent unless it is far from 1."""
    if abs(number.adjusted()) > 30:
        return str(number)
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
