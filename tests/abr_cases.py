"""Videos, traces and sessions that several tests of policies and simulator share. All are made by arithmetic."""

import math

from controllers.api import AbrObservation, AbrSession, Chunk, Manifest
from traces.trace import RateTrace


def video(levels: int = 6, chunk_s: float = 4.0, chunks: int = 49) -> Manifest:
    """A ladder whose bitrates grow by half from 300 kbit/s; sizes swing by 10 % around the nominal ones."""
    bitrates_bps = tuple(round(300_000 * 1.5**level) for level in range(levels))
    sizes_bytes = tuple(
        tuple(round(bps / 8 * chunk_s * (1 + 0.1 * math.sin(1.7 * chunk + 0.3 * level))) for level, bps in enumerate(bitrates_bps))
        for chunk in range(chunks)
    )
    return Manifest(f"toy{levels}", chunk_s, bitrates_bps, sizes_bytes)


def session(chunks: int = 48, levels: int = 6, chunk_s: float = 4.0) -> AbrSession:
    return AbrSession("test", video(levels, chunk_s), chunks)


def steady(mbps: float) -> RateTrace:
    return RateTrace(f"steady {mbps}", (0.0, 100.0), (mbps * 1e6,))


def varied(scale: float = 1.0) -> RateTrace:
    """Five minutes between 0.2 and 3.5 Mbit/s with an outage of 6 s."""
    rates_bps = [scale * 1e6 * (1.3 + 0.9 * math.sin(i / 3) + 0.4 * math.sin(2.1 * i)) for i in range(100)]
    rates_bps = [max(rate, 2e5 * scale) for rate in rates_bps]
    rates_bps[40:42] = [0.0, 0.0]
    return RateTrace(f"varied {scale}", tuple(3.0 * i for i in range(101)), tuple(rates_bps))


def observation(playback: AbrSession, throughputs_bps: list[float], levels: list[int], buffer_s: float) -> AbrObservation:
    """What a policy sees after chunks at `levels` that came at `throughputs_bps`."""
    history = []
    for i, (throughput_bps, level) in enumerate(zip(throughputs_bps, levels, strict=True)):
        size_bytes = playback.video.sizes_bytes[i][level]
        history.append(Chunk(i, level, size_bytes, size_bytes * 8 / throughput_bps, 0.0, buffer_s))
    return AbrObservation(playback, tuple(history), buffer_s)
