"""What this host is and can do: facts for the header of a run, and probes that try a thing for real. Standard library only.

A probe that could leave something behind, or needs a state of its own, runs in a child process: `python -m testbed.host PROBE`.
"""

import contextlib
import fcntl
import gzip
import importlib.metadata
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.clock import now_ns
from testbed.units import s_from_ns
from testbed.user import User, popen_as

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Programs that can play and show pages. The first is Debian's."""
CHECKOUT = Path(__file__).resolve().parents[1]
PROBE_TIMEOUT_S = 60.0
PACKAGES = (
    "netllm-testbed",
    "mininet",
    "aiohttp",
    "msgspec",
    "numpy",
    "polars",
    "scipy",
    "torch",
    "transformers",
    "peft",
    "gymnasium",
    "distributed",
)
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_RELAY_PRIORITY = 10
WAKE_UPS = 200
"""How many sleeps the timer probe measures."""
_WAKE_UP_S = 0.001


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, those that are installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def host_facts() -> dict[str, object]:
    """What the numbers of a run depend on. Takes milliseconds; `load_1min` is of this moment."""
    return {
        "os": os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": cpu_field("model name") or platform.processor(),
        "virtual_machine": in_virtual_machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "load_1min": round(os.getloadavg()[0], 2),
        "real_time": real_time_allowed(),
        "rt_runtime_us": read_number("/proc/sys/kernel/sched_rt_runtime_us"),
        "timer_hz": kernel_option("CONFIG_HZ"),
        "timer_resolution_s": time.clock_getres(time.CLOCK_MONOTONIC),
        "bf16": bf16_units(),
    }


def in_virtual_machine() -> bool:
    """Whether the processor says so (x86)."""
    return "hypervisor" in cpu_field("flags").split()


def os_name() -> str:
    """`Debian GNU/Linux 12 (bookworm)`, or the kernel's name where no file says."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty when it has none."""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def browser() -> str | None:
    """The program of the browser that is installed, the first of `BROWSERS`; None without one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def browser_version() -> str:
    """As the browser says it; empty without one."""
    found = browser()
    return run([found, "--version"])[1] if found else ""


def bf16_units() -> str:
    """The processor's units for bfloat16; empty when there are none."""
    flags = (cpu_field("flags") or cpu_field("Features")).split()
    return next((flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags), "")


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def congestion_controls() -> tuple[str, ...]:
    """TCP congestion controls that a new namespace can be given."""
    return tuple(_read("/proc/sys/net/ipv4/tcp_available_congestion_control").split())


def kernel_option(name: str) -> str:
    """The value of an option that the kernel was built with; empty when the kernel doesn't tell."""
    text = _read(f"/boot/config-{platform.release()}")
    if not text:
        with contextlib.suppress(OSError), gzip.open("/proc/config.gz", "rt", encoding="utf-8") as file:
            text = file.read()
    return next((line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")), "")


def read_number(path: str) -> int | None:
    """The integer in a file of /proc or /sys; None when there is none."""
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# Probes


def real_time_allowed() -> bool:
    """Whether a process of this user may run under SCHED_FIFO; really tried, in a child."""
    child = os.fork()
    if child == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_RELAY_PRIORITY))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def wake_up_lateness_s(real_time: bool) -> tuple[float, float]:
    """Median and worst of how late a sleep of 1 ms ends, 200 sleeps, in a process of its own, under SCHED_FIFO when `real_time`."""
    median, worst = json.loads(probe("wake_ups", "fifo" if real_time else "other"))
    return median, worst


def namespace_made() -> str:
    """Empty when a network namespace can be made, as Mininet makes one when it is there; else what the kernel said."""
    return _fault(["mnexec", "-n", "true"] if shutil.which("mnexec") else ["unshare", "--net", "true"])


def tap_made() -> str:
    """Empty when a TAP device can be made (in a throw-away namespace), else what the kernel said."""
    return _fault(["unshare", "--net", *_probe_command("tap")])


def run(command: Sequence[str], user: User | None = None, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; 127 when the program is missing, 124 when it took too long."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C"}
    try:
        process = popen_as(user, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    with process:
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return 124, "", f"{command[0]}: no answer within {timeout_s:.0f} s"
    return process.returncode, out.decode(errors="replace").strip(), errors.decode(errors="replace").strip()


def probe(*arguments: str) -> str:
    """Output of a probe of this module, run in a child."""
    code, out, errors = run(_probe_command(*arguments))
    if code != 0:
        raise OSError(errors.splitlines()[-1] if errors else f"probe {arguments[0]} ended with exit code {code}")
    return out


def _probe_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "testbed.host", *arguments]


def _fault(command: Sequence[str]) -> str:
    code, _, errors = run(command)
    return (errors.splitlines()[-1] if errors else f"exit code {code}") if code else ""


def _open_tap() -> None:
    with open("/dev/net/tun", "r+b", buffering=0) as device:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"probe%d", _IFF_TAP | _IFF_NO_PI))


def _measure_wake_ups(scheduler: str) -> None:
    if scheduler == "fifo":
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_RELAY_PRIORITY))
    late_s = []
    for _ in range(WAKE_UPS):
        start_ns = now_ns()
        time.sleep(_WAKE_UP_S)
        late_s.append(s_from_ns(now_ns() - start_ns) - _WAKE_UP_S)
    late_s.sort()
    sys.stdout.write(json.dumps([late_s[WAKE_UPS // 2], late_s[-1]]))


if __name__ == "__main__":
    {"tap": lambda: _open_tap(), "wake_ups": lambda: _measure_wake_ups(sys.argv[2])}[sys.argv[1]]()
