"""Trials on real sockets in real time: lanes that play one trial after another, and the controller that all of them ask."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from players.dash.stock import STOCK
from testbed.controller import Controller
from testbed.errors import TestbedError
from testbed.host import browser_version
from testbed.lane import END_S, LanePlayer, WaitingTrials, stop
from testbed.link import PathSpec, check_size
from testbed.netns import owned
from testbed.network import Network
from testbed.prepared import PreparedInLanes
from testbed.pressure import Sampler
from testbed.recorder import Recorder
from testbed.setup import dashjs
from testbed.spec import Experiment
from testbed.trial import Trial, lanes
from testbed.units import s_from_ms
from testbed.user import invoking_user

WATCH_EVERY_S = 0.1


@contextlib.contextmanager
def emulated(prepared: PreparedInLanes) -> Iterator["Emulation"]:
    """Bring up network, origins and controller; undo all of it in any case. Raises `UserError` when this host or user can't."""
    experiment, trials = prepared.experiment, prepared.trials
    for trace in {trace.sha256: trace for trial in trials for trace in (trial.trace, trial.uplink) if trace}.values():
        check_size(trace)
    owned.require_root()
    path = PathSpec(
        rtt_s=s_from_ms(experiment.rtt_ms),
        queue_bytes=experiment.queue,
        back_end=experiment.link,
        queue_packets=experiment.queue_packets,
        discipline=experiment.aqm,
    )
    count = lanes(experiment, len(prepared.policies), len(trials))
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(owned.run_lock())
        network = stack.enter_context(Network(count, path, experiment.cc, run, awake=experiment.awake))
        served = [reference for name, reference in prepared.references.items() if name not in STOCK]
        controller = Controller(network.popen_controller, served, invoking_user(), shared_folder(run), task=experiment.task)
        stack.callback(controller.stop)
        controller.launch()
        pictures = run.folder if experiment.show else None
        players = [LanePlayer(lane, prepared, controller, run.folder, pictures) for lane in network.lanes]
        stack.callback(stop, players)
        for player in players:
            player.launch()
        for player in players:
            player.wait_ready()
        controller.wait_ready()
        yield Emulation(trials, players, controller, {**network.facts, **_browser_facts(experiment)}, run.folder)


def _browser_facts(experiment: Experiment) -> dict[str, str]:
    """Which browser and which dash.js play; nothing where none does."""
    return {} if experiment.player == "headless" else {"browser": browser_version(), "dashjs": dashjs.VERSION}


def shared_folder(run: owned.Run) -> Path:
    """A folder for the controller's socket, in the run's own, that belongs to the user."""
    folder = run.folder / "controller"
    folder.mkdir(mode=0o755)
    user = invoking_user()
    if user:
        os.chown(folder, *user)
    return folder


def in_thread(work: Callable[..., None], *arguments: Any) -> threading.Event:
    """Begin `work` in a thread of its own; the event is set when it has ended.

    `Thread.join` can't tell that: interrupted by Ctrl-C, it takes a thread that lives for one that has ended (CPython issue 90882).
    """
    ended = threading.Event()

    def run() -> None:
        try:
            work(*arguments)
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    return ended


class Emulation:
    """A network that is up, with the trials to run on it."""

    def __init__(
        self,
        trials: Sequence[Trial],
        players: Sequence[LanePlayer],
        controller: Controller,
        facts: dict[str, Any],
        pictures: Path | None = None,
    ) -> None:
        self._trials, self._players, self._controller = trials, players, controller
        self.facts = facts
        self.pictures = pictures
        """Folder in which the lanes' pictures lie; None: nobody looks."""

    def run(self, recorder: Recorder) -> None:
        """Play all trials; those of one group side by side. Raises what a lane raised, and `TestbedError` when no lane is left to play.

        However it ends, the players have ended and said so in rows.
        """
        waiting = WaitingTrials(self._trials)
        with Sampler(recorder.host, self.facts.get("relay_pid")):
            lanes_ended = [in_thread(player.play_all, waiting, recorder) for player in self._players]
            try:
                self._watch(lanes_ended, recorder)
            finally:
                stop(self._players)
                for ended in lanes_ended:
                    ended.wait(END_S)
        if waiting:
            raise TestbedError(f"{len(waiting)} trials were not played: the origin of every lane died again and again")

    def _watch(self, lanes_ended: Sequence[threading.Event], recorder: Recorder) -> None:
        """Until all lanes have ended."""
        playing = True
        while playing:
            playing = not all(ended.is_set() for ended in lanes_ended)
            for player in self._players:
                if player.error:
                    raise player.error
                player.watch()
            if playing and (note := self._controller.watch()):
                recorder.note(note)
            for ended in lanes_ended:
                ended.wait(WATCH_EVERY_S / len(lanes_ended))
