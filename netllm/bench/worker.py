"""A worker of the cost comparison: answers requests, one JSON object a line, and measures CPU time, wall time and memory.

Nothing but the standard library: NetLLM's environment runs it, too.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from controllers.api import AbrObservation, AbrSession, Chunk, Manifest
from testbed.clock import now_s
from testbed.errors import TestbedError, UserError

REQUESTS = ("variants", "export", "load", "decide", "train")
_BYTES_PER_KIB = 1024


@dataclass(frozen=True)
class Used:
    """What a piece of work took."""

    cpu_s: float
    """Of all threads of the process, user and system."""
    wall_s: float

    def over(self, count: float) -> dict[str, float]:
        """Of each of `count` equal parts."""
        return {"cpu_s": self.cpu_s / count, "wall_s": self.wall_s / count}


class Contender(Protocol):
    """What is measured."""

    def load(self, llm: str, dtype: str, rank: int, sessions: str, **more: Any) -> dict[str, Any]:
        """Make the model with LoRA of that rank; facts on it. `sessions` is a file that `recorded` reads."""
        ...

    def decide(self, session: int, threads: int) -> dict[str, Any]:
        """Decide every chunk of a recorded session: cost of each decision, in order."""
        ...

    def train(self, first: int, threads: int) -> dict[str, Any]:
        """Learn from recorded sessions, beginning with `first`: cost a decision learnt from. The first time it warms up before."""
        ...


def measured(work: Callable[[], object]) -> Used:
    """Do it."""
    begin_s, begin_cpu_s = now_s(), cpu_s()
    work()
    return Used(cpu_s() - begin_cpu_s, now_s() - begin_s)


def cpu_s() -> float:
    """CPU time of this process so far, seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_rss_bytes() -> int:
    """The most memory that this process has held. Not `ru_maxrss`: that is inherited from the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * _BYTES_PER_KIB


def columns(used: Sequence[Used]) -> dict[str, list[float]]:
    """Of several pieces of work, as it is answered."""
    return {"cpu_s": [each.cpu_s for each in used], "wall_s": [each.wall_s for each in used]}


def probe(width: int, tokens: int = 16) -> list[list[float]]:
    """Embeddings (tokens, width) that both backbones read to show that they have the same weights."""
    return [[0.1 * ((7919 * (width * token + i)) % 211 / 105 - 1) for i in range(width)] for token in range(tokens)]


def recorded(path: str | Path) -> tuple[AbrSession, list[tuple[Chunk, ...]]]:
    """What all sessions have in common, and the chunks of each."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    video = found["video"]
    video = Manifest(video["name"], video["chunk_s"], tuple(video["bitrates_bps"]), tuple(map(tuple, video["sizes_bytes"])))
    sessions = [tuple(Chunk(**chunk) for chunk in chunks) for chunks in found["sessions"]]
    return AbrSession("bench", video, len(sessions[0])), sessions


def observations(session: AbrSession, chunks: Sequence[Chunk]) -> list[AbrObservation]:
    """What was known before each chunk but the first."""
    return [
        AbrObservation(session, tuple(chunks[:count]), chunks[count - 1].buffer_s - chunks[count - 1].waited_s)
        for count in range(1, len(chunks))
    ]


def serve(contender: object) -> None:
    """Answer until stdin ends. What libraries print goes to stderr; an error is answered, and ends it."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = answer(contender, request)
            except Exception as error:  # whatever it is, the starter says it
                _reply(replies, {"error": " ".join(f"{type(error).__name__}: {error}".split()), "user": isinstance(error, UserError)})
                raise
            _reply(replies, found)


def answer(contender: object, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    what = request.pop("do")
    if what not in REQUESTS or not hasattr(contender, what):
        raise TestbedError(f"a worker was asked to {what!r}, wanted one of {', '.join(REQUESTS)}")
    found: dict[str, Any] = getattr(contender, what)(**request)
    return found | {"peak_rss_bytes": peak_rss_bytes()}


def _reply(replies: TextIO, found: dict[str, Any]) -> None:
    replies.write(json.dumps(found) + "\n")
    replies.flush()
