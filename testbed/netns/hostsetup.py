"""What a host of the network is set to (addresses, static neighbours, TCP), as a shell script, and the check that it is so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.errors import TestbedError
from testbed.units import MTU_BYTES

PREFIX_LENGTH = 30
SYSCTLS = {"tcp_slow_start_after_idle": "1", "tcp_no_metrics_save": "1"}
"""Of net.ipv4, beside the congestion control. Slow start after idle is Linux's default: a player pauses when its buffer is full."""
RING_PACKETS = 4000
"""Of a TAP device, for the bursts that come while the relay reads another one."""
RECORDED = ("tcp_congestion_control", *SYSCTLS, "tcp_rmem", "tcp_wmem")


@dataclass(frozen=True)
class Port:
    """An interface of a host and the one neighbour behind it."""

    interface: str
    ip: str
    mac: str
    neighbour_ip: str
    neighbour_mac: str
    unqueued: bool = False
    """Without a queue of its own, in which packets could wait or be lost unseen."""


def script(ports: Sequence[Port], congestion_control: str) -> str:
    """Shell commands that set a host up and then print its state for `check`."""
    values = {"tcp_congestion_control": congestion_control, **SYSCTLS}
    lines = ["for switch in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $switch ] || echo 1 > $switch; done"]
    lines += [f"echo {value} > /proc/sys/net/ipv4/{name}" for name, value in values.items()]
    lines += ["ip -batch - <<END", "link set dev lo up"]
    for port in ports:
        lines += [
            f"link set dev {port.interface} address {port.mac} mtu {MTU_BYTES} up",
            f"address add {port.ip}/{PREFIX_LENGTH} dev {port.interface}",
            f"neighbour replace {port.neighbour_ip} lladdr {port.neighbour_mac} dev {port.interface} nud permanent",
        ]
    lines += [f"link set dev {port.interface} txqueuelen {RING_PACKETS}" for port in ports if port.unqueued]
    lines += ["END", *(f"tc qdisc replace dev {port.interface} root noqueue" for port in ports if port.unqueued)]
    lines += [f'echo "{name} $(cat /proc/sys/net/ipv4/{name})"' for name in RECORDED]
    lines += ['echo "ipv6 $(cat /proc/sys/net/ipv6/conf/*/disable_ipv6 2>/dev/null | sort -u | tr -d "\\n")"']
    lines += [f'echo "{what} $(ip -json {what} show)"' for what in ("address", "neighbour")]
    return "\n".join(lines)


def check(host: str, output: str, ports: Sequence[Port], congestion_control: str) -> dict[str, str]:
    """Compare what `script` printed with what it was to do: TestbedError at the first difference, else the host's TCP settings."""
    seen = dict(line.partition(" ")[::2] for line in output.splitlines())
    wanted = {"tcp_congestion_control": congestion_control, **SYSCTLS}
    if seen.get("ipv6"):
        wanted["ipv6"] = "1"  # IPv6 off for all; empty when the kernel has none
    for name, value in wanted.items():
        _compare(host, name, seen.get(name), value)
    interfaces = {entry["ifname"]: entry for entry in json.loads(seen["address"])}
    neighbours = {entry["dst"]: entry for entry in json.loads(seen["neighbour"] or "[]")}
    for port in ports:
        _check_port(host, port, interfaces.get(port.interface, {}), neighbours.get(port.neighbour_ip, {}))
    return {name: " ".join(seen[name].split()) for name in RECORDED}


def _check_port(host: str, port: Port, interface: Mapping[str, Any], neighbour: Mapping[str, Any]) -> None:
    addresses = [(address["local"], address["prefixlen"]) for address in interface.get("addr_info", [])]
    what = f"interface {port.interface}"
    _compare(host, f"{what}, hardware address", interface.get("address"), port.mac)
    _compare(host, f"{what}, MTU", interface.get("mtu"), MTU_BYTES)
    _compare(host, f"{what}, up", "UP" in interface.get("flags", []), True)
    _compare(host, f"{what}, addresses", addresses, [(port.ip, PREFIX_LENGTH)])
    if port.unqueued:
        _compare(host, f"{what}, qdisc", interface.get("qdisc"), "noqueue")
        _compare(host, f"{what}, ring", interface.get("txqlen"), RING_PACKETS)
    state = (neighbour.get("lladdr"), neighbour.get("state"), neighbour.get("dev"))
    _compare(host, f"neighbour {port.neighbour_ip}", state, (port.neighbour_mac, ["PERMANENT"], port.interface))


def _compare(host: str, what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise TestbedError(f"host {host}: {what} is {seen}, wanted {wanted}")
