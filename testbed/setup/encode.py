"""Our own film for players that decode: real H.264 in DASH segments, encoded once by ffmpeg from a seeded source. Standard library only.

All levels have one small resolution, so that no player falls behind in decoding and calls that a stall; a white bar in the picture
grows with the level. Segments are smaller than any manifest's chunks: the origin pads each to the manifest's very size
(`players.encoded`), and one film serves every manifest. `python -m testbed.setup.encode` makes it, in the cache.
"""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from testbed.cache import cache_folder
from testbed.errors import TestbedError, UserError

WIDTH, HEIGHT, FRAMES_PER_S = 320, 180, 25
CHUNK_S = 4
CHUNKS = 49
BITRATES_KBPS = (80, 130, 180, 230, 280, 330)
"""Of the film's own levels, without padding."""
SCENE_S = (3, 9)
SEED = 20240804
FACTS = "film.json"
INIT = "init.mp4"
X264 = "scenecut=0:open-gop=0:stitchable=1"
"""`stitchable` keeps encoder settings out of the parameter sets. With one level of H.264 for all (`-level`) and no bitrate in the header
(`write_btrt`), one initialisation segment fits all levels of the ladder."""


def scenes(seed: int = SEED) -> list[str]:
    """Sources of ffmpeg (libavfilter), one after another, that fill the film. The same seed gives the same one."""
    rng, found, left_s = random.Random(seed), list[str](), CHUNKS * CHUNK_S
    size = f"size={WIDTH}x{HEIGHT}:rate={FRAMES_PER_S}"
    while left_s:
        number, length_s = 1 + int(rng.random() * 2**30), min(SCENE_S[0] + int(rng.random() * (SCENE_S[1] - SCENE_S[0] + 1)), left_s)
        kinds = (
            f"testsrc2={size}",
            f"gradients={size}:seed={number}:nb_colors=4:speed=0.02",
            f"life={size}:seed={number}:ratio=0.1:mold=20:life_color=#ffd166:death_color=#26547c:mold_color=#118ab2",
        )
        found.append(f"{kinds[int(rng.random() * len(kinds))]},trim=duration={length_s},setsar=1,format=yuv420p")
        left_s -= length_s
    return found


def filters() -> str:
    """The filter graph: the scenes joined, copied for each level, and the level's bar drawn."""
    levels, parts = len(BITRATES_KBPS), scenes()
    lines = [f"{scene}[s{i}]" for i, scene in enumerate(parts)]
    lines.append("".join(f"[s{i}]" for i in range(len(parts))) + f"concat=n={len(parts)},split={levels}" + _pads("c", levels))
    for level in range(levels):
        lines.append(f"[c{level}]drawbox=x=0:y=ih-10:w=iw*{level + 1}/{levels}:h=10:color=white:t=fill[v{level}]")
    return ";".join(lines)


def _pads(name: str, count: int) -> str:
    return "".join(f"[{name}{i}]" for i in range(count))


def command(folder: Path, ffmpeg: str = "ffmpeg") -> list[str]:
    """What encodes the film into `folder`, which must hold a folder `v0`, `v1`, ... for each level."""
    frames = CHUNK_S * FRAMES_PER_S
    shared = [
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-profile:v",
        "main",
        "-level:v",
        "3.0",
        "-pix_fmt",
        "yuv420p",
        "-bf",
        "0",
        "-threads",
        "2",
    ]
    shared += ["-r", str(FRAMES_PER_S), "-g", str(frames), "-keyint_min", str(frames), "-sc_threshold", "0", "-x264-params", X264]
    rates: list[str] = []
    for level, kbps in enumerate(BITRATES_KBPS):
        rates += ["-map", f"[v{level}]", f"-b:v:{level}", f"{kbps}k", f"-maxrate:v:{level}", f"{kbps * 5 // 4}k"]
        rates += [f"-bufsize:v:{level}", f"{kbps * 2}k"]
    dash = ["-f", "dash", "-seg_duration", str(CHUNK_S), "-use_template", "1", "-use_timeline", "0", "-adaptation_sets", "id=0,streams=v"]
    dash += ["-format_options", "write_btrt=0"]
    dash += ["-init_seg_name", "v$RepresentationID$/init.mp4", "-media_seg_name", "v$RepresentationID$/$Number$.m4s"]
    quiet = [ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "warning", "-stats", "-fflags", "+bitexact"]
    return [*quiet, "-filter_complex", filters(), *rates, *shared, "-flags:v", "+bitexact", *dash, str(folder / "film.mpd")]


def film_folder() -> Path:
    """Where the film belongs that the present settings make; another setting gives it another name."""
    digest = hashlib.sha256("\0".join(command(Path())).encode())
    return cache_folder() / f"film-{digest.hexdigest()[:12]}"


def made() -> bool:
    """Whether the film is there."""
    return (film_folder() / FACTS).is_file()


def make() -> Path:
    """Encode the film, unless it is there; returns its folder. Safe to interrupt: it appears whole or not at all."""
    folder = film_folder()
    if made():
        return folder
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg is not installed, wanted it to encode the film for the browser: scripts/setup browser")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".film-") as scratch:
        levels = [Path(scratch, f"v{level}") for level in range(len(BITRATES_KBPS))]
        for path in levels:
            path.mkdir()
        code = subprocess.run(command(Path(scratch)), check=False).returncode
        if code:
            raise TestbedError(f"ffmpeg ended with exit code {code} while it encoded the film")
        fresh = Path(scratch, "whole")
        _collect(levels, Path(scratch, "film.mpd"), fresh)
        fresh.chmod(0o755)
        fresh.rename(folder)
    return folder


def _collect(levels: Sequence[Path], mpd: Path, fresh: Path) -> None:
    """Move what ffmpeg made into the film's own order: `init.mp4`, `LEVEL/CHUNK.m4s` counted from 0, and `film.json`."""
    inits = {(path / "init.mp4").read_bytes() for path in levels}
    if len(inits) != 1:
        raise TestbedError(f"ffmpeg made {len(inits)} different initialisation segments, wanted one that fits all levels")
    codecs = set(re.findall(r'codecs="([^"]+)"', mpd.read_text(encoding="utf-8")))
    if len(codecs) != 1:
        raise TestbedError(f"ffmpeg names the codecs {sorted(codecs)}, wanted one for all levels")
    fresh.mkdir()
    (fresh / INIT).write_bytes(inits.pop())
    for level, path in enumerate(levels):
        found = sorted(path.glob("*.m4s"), key=lambda segment: int(segment.stem))
        if [int(segment.stem) for segment in found] != list(range(1, CHUNKS + 1)):
            raise TestbedError(f"ffmpeg made {len(found)} segments of level {level}, wanted {CHUNKS}")
        (fresh / str(level)).mkdir()
        for chunk, segment in enumerate(found):
            segment.rename(fresh / str(level) / f"{chunk}.m4s")
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    facts = {"codecs": codecs.pop(), "width": WIDTH, "height": HEIGHT, "frames_per_s": FRAMES_PER_S, "chunk_s": CHUNK_S, "made_by": version}
    (fresh / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def main() -> int:
    """Make the film; exit code 1 and a sentence when that fails."""
    try:
        make()
    except (UserError, TestbedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
