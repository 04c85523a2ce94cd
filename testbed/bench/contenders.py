"""Who is compared."""

from testbed.bench.lanes import Contender, OwnLink
from testbed.bench.mahimahi import Mahimahi
from testbed.bench.mininet_lanes import NoEmulator, TcLink
from testbed.bench.offloaded import OffloadedLink

BASELINE = NoEmulator("veth", "no emulator: a veth pair", "#999999")
CONTENDERS: tuple[Contender, ...] = (
    OwnLink("relay", "this testbed, relay in C", "#0b6e4f", back_end="userspace"),
    OffloadedLink("relay_gso", "this testbed, relay in C with GSO", "#3a9d7a"),
    OwnLink("python", "this testbed, relay in Python", "#7fb069", back_end="python"),
    OwnLink("kernel", "this testbed, kernel (HTB) at constant rate", "#5b6c8f", ("rate",), back_end="kernel"),
    Mahimahi("mahimahi", "Mahimahi as shipped", "#c8553d"),
    Mahimahi("mahimahi_fifo", "Mahimahi, its processes under chrt -f 50", "#e9a15b", real_time=True),
    TcLink("tclink_1s", "Mininet TCLink, tc change each 1 s", "#8d6a9f", step_s=1.0),
    TcLink("tclink_500ms", "Mininet TCLink, tc change each 500 ms", "#b79ec7", step_s=0.5),
    BASELINE,
)
"""In the order of tables."""
