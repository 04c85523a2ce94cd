"""A lane that is stopped: its player is told, says its last row, and what it keeps lies where the run's end removes it."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec

from players.config import PlayerConfig
from testbed.lane import LanePlayer, WaitingTrials, stop
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
    playing = threading.Thread(target=player.play_all, args=(WaitingTrials([trial]), heard))
    playing.start()
    assert heard.first.wait(60)
    stop([player])
    playing.join()
    assert player.error is None
    first, last = heard.rows
    assert isinstance(first, StallRow) and Path(first.trial_id).parent == scratch
    assert isinstance(last, PlaybackEndRow) and last.end_reason == "interrupted"
    assert list(scratch.iterdir()) == []


class Scripted(LanePlayer):
    """Plays by a function, on an origin that serves so often."""

    def __init__(self, index: int, serves: int, play: Callable[[str], str | None]) -> None:
        super().__init__(SimpleNamespace(index=index), SimpleNamespace(), SimpleNamespace(restarts=0), Path())
        self.serves, self.play, self.trials = serves, play, []

    def _origin_serves(self, recorder: object) -> bool:
        self.serves -= 1
        return self.serves >= 0

    def _play(self, trial: str, recorder: object) -> str | None:
        self.trials.append(trial)
        return self.play(trial)


def test_a_lane_that_has_nothing_to_play_waits_for_what_another_one_leaves() -> None:
    """The first lane plays the only trial, which has to be played again, and then its origin is given up."""
    waiting, idle = WaitingTrials(["t0"]), threading.Event()
    first = Scripted(0, 1, lambda trial: "t0r1" if idle.wait(9) else None)
    second = Scripted(1, 9, lambda trial: None)
    threads = [threading.Thread(target=lane.play_all, args=(waiting, Heard()), daemon=True) for lane in (first, second)]
    threads[0].start()
    while not first.trials:
        time.sleep(0.001)
    threads[1].start()
    threads[1].join(0.1)
    assert threads[1].is_alive(), "it waits"
    idle.set()
    for thread in threads:
        thread.join(9)
    assert (first.trials, second.trials, len(waiting)) == (["t0"], ["t0r1"], 0)


def test_a_trial_that_no_lane_can_play_is_left_and_no_lane_waits_for_ever() -> None:
    waiting = WaitingTrials(["t0", "t1", "t2"])
    lanes = [Scripted(0, 1, lambda trial: None), Scripted(1, 0, lambda trial: None)]
    threads = [threading.Thread(target=lane.play_all, args=(waiting, Heard()), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(9)
    assert not any(thread.is_alive() for thread in threads)
    assert len(waiting) == 2


def test_a_waiting_lane_that_is_stopped_ends() -> None:
    waiting = WaitingTrials(["t0"])
    assert waiting.take() == "t0"  # by some lane that never ends it
    lane = Scripted(0, 1, lambda trial: None)
    thread = threading.Thread(target=lane.play_all, args=(waiting, Heard()), daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    stop([lane])
    thread.join(9)
    assert not thread.is_alive() and not lane.trials
