"""Back end `kernel`: Linux' own queues in a namespace between the hosts, HTB for the rate, netem after it for delay and loss.

Exact at constant rates. A varying trace is replayed by changing HTB's rate at each of its edges, and that is not exact: a class keeps the
waiting time that it owed at its old rate, so a step up after a low rate begins late. The rate has therefore a floor, outages leak, and the
verdict says so. What else is held otherwise than asked for, the report's notes say.
"""

import os
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed import clock
from testbed.errors import TestbedError, UserError
from testbed.link import START, Endpoint, Link, LinkReport, LinkSet, PathSpec
from testbed.shapers.kernel_replay import LOOKS, Course, Replay, report
from testbed.shapers.kernel_tc import (
    DELAYED_AT,
    DIRECTIONS,
    DISOWN,
    FLOOR_BPS,
    OFFLOADS,
    PACED_AT,
    Counters,
    Direction,
    Spawn,
    Tc,
    held_limit,
    plumbing,
)
from testbed.shapers.kernelcalls import dropped_by_interface
from testbed.shapers.ledger import WINDOW_NS
from testbed.units import s_from_ns
from traces.trace import Trace

IDLE_RATE_BPS = 100e6
COUNTED_TIMES = 20
"""How often the counters are read until those of two devices, read one after the other, agree."""
ADVICE = "use --link userspace"


def netem_available() -> bool:
    """Whether this kernel can delay packets: tried in a network namespace that ends with the attempt. Needs root."""
    return tried("tc qdisc add dev lo root netem delay 1ms")


def tried(command: str) -> bool:
    """Whether a shell command succeeds in a network namespace that ends with it."""
    try:
        return subprocess.run(["unshare", "--net", "sh", "-e", "-c", command], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _require(path: PathSpec) -> None:
    """UserError when this host can't carry the path."""
    if missing := [tool for tool in ("tc", "ip", "ethtool", "unshare") if not shutil.which(tool)]:
        raise UserError(f"--link kernel needs {missing[0]}, which is not installed; {ADVICE}")
    onward = f"tc filter add dev lo parent ffff: protocol all u32 match u32 0 0 {DISOWN.format('lo')}"
    way = f"tc qdisc add dev lo root htb; tc qdisc add dev lo ingress; {onward}"
    wanted = [("sch_htb, sch_ingress, cls_u32 and act_mirred", way)]
    wanted += [("sch_netem to delay packets", "tc qdisc add dev lo root netem delay 1ms")] if path.rtt_s > 0 else []
    wanted += [("sch_codel", "tc qdisc add dev lo root codel")] if path.discipline == "codel" else []
    for what, command in wanted:
        if not tried(command):
            raise UserError(f"--link kernel needs {what}, which this kernel does not offer; {ADVICE}")


class KernelSet(LinkSet):
    """All links on HTB and netem. Each has a thread that changes rates and reads counters."""

    unqueued = False

    def __init__(self, spawn: Spawn, folder: Path, path: PathSpec) -> None:
        _require(path)
        self._spawn, self._folder, self._path = spawn, folder, path
        self._links: list[KernelLink] = []

    @property
    def facts(self) -> dict[str, object]:
        """See `LinkSet`."""
        return {"back_end": "kernel", "realtime": False, "rate_floor_bps": FLOOR_BPS, "kernel_queue": held_limit(self._path)}

    def attach(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec) -> "KernelLink":
        """See `LinkSet`."""
        tc = Tc(self._spawn, f"lane {lane}")
        link = KernelLink(lane, server, client, path, self._folder / f"lane{lane}.sock", tc)
        self._links.append(link)
        for end, name in ((server, DELAYED_AT["up"]), (client, DELAYED_AT["down"])):
            veth = f"ip link add {end.interface} type veth peer name {name} netns {tc.pid}"
            self._run(f"interface {end.interface}", end.pid, [veth, f"ethtool -K {end.interface} {OFFLOADS}"])
        self._run(f"lane {lane}", tc.pid, plumbing())
        link.rest({"down": IDLE_RATE_BPS, "up": None})
        return link

    def _run(self, what: str, pid: int, commands: list[str]) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = self._spawn(["sh", "-e", "-c", "\n".join(commands)], namespace_pid=pid, **pipes)
        _, errors = process.communicate()
        if process.returncode:
            raise TestbedError(f"{what}: setting up its queues failed: {errors.decode(errors='replace').strip()}")

    def close(self) -> None:
        """See `LinkSet`."""
        for link in self._links:
            link.close()
        self._links = []


class KernelLink(Link):
    """One lane. A thread waits for `start`, changes the queues when due, looks at the counters every 20 ms."""

    def __init__(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec, start_path: Path, tc: Tc) -> None:
        self.lane, self.server_interface, self.client_interface = lane, server.interface, client.interface
        self._path, self._start_path, self._tc = path, start_path, tc
        on_the_way = (*PACED_AT.values(), *DELAYED_AT.values())
        self._interfaces = [(server.pid, server.interface), (client.pid, client.interface), *((tc.pid, name) for name in on_the_way)]
        self._starts = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._starts.bind(str(start_path))
        os.chmod(start_path, 0o666)
        self._halt = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._replay: Replay | None = None
        self._error: Exception | None = None
        self._dropped_before = 0

    @property
    def start_path(self) -> Path:
        """See `Link`."""
        return self._start_path

    def rest(self, rates_bps: Mapping[Direction, float | None], conditioned: bool = False) -> None:
        """Empty queues at constant rates (None: unlimited), and netem where packets are delayed, or will be if `conditioned`."""
        delayed = DIRECTIONS if self._path.rtt_s or conditioned else ()
        self._tc.rebuild(self._path, rates_bps, delayed)

    def load(self, trace: Trace, offset_s: float, trial_id: str, *, uplink: Trace | None = None, seed: int = 1) -> None:
        """See `Link`. `seed` is of no use here: the kernel draws the losses."""
        if error := self._end_thread():
            raise error
        courses = [Course("down", trace), *([Course("up", uplink)] if uplink else [])]
        replay = Replay(trial_id, self._path, courses, offset_s)
        if replay.conditioned and not self._path.rtt_s and not netem_available():
            what = f"trace {trace.name} says delays or losses"
            raise UserError(f"{what}: --link kernel needs sch_netem for that, which this kernel does not offer; {ADVICE}")
        while select.select([self._starts], [], [], 0)[0]:
            self._starts.recv(len(START) + 1)
        self.rest(replay.mean_rates_bps, replay.conditioned)
        self._replay, self._dropped_before = replay, self._dropped_by_interfaces()
        self._thread = threading.Thread(target=self._guard, args=(replay,), daemon=True)
        self._thread.start()

    def _guard(self, replay: Replay) -> None:
        try:
            self._follow(replay)
        except Exception as error:  # handed to stop, which raises it
            self._error = error

    def _follow(self, replay: Replay) -> None:
        """The thread's life: wait for `start`, then changes and samples as they fall due."""
        while True:
            if self._halt in select.select([self._starts.fileno(), self._halt], [], [])[0]:
                return
            if self._starts.recv(len(START) + 1) == START:
                break
        replay.started_ns = clock.now_ns()
        changes = replay.changes(replay.started_ns)
        change = next(changes, None)
        look_ns, looks = replay.started_ns, 0
        while True:
            now_ns = clock.now_ns()
            if change and now_ns >= change.due_ns:
                self._tc.write([change.command])
                replay.lateness[change.direction].add(clock.now_ns() - change.due_ns)
                change = next(changes, None)
            elif now_ns >= look_ns:
                replay.look(now_ns, self._tc.counters(), ends=looks % LOOKS == 0)
                look_ns, looks = look_ns + WINDOW_NS // LOOKS, looks + 1
            else:
                next_ns = min(change.due_ns, look_ns) if change else look_ns
                if select.select([self._halt], [], [], s_from_ns(next_ns - now_ns))[0]:
                    return

    def _end_thread(self) -> Exception | None:
        """Join it; returns what it failed of."""
        if self._thread:
            os.eventfd_write(self._halt, 1)
            self._thread.join()
            os.eventfd_read(self._halt)
            self._thread = None
        error, self._error = self._error, None
        return error

    def stop(self) -> LinkReport:
        """See `Link`."""
        if self._replay is None:
            raise TestbedError(f"lane {self.lane}: stop without load")
        if error := self._end_thread():
            raise error
        replay, self._replay = self._replay, None
        now_ns = clock.now_ns()
        replay.last = self._agreeing_counters()
        interface_drops = self._dropped_by_interfaces() - self._dropped_before
        self.rest(replay.mean_rates_bps)
        return report(replay, now_ns, interface_drops)

    def _agreeing_counters(self) -> dict[Direction, Counters]:
        """Packets may be under way between two devices, or from one to the other while both are read."""
        for _ in range(COUNTED_TIMES):
            counters = self._tc.counters()
            if not any(one.missing_packets for one in counters.values()):
                break
        return counters

    def _dropped_by_interfaces(self) -> int:
        try:
            return sum(dropped_by_interface(pid, interface) for pid, interface in self._interfaces)
        except OSError as error:
            raise TestbedError(f"lane {self.lane}: a host of the link is gone ({error})") from error

    def close(self) -> None:
        """End the thread and tc, whatever state they are in."""
        self._end_thread()
        self._tc.close()
        self._starts.close()
        os.close(self._halt)
        self._start_path.unlink(missing_ok=True)
