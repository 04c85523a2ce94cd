"""The film that browsers decode, cut to a manifest's sizes: each segment ends in a `free` box that makes it exactly as long as it says.

So the simulator, the headless player and the browser fetch the very same number of bytes. A `free` box is what ISO/IEC 14496-12,
8.1.2 has for bytes that a reader skips. The MPD is ISO/IEC 23009-1's, profile `isoff-live`, one period, one video adaptation set.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from controllers.api import Manifest
from testbed.errors import UserError
from testbed.setup.encode import FACTS, INIT

FREE_HEADER_BYTES = 8
SEGMENTS_KEPT = 64
"""In memory, of those read last; a segment is some 100 kB at most."""


@dataclass(frozen=True)
class Film:
    """What `testbed.setup.encode` made in `folder`."""

    folder: Path
    codecs: str
    width: int
    height: int
    frames_per_s: int
    chunk_s: float

    @property
    def init(self) -> bytes:
        """The initialisation segment of all levels."""
        return _read(self.folder / INIT)

    def head(self, chunk: int, level: int, size_bytes: int) -> bytes:
        """What a chunk of `size_bytes` begins with: the segment, then the header of the `free` box that fills the rest."""
        segment = _read(self.folder / str(level) / f"{chunk}.m4s")
        return segment + (size_bytes - len(segment)).to_bytes(4, "big") + b"free"

    def check(self, video: Manifest, chunks: int | None = None) -> None:
        """Raise `UserError` unless each of the manifest's first `chunks` chunks (default: all) has room for its segment."""
        if video.chunk_s != self.chunk_s:
            raise UserError(f"video {video.name}: chunks last {video.chunk_s} s, wanted the film's {self.chunk_s} s")
        for chunk, sizes_bytes in enumerate(video.sizes_bytes[:chunks]):
            for level, size_bytes in enumerate(sizes_bytes):
                path = self.folder / str(level) / f"{chunk}.m4s"
                if not path.is_file():
                    raise UserError(f"video {video.name}: the film has no segment for chunk {chunk} at level {level} ({path})")
                if path.stat().st_size + FREE_HEADER_BYTES > size_bytes:
                    raise UserError(
                        f"video {video.name}: chunk {chunk} has {size_bytes} bytes at level {level}, "
                        f"wanted room for the film's segment of {path.stat().st_size}"
                    )


def load_film(folder: Path) -> Film:
    """Read what the film says of itself."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Film(folder, facts["codecs"], facts["width"], facts["height"], facts["frames_per_s"], float(facts["chunk_s"]))


@lru_cache(maxsize=SEGMENTS_KEPT)
def _read(path: Path) -> bytes:
    return path.read_bytes()


def mpd(video: Manifest, film: Film, chunks: int, session: str) -> bytes:
    """The first `chunks` chunks of a video as an MPD; each media request bears `session` in its query.

    The initialisation segment is one for all levels under one address, so that a browser fetches it once and never between two chunks.
    """
    session = quote(session, safe="")
    representations = "".join(
        f'<Representation id="{level}" bandwidth="{bitrate_bps}"/>' for level, bitrate_bps in enumerate(video.bitrates_bps)
    )
    media = quoteattr(f"$RepresentationID$/$Number$?session={session}")
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" '
        f'minBufferTime="PT{video.chunk_s:g}S" mediaPresentationDuration="PT{chunks * video.chunk_s:g}S">'
        f'<Period id="0" start="PT0S"><AdaptationSet id="0" contentType="video" mimeType="video/mp4" codecs={quoteattr(film.codecs)} '
        f'width="{film.width}" height="{film.height}" frameRate="{film.frames_per_s}" segmentAlignment="true" startWithSAP="1">'
        f'<SegmentTemplate timescale="1000" duration="{round(1000 * video.chunk_s)}" startNumber="0" '
        f'initialization="init.mp4" media={media}/>{representations}</AdaptationSet></Period></MPD>\n'
    ).encode()
