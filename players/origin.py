"""The origin server of one lane: exactly the manifest's bytes, one log line a request, and nothing else. `python -m players.origin`.

| request | answer |
| --- | --- |
| `GET /{video}/manifest.json` | the manifest |
| `GET /{video}/{level}/{chunk}` | chunk `chunk` (from 0) at level `level` (from 0): `sizes_bytes[chunk][level]` bytes |
| `GET /{video}/tiles.json` | the manifest of a tiled video |
| `GET /{video}/tiles/{segment}/{tile}.{level},...` | these tiles of the segment, one after the other in this order |
| `GET /{video}/manifest.mpd?chunks=N` | with a film: its first N chunks as an MPD |
| `GET /{video}/init.mp4` | with a film: the initialisation segment of all levels, the one answer that may be cached |
| any other path | 404 and a sentence |
| any other method | 405 and a sentence |

A client names its session in the header `X-Session` or the query `session`. On a session's first media request the origin tells the
link to `start` its trace, before the first byte leaves. Range requests are not supported: `Accept-Ranges: none`, the whole chunk is sent.
"""

import asyncio
import os
import re
import signal
import socket
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from controllers.api import Manifest
from controllers.config import read_config
from players.config import OriginConfig, OriginLine, OriginReady, OriginRequest
from players.encoded import load_film, mpd
from players.media import VIDEO_NAME
from players.tiles import TiledVideo
from testbed.clock import now_s
from testbed.errors import UserError

MEDIA = "video/iso.segment"
JSON = "application/json"
PATTERN = bytes(range(256)) * 256
"""What every chunk repeats, after what the film gives it; one write hands over at most this."""
HEADERS = {"Cache-Control": "no-store", "Accept-Ranges": "none", "Access-Control-Allow-Origin": "*", "Timing-Allow-Origin": "*"}
MEDIA_PATH = re.compile(r"/([A-Za-z0-9._-]+)/(0|[1-9][0-9]{0,5})/(0|[1-9][0-9]{0,8})", re.ASCII)
TILES_PATH = re.compile(r"/([A-Za-z0-9._-]+)/tiles/(0|[1-9][0-9]{0,5})/([0-9.,]{1,4000})", re.ASCII)
TILED_PATH = re.compile(r"/([A-Za-z0-9._-]+)/tiles\.json", re.ASCII)
TILE = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]?)", re.ASCII)
FILE_PATH = re.compile(r"/([A-Za-z0-9._-]+)/(manifest\.json|manifest\.mpd|init\.mp4)", re.ASCII)
CACHED = {"Cache-Control": "max-age=86400"}
MAX_SESSION_CHARS = 128
REMEMBERED_SESSIONS = 10_000
KEEP_ALIVE_S = 3600.0


class Origin:
    """Answers requests for `config.videos`; each answer is logged through `emit`."""

    def __init__(self, config: OriginConfig) -> None:
        self._videos = {_checked(video).name: video for video in config.videos}
        self._tiled = {video.name: video for video in config.tiled}
        self._film = load_film(Path(config.film)) if config.film else None
        if self._film:
            for video in config.videos:
                self._film.check(video, config.chunks)
        self._chunks = config.chunks if self._film else None
        self._start_socket = config.start_socket
        self._started: OrderedDict[str, None] = OrderedDict()  # sessions whose trace runs, oldest first
        self._datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer and log one request."""
        at_s = now_s()
        session = request.headers.get("X-Session") or request.query.get("session", "")
        started = False
        try:
            body = self._body(request, session)
            started = body.media and self._start(session)
        except _Refused as refused:
            response: web.StreamResponse = web.Response(status=refused.status, text=refused.sentence + "\n", headers=refused.headers)
            sent_bytes, complete = len(refused.sentence) + 1, True
        else:
            response, sent_bytes, complete = await _send(request, body)
        emit(
            OriginRequest(
                at_s=at_s,
                end_s=now_s(),
                path=request.rel_url.raw_path,
                status=response.status,
                bytes_sent=sent_bytes,
                complete=complete,
                session=session[:MAX_SESSION_CHARS],
                started=started,
            )
        )
        return response

    def _body(self, request: web.Request, session: str) -> "_Body":
        """What to send; `_Refused` when the manifest has no such thing."""
        if request.method != "GET":
            raise _Refused(405, f"method {request.method} is not supported, wanted GET", {"Allow": "GET"})
        if len(session) > MAX_SESSION_CHARS:
            raise _Refused(400, f"the session id has {len(session)} characters, wanted at most {MAX_SESSION_CHARS}")
        path = request.rel_url.raw_path
        if match := TILED_PATH.fullmatch(path):
            return _Body(msgspec.json.encode(self._tiled_video(match[1])), JSON)
        if match := TILES_PATH.fullmatch(path):
            return _Body(b"", MEDIA, _tiles_bytes(self._tiled_video(match[1]), int(match[2]), match[3]))
        if match := FILE_PATH.fullmatch(path):
            return self._file(self._video(match[1]), match[2], request.query.get("chunks", ""), session)
        match = MEDIA_PATH.fullmatch(path)
        if not match:
            raise _Refused(404, f"no such path {path[:200]!r}, wanted /VIDEO/manifest.json or /VIDEO/LEVEL/CHUNK")
        video, level, chunk = self._video(match[1]), int(match[2]), int(match[3])
        if level >= video.levels:
            raise _Refused(404, f"video {video.name} has no level {level}, wanted 0 to {video.levels - 1}")
        if chunk >= (most := self._most(video)):
            raise _Refused(404, f"video {video.name} has no chunk {chunk}, wanted 0 to {most - 1}")
        size_bytes = video.sizes_bytes[chunk][level]
        return _Body(self._film.head(chunk, level, size_bytes) if self._film else b"", MEDIA, size_bytes)

    def _file(self, video: Manifest, name: str, chunks: str, session: str) -> "_Body":
        """One of the two manifests, or the initialisation segment."""
        if name == "manifest.json":
            return _Body(msgspec.json.encode(video), JSON)
        if not self._film:
            raise _Refused(404, f"no {name} of video {video.name}: this origin serves no film")
        if name == "init.mp4":
            return _Body(self._film.init, "video/mp4", headers=CACHED)
        most = self._most(video)
        if not re.fullmatch(r"[1-9][0-9]{0,4}", chunks, re.ASCII) or int(chunks) > most:
            raise _Refused(400, f"chunks is {chunks[:20]!r}, wanted 1 to {most}")
        return _Body(mpd(video, self._film, int(chunks), session), "application/dash+xml")

    def _most(self, video: Manifest) -> int:
        """Chunks that are served."""
        return len(video.sizes_bytes[: self._chunks])

    def _video(self, name: str) -> Manifest:
        if name not in self._videos:
            raise _Refused(404, f"no video {name[:100]!r}, wanted one of {', '.join(sorted(self._videos))}")
        return self._videos[name]

    def _tiled_video(self, name: str) -> TiledVideo:
        if name not in self._tiled:
            raise _Refused(404, f"no tiled video {name[:100]!r}, wanted one of {', '.join(sorted(self._tiled)) or 'none'}")
        return self._tiled[name]

    def _start(self, session: str) -> bool:
        """Tell the link to start the trace if this is the session's first media request; `_Refused` when the link can't be told."""
        if not session or session in self._started:
            return False
        if self._start_socket is not None:
            try:
                self._datagram.sendto(b"start", self._start_socket)
            except OSError as error:
                raise _Refused(503, f"the link at {self._start_socket} could not be told to start: {_reason(error)}") from None
        self._started[session] = None
        if len(self._started) > REMEMBERED_SESSIONS:
            self._started.popitem(last=False)
        return self._start_socket is not None


class _Body:
    """`head`, then as much of the pattern as makes it `size_bytes`, which is the head's own size by default."""

    def __init__(self, head: bytes, content_type: str, size_bytes: int | None = None, headers: dict[str, str] | None = None) -> None:
        self.media = content_type == MEDIA
        self.content_type, self.headers = content_type, HEADERS | (headers or {})
        self.size_bytes = len(head) if size_bytes is None else size_bytes
        self._head = memoryview(head)

    def piece(self, sent_bytes: int) -> memoryview:
        """The next bytes after `sent_bytes`."""
        if sent_bytes < len(self._head):
            return self._head[sent_bytes : sent_bytes + len(PATTERN)]
        start = (sent_bytes - len(self._head)) % len(PATTERN)
        return memoryview(PATTERN)[start : start + self.size_bytes - sent_bytes]


class _Refused(Exception):
    """The request asks for what is not there."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, HEADERS | (headers or {})


def _tiles_bytes(video: TiledVideo, segment: int, wanted: str) -> int:
    """How much these tiles of a segment are, together; `_Refused` when the manifest has no such tile, or one is named twice."""
    if segment >= video.segments:
        raise _Refused(404, f"video {video.name} has no segment {segment}, wanted 0 to {video.segments - 1}")
    found: dict[int, int] = {}
    for text in wanted.split(","):
        match = TILE.fullmatch(text)
        tile, level = (int(match[1]), int(match[2])) if match else (video.tiles, 0)
        if tile >= video.tiles or level >= video.levels or tile in found:
            most = f"tiles 0 to {video.tiles - 1}, each once, at levels 0 to {video.levels - 1}"
            raise _Refused(404, f"video {video.name} has no tile {text[:20]!r}, wanted {most}")
        found[tile] = video.sizes_bytes[segment][tile][level]
    return sum(found.values())


async def _send(request: web.Request, body: _Body) -> tuple[web.StreamResponse, int, bool]:
    """Stream `body`; returns the response, the bytes handed to the kernel, and whether these are all."""
    response = web.StreamResponse(headers=CIMultiDict(body.headers))
    response.content_length = body.size_bytes
    response.content_type = body.content_type
    sent_bytes = 0
    try:
        await response.prepare(request)
        while sent_bytes < body.size_bytes:
            piece = body.piece(sent_bytes)
            await response.write(piece)
            sent_bytes += len(piece)
        await response.write_eof()
    except ConnectionError:
        return response, sent_bytes, False
    return response, sent_bytes, True


def _checked(video: Manifest) -> Manifest:
    """The manifest, if its name can stand in a path and its table is whole."""
    if not VIDEO_NAME.fullmatch(video.name):
        raise UserError(f"video name {video.name!r}, wanted letters, digits, '.', '_' and '-' only")
    for chunk, sizes_bytes in enumerate(video.sizes_bytes):
        if len(sizes_bytes) != video.levels or min(sizes_bytes, default=0) < 1:
            raise UserError(f"video {video.name}: chunk {chunk} has sizes {sizes_bytes}, wanted {video.levels} of at least 1 byte")
    return video


def _reason(error: OSError) -> str:
    """The kernel's words (asyncio puts its own sentence into `strerror`)."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def application(config: OriginConfig) -> web.Application:
    """The server as an aiohttp application."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", Origin(config).handle)
    return app


def emit(line: OriginLine) -> None:
    """Write one JSON line to stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def serve(config: OriginConfig) -> None:
    """Serve until SIGTERM or SIGINT. A port in use is a `UserError`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(config), access_log=None, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            raise UserError(f"origin: can't listen on {config.host} port {config.port}: {_reason(error)}") from None
        emit(OriginReady(host=config.host, port=runner.addresses[0][1], pid=os.getpid()))
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Read the config, serve; a config or port that can't be used is one sentence and exit code 2."""
    try:
        asyncio.run(serve(read_config(OriginConfig, sys.argv[1:])))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
