"""Senders and receivers of the benchmark, each a process in a host: `python -m testbed.bench.traffic KIND`, one line of JSON on its input.

A sender waits for a second line, `go`. What it has to say comes as one line of JSON at its end. Python suffices: a TCP sender hands the
kernel 256 KiB a call and so is bound by the kernel (as iperf3 is), and a datagram costs about 5 us, several times less than any emulator
in user space needs for it.
"""

import contextlib
import json
import socket
import struct
import sys
import time
from typing import Any

from testbed.clock import now_ns, now_s
from testbed.units import MTU_BYTES, UDP_HEADERS_BYTES

PAYLOAD_BYTES = MTU_BYTES - UDP_HEADERS_BYTES
PROBE_BYTES = 100
TICK_S = 0.01
GOLDEN_RATIO = 0.6180339887
"""Its multiples fall most evenly between whole numbers."""
_BUFFER_BYTES = 2**18
SO_SNDBUFFORCE = 32
_STAMP = struct.Struct("<QQ")


def _udp(wanted: dict[str, Any]) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2**23)
    sender.bind((wanted["from"], wanted["port"]))
    sender.connect((wanted["to"], wanted["port"]))
    return sender


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _wait_for_go() -> None:
    _say(ready=True)
    sys.stdin.readline()


def scheduled(wanted: dict[str, Any]) -> None:
    """Datagrams by a schedule: by tick i, `counts[i]` of them. A datagram that the kernel refuses is not sent."""
    sender, sent, refused = _udp(wanted), 0, 0
    sender.setblocking(False)
    rest = bytes(PAYLOAD_BYTES - _STAMP.size)
    _wait_for_go()
    begin_s = now_s()
    for tick, due in enumerate(wanted["counts"]):
        time.sleep(max(begin_s + tick * TICK_S - now_s(), 0))
        while sent + refused < due:
            try:
                sender.send(_STAMP.pack(sent, now_ns()) + rest)
                sent += 1
            except (BlockingIOError, OSError):
                refused += 1
    _say(sent=sent, refused=refused)


def probes(wanted: dict[str, Any]) -> None:
    """Small datagrams, `count` of them, one in each `interval_s`, each time at another moment of it.

    An emulator that counts in whole milliseconds would seem exact to probes that come at whole milliseconds.
    """
    sender, rest = _udp(wanted), bytes(PROBE_BYTES - _STAMP.size)
    _wait_for_go()
    begin_s = now_s()
    for number in range(wanted["count"]):
        due = number + number * GOLDEN_RATIO % 1 / 2
        time.sleep(max(begin_s + due * wanted["interval_s"] - now_s(), 0))
        with contextlib.suppress(OSError):
            sender.send(_STAMP.pack(number, now_ns()) + rest)
    _say(sent=wanted["count"])


def flood(wanted: dict[str, Any]) -> None:
    """Datagrams of full size as fast as one process can for `seconds`."""
    sender, sent, refused = _udp(wanted), 0, 0
    payload = bytes(PAYLOAD_BYTES)
    _wait_for_go()
    begin_s = now_s()
    end_s = begin_s + wanted["seconds"]
    while now_s() < end_s:
        for _ in range(16):
            try:
                sender.send(payload)
                sent += 1
            except OSError:
                refused += 1
    _say(sent=sent, refused=refused, seconds=now_s() - begin_s)


def tcp_send(wanted: dict[str, Any]) -> None:
    """As much as the connection takes for `seconds`."""
    payload = bytes(_BUFFER_BYTES)
    _wait_for_go()
    with socket.create_connection((wanted["to"], wanted["port"]), timeout=10) as sender:
        sender.settimeout(1.0)
        end_s = now_s() + wanted["seconds"]
        while now_s() < end_s:
            with contextlib.suppress(TimeoutError):
                sender.send(payload)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # what still waits is thrown away
    _say(done=True)


def tcp_receive(wanted: dict[str, Any]) -> None:
    """Accept one connection, throw away what comes."""
    buffer = bytearray(_BUFFER_BYTES)
    with socket.create_server((wanted["from"], wanted["port"])) as listener:
        _say(ready=True)
        receiver, _ = listener.accept()
    with receiver, contextlib.suppress(ConnectionResetError):
        while receiver.recv_into(buffer):
            pass


def sink(wanted: dict[str, Any]) -> None:
    """A socket that is bound and never read: what is sent to it is dropped without an answer."""
    with _udp(wanted):
        _wait_for_go()


KINDS = {"scheduled": scheduled, "probes": probes, "flood": flood, "tcp_send": tcp_send, "tcp_receive": tcp_receive, "sink": sink}

if __name__ == "__main__":
    KINDS[sys.argv[1]](json.loads(sys.stdin.readline()))
