"""Trials on real sockets in real time: lanes that play one trial after another, and the controller that all of them ask."""

import collections
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from players.config import OriginConfig, OriginLine, OriginReady, PlayerConfig
from testbed import owned
from testbed.abr import PathFacts
from testbed.controller import PORT, Controller
from testbed.errors import TestbedError
from testbed.link import LinkReport, PathSpec
from testbed.network import Lane, Network
from testbed.prepared import Prepared
from testbed.recorder import Recorder
from testbed.records import Row
from testbed.trial import Trial, lanes
from testbed.units import ms_from_s, s_from_ms
from testbed.user import invoking_user

ORIGIN_PORT = 8000
WATCH_EVERY_S = 0.1


@contextlib.contextmanager
def emulated(prepared: Prepared) -> Iterator["Emulation"]:
    """Bring up network, origins and controller; undo all of it in any case. Raises `UserError` when this host or user can't."""
    owned.require_root()
    experiment, trials = prepared.experiment, prepared.trials
    path = PathSpec(rtt_s=s_from_ms(experiment.rtt_ms), queue_bytes=experiment.queue, back_end=experiment.link)
    count = lanes(experiment, len(prepared.policies), len(trials))
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(owned.run_lock())
        network = stack.enter_context(Network(count, path, experiment.cc, run))
        controller = Controller(network, list(prepared.references.values()), invoking_user(), _shared_folder(run))
        stack.callback(controller.stop)
        controller.launch()
        players = [LanePlayer(lane, prepared, controller) for lane in network.lanes]
        for player in players:
            stack.callback(player.stop)
            player.launch()
        for player in players:
            player.wait_ready()
        controller.wait_ready()
        yield Emulation(trials, players, controller, dict(network.facts))


def _shared_folder(run: owned.Run) -> Path:
    """A folder for the controller's socket, in the run's own, that belongs to the user."""
    folder = run.folder / "controller"
    folder.mkdir(mode=0o755)
    user = invoking_user()
    if user:
        os.chown(folder, *user)
    return folder


class Emulation:
    """A network that is up, with the trials to run on it."""

    def __init__(self, trials: Sequence[Trial], players: Sequence["LanePlayer"], controller: Controller, facts: dict[str, Any]) -> None:
        self._trials, self._players, self._controller = trials, players, controller
        self.facts = facts

    def run(self, recorder: Recorder) -> None:
        """Play all trials; those of one group side by side. Raises what a lane raised."""
        waiting = collections.deque(self._trials)
        threads = [threading.Thread(target=player.play_all, args=(waiting, recorder), daemon=True) for player in self._players]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for player in self._players:
                if player.error:
                    raise player.error
            if note := self._controller.watch():
                recorder.note(note)
            for thread in threads:
                thread.join(WATCH_EVERY_S / len(threads))
        for player in self._players:
            if player.error:
                raise player.error


class LanePlayer:
    """Plays trials in one lane, in a thread of its own."""

    def __init__(self, lane: Lane, prepared: Prepared, controller: Controller) -> None:
        self._lane, self._controller = lane, controller
        self._experiment, self._video, self._references = prepared.experiment, prepared.video, prepared.references
        self._origin: subprocess.Popen[bytes] | None = None
        self._player: subprocess.Popen[bytes] | None = None
        self._next: _Player | None = None
        self._recorder: Recorder | None = None
        self._stopped = False
        self.error: Exception | None = None

    def launch(self) -> None:
        """Start the lane's origin server and its first player, which costs most of a second of imports. Call `wait_ready` next."""
        start_socket = str(self._lane.link.start_path)
        config = OriginConfig(host=self._lane.server_ip, port=ORIGIN_PORT, videos=(self._video,), start_socket=start_socket)
        self._origin = self._lane.popen_server([sys.executable, "-m", "players.origin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._origin.stdin
        with self._origin.stdin as stdin:
            stdin.write(msgspec.json.encode(config))
        self._next = _Player(self._lane)

    def wait_ready(self) -> None:
        """Block until the origin listens. Raises `TestbedError` when it ends instead."""
        assert self._origin and self._origin.stdout
        line = self._origin.stdout.readline()
        if not line or not isinstance(msgspec.json.decode(line, type=OriginLine), OriginReady):
            raise TestbedError(f"the origin of lane {self._lane.index} ended with code {self._origin.wait()} before it listened")
        threading.Thread(target=self._read_origin, daemon=True).start()

    def _read_origin(self) -> None:
        assert self._origin and self._origin.stdout
        for line in self._origin.stdout:
            if self._recorder:
                self._recorder.request(line)

    def play_all(self, waiting: "collections.deque[Trial]", recorder: Recorder) -> None:
        """Play trials from `waiting` until none is left."""
        self._recorder = recorder
        try:
            while not self._stopped:
                try:
                    trial = waiting.popleft()
                except IndexError:
                    return
                recorder.started(trial, self._lane.index)
                self._play(trial, recorder)
        except Exception as error:  # handed to the main thread, which raises it
            self.error = error

    def _play(self, trial: Trial, recorder: Recorder) -> None:
        restarts = self._controller.restarts
        self._lane.link.load(trial.trace, trial.offset_s, trial.trial_id)
        problem = self._playback(trial, recorder)
        report = self._lane.link.stop()
        if self._stopped:
            return
        recorder.extend([*report.windows, *report.lateness])
        recorder.close(trial.trial_id, self._facts(report, problem, self._controller.restarts - restarts))

    def _playback(self, trial: Trial, recorder: Recorder) -> str:
        """Run the player; returns why it failed, or nothing."""
        player, self._next = self._next or _Player(self._lane), None
        self._player = player.process
        for row in player.play(self._player_config(trial)):
            recorder.row(row)
        code, said = player.end()
        recorder.log(said)
        return f"the player ended with code {code}: {said.strip()[-500:]}" if code else ""

    def _player_config(self, trial: Trial) -> PlayerConfig:
        return PlayerConfig(
            trial_id=trial.trial_id,
            origin_url=f"http://{self._lane.server_ip}:{ORIGIN_PORT}",
            controller_url=f"http://{self._lane.controller_ip}:{PORT}",
            policy=self._references[trial.policy],
            seed=trial.seed,
            video=self._video.name,
            chunks=self._experiment.chunks,
            rtt_s=s_from_ms(self._experiment.rtt_ms),
            deadline_s=s_from_ms(self._experiment.deadline_ms),
        )

    def _facts(self, report: LinkReport, problem: str, restarts: int) -> PathFacts:
        return PathFacts(
            lane=self._lane.index,
            congestion_control=self._experiment.cc,
            fidelity=report.verdict,
            reasons=(*report.reasons, *([problem] if problem else [])),
            lateness_ms_p99=ms_from_s(report.lateness_p99_s),
            rate_error_pct_100ms=report.rate_error_pct_100ms,
            uncounted_losses=report.uncounted_losses,
            trace_wraps=report.trace_wraps,
            controller_restarts=restarts,
        )

    def stop(self) -> None:
        """End the lane's processes; callable twice."""
        self._stopped = True
        for process in (self._player, self._next.process if self._next else None, self._origin):
            if process and process.poll() is None:
                process.kill()
                process.wait()


class _Player:
    """A player's process, which waits for its config."""

    def __init__(self, lane: Lane) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        self.process = lane.popen_client(
            [sys.executable, "-m", "players.headless"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    def play(self, config: PlayerConfig) -> Iterator[Row]:
        """Let it play; its rows as they come."""
        assert self.process.stdin and self.process.stdout
        with self.process.stdin as stdin:
            stdin.write(msgspec.json.encode(config))
        decoder = msgspec.json.Decoder(Row)
        for line in self.process.stdout:
            yield decoder.decode(line)

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said on its standard error."""
        code = self.process.wait()
        with self._errors as errors:
            errors.seek(0)
            return code, errors.read().decode(errors="replace")
