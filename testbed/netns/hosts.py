"""Processes and Mininet hosts of a run: each dies with the testbed, is recorded as ours, and is ended when the run ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from testbed.clock import now_s
from testbed.errors import TestbedError, UserError
from testbed.host import in_virtual_machine, namespace_made
from testbed.netns.owned import Run
from testbed.setup import native
from testbed.user import DIE_WITH_STARTER

TERM_S = 1.0
"""From SIGTERM to SIGKILL."""
KILL_S = 5.0
"""For the kernel to carry SIGKILL out."""
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
NEW_NAMESPACE = ["mnexec", "-cdn"]
"""How Mininet begins a host's shell."""


class Spawner:
    """Starts all processes of a run, from one thread: the kernel's death signal watches the thread that started a process, not its process.

    `PR_SET_PDEATHSIG` is set by `setpriv` before the program runs; should the testbed be killed in that millisecond, the run's token in the
    process's environment lets `owned.clean` find it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
        self._started: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def spawn(
        self,
        argv: Sequence[str],
        *,
        namespace_pid: int | None = None,
        user: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own, in the namespaces of `namespace_pid` (else ours), as `user` (uid, gid; else root)."""
        command = [*DIE_WITH_STARTER]
        if namespace_pid is not None:
            command += ["mnexec", "-da", str(namespace_pid)]
        if user is not None:  # changing the user forgets the death signal
            command += [*DIE_WITH_STARTER, "--reuid", str(user[0]), "--regid", str(user[1]), "--clear-groups"]
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen["start_new_session"] = namespace_pid is None  # else mnexec makes the session
        return self.start([*command, *argv], env=env, **popen)

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.Popen[bytes]:
        """Start a command as it is (it has to see to dying with its parent), and record it."""
        return self._thread.submit(self._start, command, self._run.environment(dict(os.environ if env is None else env)), popen).result()

    def _start(self, command: Sequence[str], env: dict[str, str], popen: dict[str, Any]) -> subprocess.Popen[bytes]:
        if self._ended:
            raise TestbedError(f"{command[-1]} can't be started: the network is down")
        process = subprocess.Popen(command, env=env, **popen)
        self._started = [old for old in self._started if old.returncode is None]
        self._started.append(process)
        self._run.add_process(process.pid, " ".join(command)[:200])
        return process

    def end(self, shells: Sequence[subprocess.Popen[bytes]]) -> None:
        """End everything that still runs: SIGTERM to its process group, SIGKILL after a second; `shells`, deaf to SIGTERM, last."""
        self._thread.submit(self._end, shells).result()
        self._thread.shutdown()  # only now: the death signal would come with the thread's end

    def _end(self, shells: Sequence[subprocess.Popen[bytes]]) -> None:
        self._ended = True
        others = [process for process in self._started if process not in shells]
        rounds = ((signal.SIGTERM, TERM_S, others), (signal.SIGKILL, KILL_S, others), (signal.SIGKILL, KILL_S, shells))
        for number, patience_s, processes in rounds:
            for process in processes:
                _signal_group(process, number)
            deadline_s = now_s() + patience_s
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(deadline_s - now_s(), 0))


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a process that was not waited for, with its group if it leads one already."""
    if process.poll() is not None:
        return
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def keep_awake(spawner: Spawner) -> bool:
    """Let no core of a virtual machine halt from now on: a process spins on all of them, at the lowest priority. Whether one does.

    A virtual core that halts between two packets goes back to its host, and a busy host takes milliseconds to run it again. Elsewhere, and
    where the relay in C was not built, nothing is done.
    """
    program = native.built()
    if not program or not in_virtual_machine():
        return False
    spawner.spawn([str(program), "--awake"])
    return True


def make_host(spawner: Spawner, name: str, namespace_pid: int | None = None) -> Any:
    """A Mininet host (`mininet.node.Host`) whose shell dies with us, in a new network namespace or in that of `namespace_pid`."""
    _complete_path()
    _check_namespaces()
    try:
        return _host_class()(name, spawner=spawner, namespace_pid=namespace_pid)
    except SystemExit as end:  # Mininet's answer to a missing program, which it has named on stderr; or a signal's to us
        if end.code != 1:
            raise
        raise UserError("Mininet can't make a host, wanted mnexec and ifconfig in PATH (Debian's packages mininet and net-tools)") from None


@cache
def _check_namespaces() -> None:
    """Raise UserError where `mnexec` can't make a namespace: Mininet would wait for its host's shell for ever."""
    if fault := namespace_made():
        raise UserError(f"no network namespace can be made on this host ({fault}), wanted a machine or container in which root may")


def _complete_path() -> None:
    """`su` leaves root without the folders that hold `ip`, `tc` and `ifconfig`."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])


@cache
def _host_class() -> type:
    """Mininet is imported as late as possible: only emulation needs it."""
    try:
        from mininet.node import Host
    except ImportError as error:
        wanted = "wanted Debian's package mininet and a .venv that sees system packages"
        raise UserError(f"Mininet can't be imported ({error}), {wanted}") from None

    class OwnedHost(Host):  # type: ignore[misc]
        """Starts its shell through the spawner."""

        def __init__(self, name: str, spawner: Spawner, namespace_pid: int | None, **params: Any) -> None:
            self._spawner, self._namespace_pid = spawner, namespace_pid
            super().__init__(name, **params)

        def _popen(self, cmd: Sequence[str], **params: Any) -> subprocess.Popen[bytes]:
            if self._namespace_pid is not None and list(cmd[:2]) == NEW_NAMESPACE:
                cmd = ["nsenter", "--target", str(self._namespace_pid), "--net", "mnexec", "-cd", *cmd[2:]]
            return self._spawner.start([*DIE_WITH_STARTER, *cmd], **params)

    return OwnedHost


def run_scripts(spawner: Spawner, scripts: Mapping[Any, str]) -> dict[Any, str]:
    """Run a shell script in each host, side by side; returns what they printed. TestbedError when one fails."""
    started = {}
    for host, script in scripts.items():
        started[host] = spawner.spawn(["sh", "-e", "-c", script], namespace_pid=host.pid, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    outputs = {}
    for host, process in started.items():
        output, errors = process.communicate()
        if process.returncode:
            text = errors.decode(errors="replace").strip()
            raise TestbedError(f"host {host.name}: setting it up ended with code {process.returncode}: {text}")
        outputs[host] = output.decode()
    return outputs
