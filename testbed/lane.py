"""`LanePlayer`: plays one trial after another in one lane, whatever becomes of the origin and the players in it."""

import collections
import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from players.config import OriginLine, OriginReady, PlayerConfig
from testbed.child import LIGHT, Child
from testbed.clock import now_s
from testbed.controller import PORT, Controller
from testbed.errors import TestbedError
from testbed.link import NEVER_STARTED, LinkReport
from testbed.network import Lane
from testbed.prepared import PreparedInLanes
from testbed.recorder import Recorder
from testbed.records import Row
from testbed.records_trial import Drops
from testbed.trial import Trial
from testbed.units import bytes_per_s_from_bps, ms_from_s
from testbed.verdict import PathFacts

ORIGIN_PORT = 8000
ORIGIN_READY_S = 60.0
MOST_ORIGINS = 4
"""A lane whose origin died that often plays no further trial."""
SILENCE_MARGIN_S = 30.0
END_S = 5.0
"""From SIGTERM to SIGKILL: for a player's last row, and for its browser's end."""


class WaitingTrials:
    """Trials that wait for a lane. A lane that finds none waits while another one plays: what that one plays may have to be played again,
    and its origin may die meanwhile."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = collections.deque(trials)
        self._playing = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Those that no lane plays."""
        return len(self._trials)

    def take(self) -> Trial | None:
        """The next trial, which the caller has to put back or to say it `played`; None: there is none and none can come."""
        with self._changed:
            self._changed.wait_for(lambda: self._trials or not self._playing or self._closed)
            if self._closed or not self._trials:
                return None
            self._playing += 1
            return self._trials.popleft()

    def put_back(self, trial: Trial) -> None:
        """It was not played and is the next one again."""
        with self._changed:
            self._trials.appendleft(trial)
            self._end_one()

    def played(self, again: Trial | None) -> None:
        """One that was taken is over; what has to be played `again` joins the end."""
        with self._changed:
            if again:
                self._trials.append(again)
            self._end_one()

    def _end_one(self) -> None:
        self._playing -= 1
        self._changed.notify_all()

    def close(self) -> None:
        """Nobody gets a trial any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class LanePlayer:
    """Plays trials in one lane, in a thread of its own, while another one calls `watch` every now and then.

    What a player keeps for a while (a browser's profile) lies in `scratch`, a folder that goes with the run however that ends.
    """

    def __init__(self, lane: Lane, prepared: PreparedInLanes, controller: Controller, scratch: Path, pictures: Path | None = None) -> None:
        self._lane, self._controller, self._prepared, self._scratch, self._pictures = lane, controller, prepared, scratch, pictures
        self._origin: Child | None = None
        self._origins = 0
        self._next: Child | None = None
        self._player: Child | None = None
        self._silent_since_s, self._most_silence_s = 0.0, 0.0
        self._killed_for = ""
        self._recorder: Recorder | None = None
        self._waiting: WaitingTrials | None = None
        self._stopped = False
        self.error: Exception | None = None

    def launch(self) -> None:
        """Start the lane's origin server and its first player, which costs a quarter of a second of imports. Call `wait_ready` next."""
        self._launch_origin()
        self._next = self._new_player()

    def _launch_origin(self) -> None:
        start_socket = str(self._lane.link.start_path)
        self._origin = Child(self._lane.popen_server, "players.origin", env=LIGHT)
        self._origin.hand(self._prepared.origin_config(self._lane.server_ip, ORIGIN_PORT, start_socket))
        self._origins += 1

    def _new_player(self) -> Child:
        return Child(self._lane.popen_client, self._prepared.player, env={**LIGHT, "TMPDIR": str(self._scratch)})

    def wait_ready(self) -> None:
        """Block until the origin listens. Raises `TestbedError` when it ends instead."""
        assert self._origin
        line = self._origin.first_line(ORIGIN_READY_S)
        if not line or not isinstance(msgspec.json.decode(line, type=OriginLine), OriginReady):
            fault = self._origin.fault() or f"closed its output or was silent for {ORIGIN_READY_S:g} s"
            raise TestbedError(f"the origin of lane {self._lane.index} {fault} before it listened")
        threading.Thread(target=self._read_origin, args=(self._origin,), daemon=True).start()

    def _read_origin(self, origin: Child) -> None:
        for line in origin.lines():
            if self._recorder:
                self._recorder.request(line)

    def play_all(self, waiting: WaitingTrials, recorder: Recorder) -> None:
        """Play trials from `waiting` until none is left and no lane plays, or no origin can be kept alive here."""
        self._recorder, self._waiting = recorder, waiting
        try:
            while not self._stopped and (trial := waiting.take()):
                if not self._origin_serves(recorder):
                    waiting.put_back(trial)
                    return
                recorder.started(trial, self._lane.index)
                waiting.played(self._play(trial, recorder))
        except Exception as error:  # handed to the main thread, which raises it
            self.error = error

    def _origin_serves(self, recorder: Recorder) -> bool:
        """Whether the origin lives, if need be a new one: a dead one would eat all trials that wait, one after another."""
        assert self._origin
        if not (fault := self._origin.fault()):
            return True
        self._origin.kill()
        if self._origins >= MOST_ORIGINS:
            recorder.note(f"the origin of lane {self._lane.index} {fault}, for the {MOST_ORIGINS}th time: the lane plays no further trial")
            return False
        self._launch_origin()
        self.wait_ready()
        recorder.note(f"the origin of lane {self._lane.index} {fault} and was restarted")
        return True

    def _play(self, trial: Trial, recorder: Recorder) -> Trial | None:
        restarts, begin_s = self._controller.restarts, now_s()
        self._lane.link.load(trial.trace, trial.offset_s, trial.trial_id, uplink=trial.uplink, seed=trial.loss_seed)
        chunks, problem = self._playback(trial, recorder)
        report, end_s = self._lane.link.stop(), now_s()
        if self._stopped:
            return None
        recorder.extend([*report.windows, *report.lateness])
        facts = self._facts(report, chunks, problem, self._controller.restarts - restarts)
        return recorder.close(trial.trial_id, dataclasses.replace(facts, began_at_s=begin_s, ended_at_s=end_s))

    def _playback(self, trial: Trial, recorder: Recorder) -> tuple[int, str]:
        """Run the player; returns how many chunks it played and why it failed, if it did."""
        config = self._player_config(trial)
        player = self._ready_player()
        self._killed_for = ""
        self._most_silence_s = _most_silence_s(trial, config, self._prepared.largest_bytes)
        self._silent_since_s, self._player = now_s(), player
        picture = self._pictures and picture_of(self._pictures, self._lane.index)
        player.hand(self._prepared.handed(trial, config, recorder.kept_folder, picture))
        decoder, chunks = msgspec.json.Decoder(Row), 0
        for line in player.lines():
            self._silent_since_s = now_s()
            row = decoder.decode(line)
            recorder.row(row)
            chunks += isinstance(row, self._prepared.step)
        code, self._player = player.wait(), None
        recorder.log(player.said())
        return chunks, f"the player {self._killed_for or player.fault()}" if code else ""

    def _ready_player(self) -> Child:
        """The player that was started ahead, if it lives; else a new one."""
        player, self._next = self._next, None
        if player and player.fault():
            player.kill()
            player = None
        return player or self._new_player()

    def watch(self) -> None:
        """Kill a player that is stopped or says nothing for longer than its trial explains: its trial is invalid, the lane goes on."""
        player, silent_s = self._player, now_s() - self._silent_since_s
        if player is None or player.ended():
            return
        if silent_s > self._most_silence_s:
            self._killed_for = f"said nothing for {silent_s:.0f} s and was killed"
        else:
            self._killed_for = player.fault()
        if self._killed_for:
            player.kill()

    def _player_config(self, trial: Trial) -> PlayerConfig:
        origin_url = f"http://{self._lane.server_ip}:{ORIGIN_PORT}"
        return self._prepared.player_config(trial, origin_url, f"http://{self._lane.controller_ip}:{PORT}")

    def _facts(self, report: LinkReport, chunks: int, problem: str, restarts: int) -> PathFacts:
        # a trace that never started is the link's fault only if something came through the link nevertheless
        failures = tuple(reason for reason in report.reasons if chunks or reason != NEVER_STARTED)
        return PathFacts(
            lane=self._lane.index,
            congestion_control=self._prepared.experiment.cc,
            fidelity="fail" if failures else "pass",
            reasons=failures,
            fault=problem,
            lateness_ms_p50=ms_from_s(report.lateness_p50_s),
            lateness_ms_p99=ms_from_s(report.lateness_p99_s),
            lateness_ms_max=ms_from_s(report.lateness_max_s),
            late_packets=report.late_packets,
            late_share=report.late_share,
            stalled_ms=ms_from_s(report.stalled_s),
            max_stall_ms=ms_from_s(report.max_stall_s),
            rate_error_pct_100ms=report.rate_error_pct_100ms,
            uncounted_losses=report.uncounted_losses,
            packets_in=report.packets_in,
            packets_out=report.packets_out,
            drops=Drops(**report.drops),
            link_notes="; ".join(report.notes),
            trace_wraps=report.trace_wraps,
            controller_restarts=restarts,
        )

    def stop(self) -> None:
        """End the lane's processes, the player after its last row; callable twice."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.close()
        for child in (self._player, self._next, self._origin):
            if child:
                child.end(END_S)


def stop(players: Sequence[LanePlayer]) -> None:
    """`LanePlayer.stop` in all lanes at once."""
    with ThreadPoolExecutor(len(players), thread_name_prefix="stop") as pool:
        list(pool.map(LanePlayer.stop, players))


def picture_of(folder: Path, lane: int) -> Path:
    """Where the newest picture of a lane's browser lies."""
    return folder / f"lane{lane}.jpg"


def _most_silence_s(trial: Trial, config: PlayerConfig, largest_bytes: int) -> float:
    """Longest pause between a player's rows that can be right: the manifest or a chunk over the trace's worst stretch, at half its pace."""
    carry_s = trial.trace.duration_s + 2 * largest_bytes / bytes_per_s_from_bps(trial.trace.mean_rate_bps)
    return carry_s + config.no_progress_s + config.open_deadline_s + config.deadline_s + SILENCE_MARGIN_S
