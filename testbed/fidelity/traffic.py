"""Bulk traffic between the hosts of a lane, as simple as can be: `python -m testbed.fidelity.traffic ROLE IP PORT ...`.

Standard library only.


| role | further arguments | does |
| --- | --- | --- |
| `tcp-sink`, `udp-sink` | - | listens at IP and PORT, says `ready`, throws away what comes |
| `tcp-send` | seconds | says `ready`, waits for a line, sends as much as goes for so long |
| `udp-send` | seconds, bit/s | the same in packets of 1500 IP bytes, evenly; each begins with its number, so that no two are alike |
"""

import contextlib
import socket
import struct
import sys
import threading
import time

from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.units import MTU_BYTES, UDP_HEADERS_BYTES, bytes_per_s_from_bps

PAYLOAD_BYTES = MTU_BYTES - UDP_HEADERS_BYTES
"""Of a datagram that fills an IP packet."""
BUFFER_BYTES = 2**18
SO_RCVBUFFORCE = 33
NUMBER = struct.Struct("<Q")


def tcp_sink(ip: str, port: int) -> None:
    """Accept connections until killed."""
    with socket.create_server((ip, port)) as listener:
        _say_ready()
        while True:
            threading.Thread(target=_discard, args=(listener.accept()[0],), daemon=True).start()


def udp_sink(ip: str, port: int) -> None:
    """Receive until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**23)
        one.bind((ip, port))
        _say_ready()
        _discard(one)


def _discard(one: socket.socket) -> None:
    buffer = bytearray(BUFFER_BYTES)
    try:
        while one.recv_into(buffer) or one.type == socket.SOCK_DGRAM:
            pass
    except ConnectionError:  # how a sender ends
        one.close()


def tcp_send(ip: str, port: int, seconds: float) -> None:
    """Keep a connection's buffer full; at the end reset it, so that nothing goes on being sent."""
    _wait_for_go()
    end_s = now_s() + seconds
    with contextlib.suppress(TimeoutError), socket.create_connection((ip, port), seconds) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        data = bytes(BUFFER_BYTES)
        while (left_s := end_s - now_s()) > 0:
            one.settimeout(left_s)
            one.send(data)


def udp_send(ip: str, port: int, seconds: float, rate_bps: float) -> None:
    """Send what is due, then sleep until the next datagram is."""
    _wait_for_go()
    packets_per_s = bytes_per_s_from_bps(rate_bps) / MTU_BYTES
    rest = bytes(PAYLOAD_BYTES - NUMBER.size)
    begin_s, sent = now_s(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        while (passed_s := now_s() - begin_s) < seconds:
            while sent <= passed_s * packets_per_s:
                one.sendto(NUMBER.pack(sent) + rest, (ip, port))
                sent += 1
            time.sleep(max(begin_s + sent / packets_per_s - now_s(), 0))


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _wait_for_go() -> None:
    _say_ready()
    sys.stdin.readline()


def main(arguments: list[str]) -> None:
    """Play the role."""
    match arguments:
        case ["tcp-sink", ip, port]:
            tcp_sink(ip, int(port))
        case ["udp-sink", ip, port]:
            udp_sink(ip, int(port))
        case ["tcp-send", ip, port, seconds]:
            tcp_send(ip, int(port), float(seconds))
        case ["udp-send", ip, port, seconds, rate_bps]:
            udp_send(ip, int(port), float(seconds), float(rate_bps))
        case _:
            raise TestbedError(f"traffic got {arguments}, wanted a role, an address and a port")


if __name__ == "__main__":
    main(sys.argv[1:])
