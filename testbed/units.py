"""Conversions between SI and the units that files, papers and people use. Nowhere else may 8, 1000 or 1500 stand."""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

Amount = TypeVar("Amount", float, "NDArray[Any]")
"""A number or an array of numbers."""

BITS_PER_BYTE = 8
OPPORTUNITY_BYTES = 1500
"""Bytes that one Mahimahi delivery opportunity may carry (mm-link, `link_queue.cc`)."""
MTU_BYTES = 1500
"""Largest IP packet on an emulated path."""
ETHERNET_BYTES = 14
"""Of an Ethernet header: what a frame has more than its IP packet."""
UDP_HEADERS_BYTES = 28
"""IP and UDP: what an IP packet has more than its datagram's payload."""


def bps_from_mbps(mbps: Amount) -> Amount:
    """Bit/s from Mbit/s."""
    return mbps * 1e6


def mbps_from_bps(bps: Amount) -> Amount:
    """Mbit/s from bit/s."""
    return bps / 1e6


def bps_from_kbps(kbps: Amount) -> Amount:
    """Bit/s from kbit/s."""
    return kbps * 1e3


def kbps_from_bps(bps: Amount) -> Amount:
    """Kbit/s from bit/s."""
    return bps / 1e3


def bytes_per_s_from_bps(bps: Amount) -> Amount:
    """Byte/s from bit/s."""
    return bps / BITS_PER_BYTE


def bits_from_bytes(size_bytes: Amount) -> Amount:
    """Bits from bytes."""
    return size_bytes * BITS_PER_BYTE


def bytes_from_bits(bits: Amount) -> Amount:
    """Bytes from bits."""
    return bits / BITS_PER_BYTE


def kilobytes_from_bytes(size_bytes: Amount) -> Amount:
    """Kilobytes (thousands) from bytes."""
    return size_bytes / 1e3


def s_from_ms(ms: Amount) -> Amount:
    """Seconds from milliseconds."""
    return ms / 1e3


def ms_from_s(seconds: Amount) -> Amount:
    """Milliseconds from seconds."""
    return seconds * 1e3


def s_from_us(us: Amount) -> Amount:
    """Seconds from microseconds."""
    return us / 1e6


def s_from_ns(ns: Amount) -> Amount:
    """Seconds from nanoseconds."""
    return ns / 1e9


def ns_from_s(seconds: float) -> int:
    """Whole nanoseconds from seconds."""
    return round(seconds * 1e9)
