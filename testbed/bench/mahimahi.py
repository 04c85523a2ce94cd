"""Mahimahi's `mm-link` and `mm-delay` as lanes, where the user has them installed; as shipped, or with its processes under SCHED_FIFO.

It starts only for another user than root, puts its container into a network namespace of its own, and writes NAT rules into the one that it
is started in, which is a Mininet host's here: nothing of it reaches the machine's own network.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from testbed.bench.lanes import CONGESTION_CONTROL, Contender, Counted, End, Lane, Wanted
from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.netns.hosts import Spawner, make_host, run_scripts
from testbed.netns.owned import Run
from testbed.units import bps_from_mbps, ms_from_s
from testbed.user import User, invoking_user
from traces.formats import to_opportunities, write_trace
from traces.trace import OpportunityTrace, RateTrace, Trace

NOBODY = (65534, 65534)
PRIORITY = 50
UPLINK_MBPS = 100.0
_START_S = 20.0
_SETTINGS = f"""echo {CONGESTION_CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control
echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save
for switch in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $switch ] || echo 1 > $switch; done"""


@dataclass(frozen=True)
class Mahimahi(Contender):
    """As shipped, or with `real_time` its processes under `chrt -f 50`."""

    real_time: bool = False
    own_start: ClassVar[bool] = True

    def lacks(self) -> str:
        """See `Contender`."""
        missing = [name for name in ("mm-link", "mm-delay") if not shutil.which(name)]
        return f"not installed ({', '.join(missing)} not in PATH)" if missing else ""

    def given(self, trace: Trace) -> Trace:
        """Delivery opportunities in whole milliseconds."""
        return trace if isinstance(trace, OpportunityTrace) else to_opportunities(trace)

    @contextlib.contextmanager
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> Iterator[Lane]:
        """See `Contender`."""
        host = make_host(spawner, "server")
        lane = _MahimahiLane(spawner, host, wanted, run.folder / self.key, self.real_time)
        try:
            run_scripts(spawner, {host: f"ip link set dev lo up\necho 1 > /proc/sys/net/ipv4/ip_forward\n{_SETTINGS}"})
            yield lane
        finally:
            lane.stop()
            host.terminate()


class _MahimahiLane(Lane):
    """Started anew for each trace: `mm-link` reads it once."""

    def __init__(self, spawner: Spawner, host: Any, wanted: Wanted, folder: Path, real_time: bool) -> None:
        super().__init__(spawner)
        self._host, self._wanted, self._folder, self._real_time = host, wanted, folder, real_time
        self._user: User = invoking_user() or NOBODY
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: list[int] = []

    @property
    def pids(self) -> Sequence[int]:
        return self._pids

    def load(self, trace: Trace) -> None:
        self.stop()
        shell = ["sh", "-c", "echo $$; exec cat"]  # ends with the pipe, however we end
        command = [*self._command(trace), *shell]
        path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self.began_s = now_s()
        self._process = self._spawner.spawn(
            command, namespace_pid=self._host.pid, user=self._user, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        inner = int(self._line())
        self._pids = [pid for pid, name in family(self._process.pid) if name.startswith("mm-")]
        if self._real_time:
            for pid in self._pids:
                os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(PRIORITY))
        self._meet(inner)

    def _command(self, trace: Trace) -> list[str]:
        """With delay `mm-delay`, else `mm-link`: nested, they would add each other's errors."""
        if self._wanted.rtt_s:
            return [_found("mm-delay"), str(round(ms_from_s(self._wanted.rtt_s) / 2))]
        self._folder.mkdir(exist_ok=True)
        up = to_opportunities(RateTrace("up", (0.0, 1.0), (bps_from_mbps(UPLINK_MBPS),)))
        paths = [self._folder / "up", self._folder / "down"]
        for path, each in zip(paths, (up, trace), strict=True):
            write_trace(each, path, "mahimahi")
        queue = ["--downlink-queue=droptail", f"--downlink-queue-args=packets={self._wanted.queue_packets}"]
        return [_found("mm-link"), *map(str, paths), *queue, "--"]

    def _line(self) -> bytes:
        assert self._process and self._process.stdout
        if not select.select([self._process.stdout], [], [], _START_S)[0]:
            raise TestbedError(f"Mahimahi did not start within {_START_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise TestbedError(f"Mahimahi ended at its start (exit code {self._process.wait()}); what it says is above")
        return line

    def _meet(self, inner: int) -> None:
        """Where its two ends are: the container has one interface, and a route to the address of the other end."""
        (there,) = [entry for entry in self._interfaces(inner) if entry["ifname"] == "ingress"]
        address = there["addr_info"][0]
        outer = [entry for entry in self._interfaces(self._host.pid) if any(a["local"] == address["address"] for a in entry["addr_info"])]
        self.client = End(inner, address["local"], there["ifname"])
        self.server = End(self._host.pid, address["address"], outer[0]["ifname"])
        process = self.popen(self.client, ["sh", "-e", "-c", _SETTINGS])
        if process.wait():
            raise TestbedError("Mahimahi's container could not be set up")

    def _interfaces(self, pid: int) -> list[dict[str, Any]]:
        process = self._spawner.spawn(["ip", "-4", "-json", "address", "show"], namespace_pid=pid, stdout=subprocess.PIPE)
        output, _ = process.communicate()
        if process.returncode:
            raise TestbedError("Mahimahi ended at its start; what it says is above")
        return [entry for entry in json.loads(output) if entry["ifname"] != "lo"]

    def start(self) -> None: ...

    def stop(self) -> Counted:
        if self._process:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process, self._pids = None, []
        return Counted(known=bool(self._wanted.rtt_s))  # mm-delay drops nothing that it knows of


def _found(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise TestbedError(f"{name} is no longer in PATH")
    return found


def family(pid: int) -> list[tuple[int, str]]:
    """A process and all that come from it: (pid, name)."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            begin, _, rest = (entry / "stat").read_text().rpartition(")")
            parents[int(entry.name)], names[int(entry.name)] = int(rest.split()[1]), begin.partition("(")[2]
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [(each, names.get(each, "")) for each in sorted(found)]
