"""A lane that is stopped: its player is told, says its last row, and what it keeps lies where the run's end removes it."""

import collections
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec

from players.config import PlayerConfig
from testbed.lane import LanePlayer, stop
from testbed.records import PlaybackEndRow, StallRow
from traces.trace import RateTrace

PLAYER = """
import asyncio
import tempfile

from players.config import PlayerConfig
from players.process import run
from testbed.records import StallRow
from testbed.twin import ended_early


async def play(config, emit):
    with tempfile.TemporaryDirectory() as kept:
        try:
            emit(StallRow(trial_id=kept, start_s=0.0, end_s=1.0))
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            emit(ended_early(config.trial_id, "interrupted"))


run(PlayerConfig, play)
"""


class Heard:
    """A recorder that keeps rows, and lets others wait for the first."""

    def __init__(self) -> None:
        self.rows: list[msgspec.Struct] = []
        self.first = threading.Event()

    def row(self, row: msgspec.Struct) -> None:
        self.rows.append(row)
        self.first.set()

    def started(self, *_: object) -> None:
        pass

    log = started
    kept_folder = started


class OneLane(LanePlayer):
    """Its origin is of no interest."""

    def _origin_serves(self, recorder: object) -> bool:
        return True


def test_a_player_that_is_stopped_says_its_last_row_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "patient_player.py").write_text(PLAYER)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def popen(argv: list[str], env: dict[str, str], **keywords: object) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(argv, env={**env, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}, **keywords)

    config = PlayerConfig(trial_id="t0", origin_url="http://o", controller_url="http://c", policy="bba", seed=1, video="v", chunks=4)
    link = SimpleNamespace(load=lambda *_, **__: None, stop=lambda: None)
    lane = SimpleNamespace(index=0, link=link, popen_client=popen, server_ip="", controller_ip="")
    prepared = SimpleNamespace(
        player="patient_player", player_config=lambda *_: config, largest_bytes=1, step=StallRow, handed=lambda _, config, *__: config
    )
    trace = RateTrace("steady", (0.0, 60.0), (1e6,))
    trial = SimpleNamespace(trial_id="t0", trace=trace, uplink=None, offset_s=0.0, loss_seed=1)
    player, heard = OneLane(lane, prepared, SimpleNamespace(restarts=0), scratch), Heard()
    playing = threading.Thread(target=player.play_all, args=(collections.deque([trial]), heard))
    playing.start()
    assert heard.first.wait(60)
    stop([player])
    playing.join()
    assert player.error is None
    first, last = heard.rows
    assert isinstance(first, StallRow) and Path(first.trial_id).parent == scratch
    assert isinstance(last, PlaybackEndRow) and last.end_reason == "interrupted"
    assert list(scratch.iterdir()) == []
