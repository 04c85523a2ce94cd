"""The player's side of the origin: one keep-alive connection, one request at a time, bounded retries, and an eye on progress."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

from controllers.api import Manifest
from controllers.protocol import Refusal, check_manifest
from players.config import PlayerConfig
from players.tiles import TiledVideo, check_tiled
from testbed.clock import now_s
from testbed.errors import UserError

KEEP_ALIVE_S = 3600.0

Video = TypeVar("Video", Manifest, TiledVideo)


class PlaybackEnded(Exception):
    """The playback ends early. `reason` is an `end_reason` of `players.headless`, `detail` one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Download:
    """When something was asked for and came, seconds on CLOCK_MONOTONIC; a retry's time counts in."""

    request_s: float
    first_byte_s: float
    end_s: float
    size_bytes: int


class OriginClient:
    """Fetches the manifest and the chunks of one playback; what can't be had is `PlaybackEnded`."""

    def __init__(self, config: PlayerConfig) -> None:
        self._config = config
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.no_progress_s, sock_read=config.no_progress_s),
            headers={"X-Session": config.trial_id, "Accept-Encoding": "identity"},
        )

    async def manifest(self) -> Manifest:
        """The video's manifest, checked."""
        return await self._described("manifest.json", Manifest, check_manifest)

    async def chunk(self, index: int, level: int, size_bytes: int, request_s: float, took: Callable[[bytes], None]) -> Download:
        """Download a chunk that is asked for at `request_s`, that is now; each piece goes to `took`."""
        return await self._media(f"{level}/{index}", size_bytes, request_s, took)

    async def tiled(self) -> TiledVideo:
        """The manifest of a tiled video, checked."""
        return await self._described("tiles.json", TiledVideo, check_tiled)

    async def tiles(self, segment: int, wanted: str, size_bytes: int, took: Callable[[bytes], None], again: Callable[[], None]) -> Download:
        """Download the tiles `wanted` (`13.2,14.2,0.0`: tile and level, in this order) of a segment; each piece goes to `took`.

        `again` is called before the first piece, also when all begins anew because a connection broke.
        """
        return await self._media(f"tiles/{segment}/{wanted}", size_bytes, now_s(), took, again)

    async def close(self) -> None:
        """Close the connection."""
        await self._http.close()

    async def _described(self, name: str, kind: type[Video], check: Callable[[Video], None]) -> Video:
        """A manifest of the video."""
        body, path = bytearray(), f"{self._config.video}/{name}"
        await self._get(path, now_s(), body.extend, body.clear)
        try:
            video = msgspec.json.decode(bytes(body), type=kind)
            check(video)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UserError) as error:
            raise PlaybackEnded("origin_error", f"{path}: {error}") from None
        except Refusal as refusal:
            raise PlaybackEnded("origin_error", f"{path}: {refusal.message}") from None
        return video

    async def _media(
        self, name: str, size_bytes: int, request_s: float, took: Callable[[bytes], None], again: Callable[[], None] = lambda: None
    ) -> Download:
        """What has to have `size_bytes`."""
        path = f"{self._config.video}/{name}"
        download = await self._get(path, request_s, took, again)
        if download.size_bytes != size_bytes:
            raise PlaybackEnded("origin_error", f"{path}: {download.size_bytes} bytes came, wanted the manifest's {size_bytes}")
        return download

    async def _get(self, path: str, request_s: float, took: Callable[[bytes], None], again: Callable[[], None]) -> Download:
        """Fetch `path`; each piece goes to `took`. A broken connection is tried again after a pause, a refusal or a silent one is not."""
        for left in range(self._config.retries, -1, -1):
            try:
                return await self._attempt(path, request_s, took, again)
            except aiohttp.SocketTimeoutError:
                raise PlaybackEnded("stalled_too_long", f"{path}: no byte for {self._config.no_progress_s} s") from None
            except (aiohttp.ClientError, OSError) as error:
                if not left:
                    raise PlaybackEnded("origin_unreachable", f"{path}: {type(error).__name__}: {error}") from None
            await asyncio.sleep(self._config.retry_s)
        raise ValueError(f"retries is {self._config.retries}, wanted at least 0")

    async def _attempt(self, path: str, request_s: float, took: Callable[[bytes], None], again: Callable[[], None]) -> Download:
        size_bytes = 0
        async with self._http.get(f"{self._config.origin_url}/{path}", allow_redirects=False) as response:
            first_byte_s = now_s()
            if response.status != 200:
                detail = (await response.content.read(200)).decode(errors="replace").strip()
                raise PlaybackEnded("origin_error", f"{path}: status {response.status}, {detail}")
            again()
            async for piece in response.content.iter_any():
                size_bytes += len(piece)
                took(piece)
        return Download(request_s, first_byte_s, now_s(), size_bytes)
