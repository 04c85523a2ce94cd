"""A lane of back end `kernel` as the kernel has it: a network namespace between the two hosts, and the one `tc` that rules it.

    server host == to-server | pace-down == pace-up | to-client == client host          (==: veth pairs; the names: in the namespace)

What comes in at `to-server` goes out at `pace-down`, whose HTB is the bottleneck towards the client, comes in at `pace-up` and goes out at
`to-client`, whose netem delays and loses: the same order as in the model. The way back is its mirror image: HTB at `pace-up`, netem at
`to-server`.
"""

import contextlib
import json
import select
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

from testbed.errors import TestbedError
from testbed.link import PathSpec
from testbed.units import ETHERNET_BYTES, MTU_BYTES

Spawn = Callable[..., subprocess.Popen[bytes]]
Direction = Literal["down", "up"]
DIRECTIONS: tuple[Direction, ...] = ("down", "up")
PACED_AT: Mapping[Direction, str] = {"down": "pace-down", "up": "pace-up"}
"""Device with the HTB of a direction."""
DELAYED_AT: Mapping[Direction, str] = {"down": "to-client", "up": "to-server"}
"""Device with its netem."""

FLOOR_BPS = 100e3
"""HTB is never set lower: it would sleep too long over a step up."""
UNSHAPED_BPS = 10e9
"""HTB's rate where no trace paces a direction."""
UNSHAPED_BURST_BYTES = 2**20
NETEM_LIMIT_PACKETS = 100_000
ORDERLY_RATE = "100gbit"
"""netem's own rate: with one, a packet never passes its predecessor when the delay gets shorter; it adds 0.1 us to a full packet."""
ANSWER_TIMEOUT_S = 10.0
REDIRECT = "action mirred egress redirect dev {}"
DISOWN = "action mirred egress mirror dev {} drop"
"""Goes on as a copy that the sender's socket doesn't own: of its own packets TCP lets only a few wait (TCP small queues), so that the
bottleneck's queue would never fill."""
OFFLOADS = "tso off gso off gro off tx off"
IP_BYTES = f"stab overhead -{ETHERNET_BYTES} linklayer ethernet"
"""A change without it would end it."""


@dataclass(frozen=True)
class Losses:
    """How netem loses packets."""

    share: float = 0.0
    burst_packets: float | None = None
    """Mean length of a run of losses; None: each packet by itself."""

    def __str__(self) -> str:
        """As arguments of netem. The chain of two states loses nothing in the good one and all in the bad one."""
        if self.burst_packets is None or not 0 < self.share < 1:
            return f"loss random {100 * self.share:.7f}%"
        enter, leave = self.share / (self.burst_packets * (1 - self.share)), 1 / self.burst_packets
        return f"loss gemodel {100 * min(enter, 1):.7f}% {100 * leave:.7f}% 100% 0%"


@dataclass(frozen=True)
class Counters:
    """Of one direction, since its queues were made; IP bytes."""

    served_packets: int
    """That left the bottleneck."""
    served_bytes: int
    queue_packets: int
    """That wait in it."""
    queue_bytes: int
    queue_drops: int
    """By its bounds."""
    codel_drops: int
    delivered_packets: int
    """That left netem, or the bottleneck where there is none."""
    losses: int
    lost_bytes: int
    flying_packets: int
    """Inside netem."""

    @property
    def missing_packets(self) -> int:
        """Left the bottleneck, and netem knows nothing of them: for a moment on their way, or lost. Negative: read in between."""
        return self.served_packets - self.delivered_packets - self.losses - self.flying_packets


def held_limit(path: PathSpec) -> str:
    """The queue as arguments of a qdisc. Linux has none that is bounded in bytes and packets, so it has the bound that full packets meet
    first; its CoDel counts packets only.
    """
    if path.discipline == "codel":
        return f"codel limit {packet_limit(path)} target 5ms interval 100ms noecn"
    if path.queue_packets is not None and packet_limit(path) == path.queue_packets:
        return f"pfifo limit {path.queue_packets}"
    return f"bfifo limit {path.queue_bytes}"


def packet_limit(path: PathSpec) -> int:
    """The tighter of both bounds, in full packets."""
    of_bytes = path.queue_bytes // MTU_BYTES
    return of_bytes if path.queue_packets is None else min(of_bytes, path.queue_packets)


def plumbing() -> list[str]:
    """Shell commands for the namespace: its own veth pair, and which way packets go."""
    lines = [
        "for switch in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $switch ] || echo 1 > $switch; done",  # which speaks unasked
        "ip link add pace-down type veth peer name pace-up",
    ]
    for device in (*PACED_AT.values(), *DELAYED_AT.values()):
        lines += [
            f"ethtool -K {device} {OFFLOADS}",
            f"ip link set dev {device} mtu {MTU_BYTES} up",
            f"tc qdisc add dev {device} handle ffff: ingress",
        ]
    for device, onward, action in (
        ("to-server", "pace-down", DISOWN),
        ("to-client", "pace-up", DISOWN),
        ("pace-up", "to-client", REDIRECT),
        ("pace-down", "to-server", REDIRECT),
    ):
        lines.append(f"tc filter add dev {device} parent ffff: protocol all u32 match u32 0 0 {action.format(onward)}")
    return lines


def htb(direction: Direction, rate_bps: float | None) -> str:
    """Class arguments: one packet of burst and of ceiling burst, so that the rate holds at 100 ms. None: as good as unlimited."""
    rate, burst = (UNSHAPED_BPS, UNSHAPED_BURST_BYTES) if rate_bps is None else (max(rate_bps, FLOOR_BPS), MTU_BYTES)
    bits = f"{round(rate)}bit"
    return f"dev {PACED_AT[direction]} parent 1: classid 1:1 htb rate {bits} ceil {bits} burst {burst} cburst {burst} quantum {MTU_BYTES}"


def netem(direction: Direction, delay_s: float, losses: Losses) -> str:
    """Its arguments."""
    device = f"dev {DELAYED_AT[direction]} root handle 20:"
    return f"{device} netem limit {NETEM_LIMIT_PACKETS} delay {delay_s:.9f}s {losses} rate {ORDERLY_RATE}"


class Tc:
    """The `tc` that owns the namespace and takes commands: a change costs a system call instead of a process. One thread at a time."""

    def __init__(self, spawn: Spawn, name: str) -> None:
        self._name = name
        self._delayed: frozenset[Direction] = frozenset()
        self._made = False
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = spawn(["unshare", "--net", "tc", "-statistics", "-json", "-force", "-batch", "-"], **pipes)
        assert self._process.stdin and self._process.stdout
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._ask("qdisc show")  # once it answers, it is in its namespace

    @property
    def pid(self) -> int:
        """Of the process, and with it of the namespace."""
        return self._process.pid

    def rebuild(self, path: PathSpec, rates_bps: Mapping[Direction, float | None], delayed: Iterable[Direction]) -> None:
        """Make all queues anew, empty, counting from 0; netem in the directions `delayed`, at half the path's round trip and lossless."""
        lines = []
        if self._made:
            lines += [f"qdisc del dev {PACED_AT[direction]} root" for direction in DIRECTIONS]
            lines += [f"qdisc del dev {DELAYED_AT[direction]} root" for direction in self._delayed]
        self._made, self._delayed = True, frozenset(delayed)
        for direction in DIRECTIONS:
            lines += [
                f"qdisc add dev {PACED_AT[direction]} root handle 1: {IP_BYTES} htb default 1",
                f"class add {htb(direction, rates_bps[direction])}",
                f"qdisc add dev {PACED_AT[direction]} parent 1:1 handle 10: {held_limit(path)}",
            ]
            if direction in self._delayed:
                lines.append(f"qdisc add {netem(direction, path.rtt_s / 2, Losses())}")
        self.write(lines)
        self.counters()

    def write(self, commands: Iterable[str]) -> None:
        """Commands that answer nothing; an error of theirs shows at the next `counters`."""
        try:
            self._in.write("".join(f"{command}\n" for command in commands).encode())
            self._in.flush()
        except (BrokenPipeError, ValueError) as error:
            raise TestbedError(f"{self._name}: its tc has ended") from error

    def _ask(self, command: str) -> Any:
        self.write([command])
        if not select.select([self._out], [], [], ANSWER_TIMEOUT_S)[0]:
            raise TestbedError(f"{self._name}: tc did not answer within {ANSWER_TIMEOUT_S} s")
        line = self._out.readline().decode(errors="replace").strip()
        try:
            return json.loads(line)
        except ValueError:
            raise TestbedError(f"{self._name}: tc said {line!r}, wanted counters") from None

    def counters(self) -> dict[Direction, Counters]:
        """Of both directions, now."""
        shown = {(entry["dev"], entry["handle"]): entry for entry in self._ask("qdisc show") if "dev" in entry}
        try:
            queues = {direction: shown[PACED_AT[direction], "10:"] for direction in DIRECTIONS}
            paths = {direction: shown[DELAYED_AT[direction], "20:"] for direction in self._delayed}
        except KeyError as error:
            raise TestbedError(f"{self._name}: tc shows no qdisc {error}, wanted the link's queues") from None
        return {direction: counters_of(queue, paths.get(direction)) for direction, queue in queues.items()}

    def close(self) -> None:
        """End it, and with it the namespace and all in it."""
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            self._in.close()
        self._process.kill()
        self._process.wait()
        self._out.close()


def counters_of(queue: Mapping[str, Any], path: Mapping[str, Any] | None) -> Counters:
    """From what `tc` shows of the bottleneck's queue, which counts IP bytes, and of netem, which counts frames."""
    overlimit = queue["drop_overlimit"] if queue["kind"] == "codel" else queue["drops"]
    lost_bytes = queue["bytes"] - _ip_bytes(path) if path and path["drops"] else 0
    return Counters(
        served_packets=queue["packets"],
        served_bytes=queue["bytes"],
        queue_packets=queue["qlen"],
        queue_bytes=queue["backlog"],
        queue_drops=overlimit,
        codel_drops=queue["drops"] - overlimit,
        delivered_packets=path["packets"] if path else queue["packets"],
        losses=path["drops"] if path else 0,
        lost_bytes=max(lost_bytes, 0),
        flying_packets=path["qlen"] if path else 0,
    )


def _ip_bytes(path: Mapping[str, Any]) -> int:
    """That left netem or are inside it."""
    size: int = path["bytes"] + path["backlog"] - ETHERNET_BYTES * (path["packets"] + path["qlen"])
    return size
