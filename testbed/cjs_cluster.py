"""Schedules in real time: Dask workers on emulated hosts (`emulated`), or of a cluster that is there already (`joined`).

    e0 == core of "data" == e1 ...         ==: a wire under a trace, both directions
    e0 -- core of "control" -- scheduler   --: unshaped: Dask's scheduler and the driver, the controller, and what they tell the executors

One trial is played after another, by a driver (`testbed.execution.driver`) of its own; workers live on from trial to trial. A worker that
dies, or that the driver gives up, is replaced.
"""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec

from testbed.child import LIGHT, Child
from testbed.cjs import PreparedSchedules, ScheduleTrial
from testbed.clock import now_s
from testbed.controller import PORT, Controller
from testbed.docker import docker, engine_fault
from testbed.emulation import WATCH_EVERY_S, in_thread, shared_folder
from testbed.errors import UserError
from testbed.execution.config import HUNG, DriverConfig, ExecutorPlace
from testbed.link import LinkReport
from testbed.netns import owned
from testbed.netns.containers import Containers
from testbed.netns.wires import UNSHAPED, Wire, WireSpec
from testbed.pressure import Sampler
from testbed.recorder import Recorder
from testbed.records import ExecutorRow, LinkRow, Row, ScheduleBeginRow
from testbed.records_trial import Drops
from testbed.star import Star
from testbed.units import ms_from_s, s_from_ms
from testbed.user import User, home, invoking_user, popen_tied
from testbed.verdict import PathFacts

DATA, CONTROL = "data", "control"
SCHEDULER, CONTROLLER = "scheduler", "controller"
SCHEDULER_PORT, WORKER_PORT = 8786, 9000
ANY_HOST, LOOPBACK = "0.0.0.0", "127.0.0.1"
SILENCE_S = 60.0
"""A driver shows signs of life twice a second."""
END_S = 5.0
"""From SIGTERM to SIGKILL: for a driver's last words to its executors. Then so long for the thread that plays."""
TUNED = {
    **LIGHT,
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "90s",
}
"""Of scheduler, workers and driver: a default worker idles at 2 % of a core, this one at 0.2 %. A link may be cut for a minute."""


EXHAUST = """
import operator, sys
from distributed import Client
Client(sys.argv[1]).run(operator.mul, b"x", 1 << 32, workers=[sys.argv[2]])
"""
KEPT = ("PATH", "HOME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH")
"""Of this process's environment what goes into a container."""


class Executors(Protocol):
    """The executors of a run as the player of trials sees them."""

    scheduler: str
    places: tuple[ExecutorPlace, ...]
    controller_url: str

    def popen_driver(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        """Start the driver."""

    def load(self, trial: ScheduleTrial) -> None:
        """Get the links ready for a trial."""

    def begin(self) -> None:
        """The trial begins."""

    def end(self) -> dict[str, LinkReport]:
        """The trial is over: what each link did, by executor."""

    def hung(self, executor: int) -> None:
        """The driver has given one up."""

    def watch(self) -> str:
        """Replace what died; a sentence when something did."""


@contextlib.contextmanager
def emulated(prepared: PreparedSchedules) -> Iterator["ClusterRun"]:
    """Bring up hosts, workers and controller; undo all of it in any case. Raises `UserError` when this machine or user can't."""
    owned.require_root()
    experiment = prepared.experiment
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(owned.run_lock())
        names = [f"e{executor}" for executor in range(experiment.executors)]
        fastest = max(rate for trial in prepared.trials for link in trial.links for rate in link.rates_bps)
        spec = WireSpec(
            rate_bps=fastest, delay_s=s_from_ms(experiment.rtt_ms) / 4 / experiment.time_scale, queue_bytes=experiment.queue, by="relay"
        )
        networks = {DATA: dict.fromkeys(names, spec), CONTROL: dict.fromkeys([*names, SCHEDULER, CONTROLLER], UNSHAPED)}
        containers, told = _containers(experiment.containers, run)
        if containers:
            stack.callback(containers.close)
        namespaces = {name: containers.pause(name) for name in names} if containers else {}
        star = stack.enter_context(Star(networks, run, experiment.cc, namespaces, awake=experiment.awake))
        user = invoking_user()
        controller = Controller(
            lambda argv, **popen: star.popen(CONTROLLER, argv, **popen),
            list(prepared.references.values()),
            user,
            shared_folder(run),
            task="cjs",
        )
        stack.callback(controller.stop)
        controller.launch()
        url = f"http://{star.ip(CONTROL, CONTROLLER)}:{PORT}"
        executors = EmulatedExecutors(star, names, user, _work_folder(run.folder, user), url, containers)
        executors.launch()
        controller.wait_ready()
        yield ClusterRun(prepared, executors, controller, {"executors": told, **star.facts})


@contextlib.contextmanager
def joined(prepared: PreparedSchedules) -> Iterator["ClusterRun"]:
    """Use the workers of the Dask cluster at `--cluster`; the controller and the driver run on this machine, and need no root."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def popen(argv: Sequence[str], *, user: User | None = None, **keywords: Any) -> subprocess.Popen[bytes]:
            return popen_tied(user, argv, **keywords)

        controller = Controller(popen, list(prepared.references.values()), None, folder, task="cjs", host=LOOPBACK, port=0)
        stack.callback(controller.stop)
        controller.launch()
        controller.wait_ready()
        executors = JoinedExecutors(str(prepared.experiment.cluster), f"http://{LOOPBACK}:{controller.port}")
        yield ClusterRun(prepared, executors, controller, {"executors": f"of {prepared.experiment.cluster}"})


def _containers(wanted: str, run: owned.Run) -> tuple[Containers | None, str]:
    """Containers for executors where they are wanted and can be had, and what executors are, for the run's header."""
    fault = "as asked for" if wanted == "never" else engine_fault()
    if not fault:
        return Containers(run), "Docker containers"
    if wanted == "always":
        raise UserError(f"--containers is always, but {fault}, wanted a Docker engine that runs")
    return None, f"processes ({fault})"


def _work_folder(folder: Path, user: User | None) -> Path:
    made = folder / "workers"
    made.mkdir(mode=0o755)
    if user:
        os.chown(made, *user)
    return made


class EmulatedExecutors:
    """Workers on the hosts of a star: processes, or containers."""

    def __init__(
        self,
        star: Star,
        names: Sequence[str],
        user: User | None,
        folder: Path,
        controller_url: str,
        containers: Containers | None = None,
    ) -> None:
        self._containers = containers
        self._container: dict[str, str] = {}
        """The container of each host's executor."""
        self.star, self._names, self._user, self._folder = star, names, user, folder
        self.scheduler = f"tcp://{star.ip(CONTROL, SCHEDULER)}:{SCHEDULER_PORT}"
        self.places = tuple(ExecutorPlace(name=name, data_host=star.ip(DATA, name)) for name in names)
        self.controller_url = controller_url
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        """By name of the host."""
        self._environment = TUNED | ({"HOME": home(user)} if user else {})

    def launch(self) -> None:
        """Start Dask's scheduler, then the workers, which wait for it."""
        argv = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", self.star.ip(CONTROL, SCHEDULER)]
        self._popen(SCHEDULER, [*argv, "--port", str(SCHEDULER_PORT), "--no-dashboard"])
        for name in self._names:
            self._start(name)

    def _start(self, name: str) -> None:
        argv = [sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler, "--name", name, "--nthreads", "1", "--no-nanny"]
        argv += ["--listen-address", f"tcp://{ANY_HOST}:{WORKER_PORT}"]
        argv += ["--contact-address", f"tcp://{self.star.ip(CONTROL, name)}:{WORKER_PORT}"]
        argv += ["--no-dashboard", "--memory-limit", "0", "--death-timeout", "60", "--local-directory", str(self._folder)]
        if self._containers:
            environment = {key: value for key, value in self._environment.items() if key in KEPT or key.startswith("DASK_")}
            self._container[name], argv = self._containers.command(name, argv, self._user, environment, self._folder)
        self.workers[name] = self._popen(name, argv, outside=self._containers is not None)

    def _popen(self, host: str, argv: Sequence[str], outside: bool = False) -> subprocess.Popen[bytes]:
        """With its output in a file; `outside` of the host's namespace and as root, for the docker command."""
        with (self._folder / f"{host}.log").open("ab") as log:
            if outside:
                return self.star.popen(None, argv, stdout=log, stderr=log)
            return self.star.popen(host, argv, user=self._user, env=self._environment, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """End a worker at once."""
        if self._containers:
            docker("kill", self._container[name])
        else:
            self.workers[name].kill()

    @property
    def contained(self) -> bool:
        """Whether executors are containers, with limits."""
        return self._containers is not None

    def exhaust(self, name: str) -> None:
        """Have a worker take more memory than its container may."""
        address = f"tcp://{self.star.ip(CONTROL, name)}:{WORKER_PORT}"
        self.star.popen(
            SCHEDULER, [sys.executable, "-c", EXHAUST, self.scheduler, address], env=self._environment, stderr=subprocess.DEVNULL
        )

    def hang(self, name: str) -> None:
        """Stop a worker, so that it neither answers nor ends."""
        if self._containers:
            docker("pause", self._container[name])
        else:
            os.kill(self.workers[name].pid, signal.SIGSTOP)

    def popen_driver(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        """Start the driver, beside Dask's scheduler."""
        return self.star.popen(SCHEDULER, argv, user=self._user, env=self._environment, **popen)

    def _wires(self) -> Mapping[str, Wire]:
        return self.star.wires[DATA]

    def load(self, trial: ScheduleTrial) -> None:
        """Get the links ready for a trial."""
        for (name, wire), trace in zip(self._wires().items(), trial.links, strict=True):
            wire.load(trace, f"{trial.trial_id} {name}")

    def begin(self) -> None:
        """Begin the traces."""
        for wire in self._wires().values():
            wire.start()

    def end(self) -> dict[str, LinkReport]:
        """What each link did, by executor."""
        return {name: wire.report() for name, wire in self._wires().items()}

    def hung(self, executor: int) -> None:
        """End a worker that doesn't answer."""
        self.kill(self._names[executor])

    def watch(self) -> str:
        """Start a new worker in place of each that died."""
        died = {name: worker for name, worker in self.workers.items() if worker.poll() is not None}
        told = []
        for name, worker in died.items():
            fault = self._containers.ended_by(self._container[name]) if self._containers else f"ended with code {worker.returncode}"
            told.append(f"executor {name} {fault} and was replaced")
            self._start(name)
        return "; ".join(told)


class JoinedExecutors:
    """Workers of somebody's cluster."""

    def __init__(self, scheduler: str, controller_url: str) -> None:
        self.scheduler, self.controller_url = scheduler, controller_url
        self.places: tuple[ExecutorPlace, ...] = ()

    def popen_driver(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        """Start the driver on this machine."""
        return popen_tied(None, argv, env=LIGHT, **popen)

    def load(self, trial: ScheduleTrial) -> None:
        """No link is ours."""

    def begin(self) -> None:
        """No link is ours."""

    def end(self) -> dict[str, LinkReport]:
        """No link is ours."""
        return {}

    def hung(self, executor: int) -> None:
        """Its cluster has to see to it."""

    def watch(self) -> str:
        """Its cluster has to see to it."""
        return ""


@dataclass
class _Playing:
    """The trial that is played now."""

    driver: Child
    heard_s: float
    killed_for: str = ""


class ClusterRun:
    """Executors that are up, with the trials to run on them."""

    pictures: ClassVar[None] = None
    """No page shows a cluster."""

    def __init__(self, prepared: PreparedSchedules, executors: Executors, controller: Controller, facts: dict[str, Any]) -> None:
        self._prepared, self.executors, self.controller, self.facts = prepared, executors, controller, facts
        self._playing: _Playing | None = None
        self._error: Exception | None = None
        self._stopped = False

    def run(self, recorder: Recorder) -> None:
        """Play all trials, one after another. Raises what went wrong beyond a trial."""
        waiting = collections.deque(self._prepared.trials)
        with Sampler(recorder.host, self.facts.get("relay_pid")):
            ended = in_thread(self._play_all, waiting, recorder)
            try:
                while not ended.wait(WATCH_EVERY_S):
                    self._watch(recorder)
            except BaseException:
                self._stopped = True
                if playing := self._playing:
                    playing.driver.end(END_S)
                ended.wait(END_S)
                raise
        if self._error:
            raise self._error

    def kill_driver(self) -> None:
        """End the trial that is played."""
        if playing := self._playing:
            playing.driver.kill()

    def _watch(self, recorder: Recorder) -> None:
        for note in (self.executors.watch(), self.controller.watch()):
            if note:
                recorder.note(note)
        playing = self._playing
        if playing and not playing.driver.ended() and not playing.killed_for:
            silent_s = now_s() - playing.heard_s
            playing.killed_for = f"said nothing for {silent_s:.0f} s and was killed" if silent_s > SILENCE_S else playing.driver.fault()
            if playing.killed_for:
                playing.driver.kill()

    def _play_all(self, waiting: "collections.deque[ScheduleTrial]", recorder: Recorder) -> None:
        try:
            while waiting and not self._stopped:
                trial = waiting.popleft()
                recorder.started(trial, 0)
                if again := self._play(trial, recorder):
                    waiting.append(again)
        except Exception as error:  # handed to the main thread, which raises it
            self._error = error

    def _play(self, trial: ScheduleTrial, recorder: Recorder) -> Any:
        restarts, begin_s = self.controller.restarts, now_s()
        self.executors.load(trial)
        problem = self._drive(trial, recorder)
        if self._stopped:
            return None
        reports, end_s = self.executors.end(), now_s()
        for name, report in reports.items():
            recorder.extend(_named(name, trial.trial_id, report))
        facts = path_facts(reports, self._prepared.experiment.cc)
        facts = replace(facts, fault=problem, controller_restarts=self.controller.restarts - restarts, began_at_s=begin_s, ended_at_s=end_s)
        return recorder.close(trial.trial_id, facts)

    def _drive(self, trial: ScheduleTrial, recorder: Recorder) -> str:
        """Run the driver; returns why it failed, if it did."""
        driver = Child(self.executors.popen_driver, "testbed.execution.process")
        self._playing = playing = _Playing(driver, now_s())
        if self._stopped:
            driver.kill()
        driver.hand(self._config(trial))
        decoder = msgspec.json.Decoder(Row)
        for line in driver.lines():
            playing.heard_s = now_s()
            if line.strip():
                self._take(decoder.decode(line), recorder)
        code, self._playing = driver.wait(), None
        recorder.log(driver.said())
        return f"the driver {playing.killed_for or driver.fault()}" if code else ""

    def _take(self, row: Row, recorder: Recorder) -> None:
        if isinstance(row, ScheduleBeginRow):
            self.executors.begin()
        elif isinstance(row, ExecutorRow) and row.reason == HUNG:
            self.executors.hung(row.executor)
        recorder.row(row)

    def _config(self, trial: ScheduleTrial) -> DriverConfig:
        experiment = self._prepared.experiment
        return DriverConfig(
            trial_id=trial.trial_id,
            scheduler=self.executors.scheduler,
            executors=self.executors.places,
            controller_url=self.executors.controller_url,
            policy=self._prepared.references[trial.policy],
            seed=trial.seed,
            session=self._prepared.session(trial),
            workload=trial.workload,
            time_scale=experiment.time_scale,
            bytes_scale=experiment.bytes_scale / experiment.time_scale,
            deadline_s=s_from_ms(experiment.deadline_ms),
        )


_WAYS = {"down": "sent", "up": "received"}


def _named(name: str, trial_id: str, report: LinkReport) -> list[LinkRow]:
    """A link's counters under the executor's name, as that sees them."""
    return [msgspec.structs.replace(row, trial_id=trial_id, link=name, direction=_WAYS[row.direction]) for row in report.windows]


def _reasons(reports: Mapping[str, LinkReport]) -> tuple[str, ...]:
    """What failed at the link that fared worst, and how many others failed: one process carries them all, so they mostly fail together."""
    failed = {name: report for name, report in reports.items() if report.reasons}
    if not failed:
        return ()
    worst = max(failed, key=lambda name: (len(failed[name].reasons), failed[name].lateness_p99_s, failed[name].stalled_s))
    others = (f"other links that failed: {len(failed) - 1}",) if len(failed) > 1 else ()
    return (*(f"link of {worst}: {reason}" for reason in failed[worst].reasons), *others)


def path_facts(reports: Mapping[str, LinkReport], congestion_control: str) -> PathFacts:
    """All links of a trial together: sums, and the worst of each measure; nothing where no link was emulated."""
    if not reports:
        return PathFacts()
    all_of = list(reports.values())
    causes = {cause: sum(report.drops.get(cause, 0) for report in all_of) for cause in all_of[0].drops}
    reasons = _reasons(reports)
    return PathFacts(
        reasons=reasons,
        congestion_control=congestion_control,
        fidelity="fail" if reasons else "pass",
        lateness_ms_p50=ms_from_s(max(report.lateness_p50_s for report in all_of)),
        lateness_ms_p99=ms_from_s(max(report.lateness_p99_s for report in all_of)),
        lateness_ms_max=ms_from_s(max(report.lateness_max_s for report in all_of)),
        late_packets=sum(report.late_packets for report in all_of),
        late_share=max(report.late_share for report in all_of),
        stalled_ms=ms_from_s(max(report.stalled_s for report in all_of)),
        max_stall_ms=ms_from_s(max(report.max_stall_s for report in all_of)),
        rate_error_pct_100ms=max(report.rate_error_pct_100ms for report in all_of),
        uncounted_losses=sum(report.uncounted_losses for report in all_of),
        packets_in=sum(report.packets_in for report in all_of),
        packets_out=sum(report.packets_out for report in all_of),
        drops=Drops(**causes),
        link_notes="; ".join(dict.fromkeys(note for report in all_of for note in report.notes)),
        trace_wraps=max(report.trace_wraps for report in all_of),
    )
