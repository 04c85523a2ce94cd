"""`run.py doctor`: what this host can do, what each lack means, and what to do about it. Changes nothing; standard library only.

Works before the set-up too: then the table is plain, and what needs the Python packages to be looked at is said to be unknown.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed import host
from testbed.errors import UserError
from testbed.host import host_facts, versions
from testbed.setup import dashjs, encode, install, native
from testbed.units import ms_from_s

GIGABYTE = 1e9
MOST_LATE_S = 1e-3
"""A trial is invalid when more than a hundredth of its packets is later than that."""


@dataclass(frozen=True)
class Lack:
    """What it means when something is missing, and what to do about it."""

    meaning: str
    remedy: str
    stops: bool = False
    """Whether the main job can't run."""


LACKS = {
    "root": Lack("no network can be emulated; the simulator works", "sudo python3 testbed/run.py ..., or --simulate", stops=True),
    "cores": Lack("relay, players and language model share one core and run late", "2 or more"),
    "load": Lack("other work takes the processor: decisions and packets come late", "stop it while experiments run"),
    "memory": Lack("the language model and the players may not fit", "4 GB or more"),
    "timer resolution": Lack("packets leave in bursts, one each tick", "a kernel with high-resolution timers"),
    "network namespaces": Lack("no hosts can be emulated", "run on the host itself, or in a container with all rights", stops=True),
    "TAP devices": Lack("the user-space link, which is the default, can't work", "modprobe tun; in a container all rights", stops=True),
    "real-time scheduling": Lack("packets leave late on a busy host, and trials become invalid", "sudo; in a container CAP_SYS_NICE"),
    "timer lateness": Lack(
        "packets leave late; more than 1 ms is too much for a trial",
        "an idle machine, with a processor of its own; a virtual one does better while it is kept awake (--awake, the default)",
    ),
    "relay in C": Lack("links use the Python relay, which is slower", "scripts/setup as root, which installs a compiler"),
    "netem": Lack("--link kernel can't delay packets; the default link doesn't need it", "modprobe sch_netem, or a kernel that has it"),
    "congestion control": Lack("--cc cubic, the default, can't be set", "modprobe tcp_cubic, or name another with --cc", stops=True),
    "packages": Lack("the set-up comes first", "scripts/setup, or any run of the main job", stops=True),
    "Mininet": Lack("no network can be emulated; the simulator works", "scripts/setup as root", stops=True),
    "PyTorch": Lack("the policy netllm can't run; the others can", "scripts/setup", stops=True),
    "bfloat16": Lack("the language model computes in float32, and more slowly", "--deadline-ms, if decisions come late"),
    "backbone": Lack("the first run converts the language model's weights, which takes some 15 s", "scripts/setup"),
    "git": Lack("data sets can't be fetched, and runs don't record their commit", "apt-get install git"),
    "Dask": Lack("no --task cjs on emulated hosts or with --cluster; --simulate works", "scripts/setup"),
    "Docker engine": Lack("the executors of --task cjs run as processes; --containers always can't work", "start dockerd"),
    "Chromium": Lack("no --player dashjs and no tests in a real browser", "scripts/setup browser as root"),
    "dash.js": Lack("--player dashjs fetches it first", "scripts/setup browser"),
    "film": Lack("--player dashjs encodes it first, which takes about a minute", "scripts/setup browser"),
    "data sets": Lack("a set is fetched when it's asked for; fcc is modelled when it can't be fetched", "scripts/fetch_data NAME"),
    "disk": Lack("the set-up and long runs may not fit", "2 GB, more for long runs"),
}
"""By the name of the finding."""
_TORCH_PROBE = """
import json, torch
from netllm.backbone import EMBEDDED
from testbed.cache import cache_folder
weights = [str(path.parent) for path in cache_folder().glob(EMBEDDED + "-*/model.safetensors")]
print(json.dumps([torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name(0), weights]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    verdict: str
    """`ok`; `lack`, which limits what can be done; `stop`, without which the main job can't run; `unknown`."""
    seen: str

    @property
    def advice(self) -> str:
        """What a lack means and what to do; empty when there is none."""
        lack = LACKS.get(self.name)
        return f"{lack.meaning} -> {lack.remedy}" if lack and self.verdict in ("lack", "stop") else ""


def main(arguments: Sequence[str]) -> int:
    """`doctor [--json]`: tell all findings; 0 when the main job can run here, else 1."""
    if set(arguments) - {"--json"}:
        raise UserError(f"doctor takes --json or nothing, got {' '.join(arguments)!r}")
    findings = examine()
    stops = [finding.name for finding in findings if finding.verdict == "stop"]
    if arguments:
        told = {"ready": not stops, "findings": [{**asdict(finding), "advice": finding.advice} for finding in findings]}
        sys.stdout.write(json.dumps({**told, "host": host_facts(), "versions": versions()}, indent=1) + "\n")
    else:
        _show(findings)
        sys.stdout.write(f"The main job can't run here yet: {', '.join(stops)}.\n" if stops else "The main job can run here.\n")
    return 1 if stops else 0


def examine() -> list[Finding]:
    """All findings, in an order to be read in."""
    recipe = install.Recipe()
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        _kernel,
        _isolation,
        _real_time,
        lambda: _relay(recipe.checkout),
        _netem,
        lambda: _packages(recipe),
        lambda: _language_model(recipe),
        _programs,
        _data_sets,
        lambda: _disk(recipe.checkout),
    )
    return [finding for check in checks for finding in check()]


def _judge(name: str, good: bool, seen: str) -> Finding:
    return Finding(name, "ok" if good else "stop" if LACKS[name].stops else "lack", seen)


def _machine() -> Iterator[Finding]:
    root = os.geteuid() == 0
    cores, load, memory = len(os.sched_getaffinity(0)), os.getloadavg()[0], host.memory_bytes()
    yield _judge("root", root, "yes" if root else f"no (user id {os.geteuid()})")
    yield _judge("cores", cores >= 2, f"{cores}, {host_facts()['cpu_model']}")
    yield _judge("load", load < cores / 2, f"{load:.1f} in the last minute")
    yield _judge("memory", memory >= 4 * GIGABYTE, f"{memory / GIGABYTE:.1f} GB")


def _kernel() -> Iterator[Finding]:
    facts, known = host_facts(), host.congestion_controls()
    yield Finding("kernel", "ok", f"{facts['kernel']}, {facts['os']}{', virtual machine' if facts['virtual_machine'] else ''}")
    hz = f", {facts['timer_hz']} ticks a second" if facts["timer_hz"] else ""
    yield _judge("timer resolution", float(str(facts["timer_resolution_s"])) <= 1e-6, f"{facts['timer_resolution_s']} s{hz}")
    yield _judge("congestion control", "cubic" in known, ", ".join(known))


def _isolation() -> Iterator[Finding]:
    for name, try_it in (("network namespaces", host.namespace_made), ("TAP devices", host.tap_made)):
        if os.geteuid() == 0:
            fault = try_it()
            yield _judge(name, not fault, fault or "yes")
        else:
            yield Finding(name, "unknown", "only root can try")


def _real_time() -> Iterator[Finding]:
    allowed = host.real_time_allowed()
    budget, period = (host.read_number(f"/proc/sys/kernel/sched_rt_{name}_us") for name in ("runtime", "period"))
    share = f", at most {budget / period:.0%} of the time" if budget and period and budget > 0 else ""
    yield _judge("real-time scheduling", allowed, f"SCHED_FIFO{share}" if allowed else "refused")
    try:
        median_s, worst_s = host.wake_up_lateness_s(allowed)
    except OSError as error:
        yield Finding("timer lateness", "unknown", str(error))
        return
    lateness = f"median {ms_from_s(median_s):.3f} ms, worst {ms_from_s(worst_s):.3f} ms"
    yield _judge("timer lateness", worst_s < MOST_LATE_S, f"{lateness}, in {host.WAKE_UPS} sleeps of 1 ms")


def _relay(checkout: Path) -> Iterator[Finding]:
    program = native.built(checkout)
    if program is None:
        yield _judge("relay in C", False, native.fault(checkout) or "not built yet")
        return
    code, _, errors = host.run([str(program)])
    runs = code == 2 and errors.startswith("usage: relay")
    yield _judge("relay in C", runs, str(program) if runs else f"{program} does not run here: {errors or f'exit code {code}'}")


def _netem() -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding("netem", "unknown", "only root can try")
        return
    try:
        from testbed.shapers.kernel import netem_available
    except ImportError as error:
        yield Finding("netem", "unknown", f"not set up yet ({error})")
        return
    available = netem_available()
    yield _judge("netem", available, "yes" if available else "no")


def _packages(recipe: install.Recipe) -> Iterator[Finding]:
    try:
        missing = install.lacks(recipe, ["run"])
    except UserError as error:
        missing = (str(error),)
    yield _judge("packages", not missing, f"missing: {'; '.join(missing)}" if missing else "all are there")
    mininet = importlib.util.find_spec("mininet") is not None and shutil.which("mnexec") is not None
    yield _judge("Mininet", mininet, versions().get("mininet", "yes") if mininet else "no")


def _language_model(recipe: install.Recipe) -> Iterator[Finding]:
    code, out, errors = host.run([str(recipe.python), "-c", _TORCH_PROBE], recipe.user)
    if code != 0:
        yield _judge("PyTorch", False, (errors.splitlines() or [f"exit code {code}"])[-1])
        return
    version, gpu, weights = json.loads(out)
    yield _judge("PyTorch", True, f"{version}, {gpu or 'no GPU (none is needed)'}")
    yield _judge("bfloat16", bool(host.bf16_units()), host.bf16_units() or "no instructions for it")
    yield _judge("backbone", bool(weights), weights[0] if weights else "not converted yet")


def _programs() -> Iterator[Finding]:
    yield _version("git", ["git", "--version"])
    dask = importlib.util.find_spec("distributed") is not None
    yield _judge("Dask", dask, versions().get("distributed", "yes") if dask else "no")
    yield _version("Docker engine", ["docker", "version", "--format", "{{.Server.Version}}"])
    yield _version("Chromium", [host.browser() or host.BROWSERS[0], "--version"])
    yield _judge("dash.js", dashjs.fetched(), dashjs.VERSION if dashjs.fetched() else "not fetched yet")
    yield _judge("film", encode.made(), str(encode.film_folder()) if encode.made() else "not encoded yet")


def _version(name: str, command: Sequence[str]) -> Finding:
    code, out, errors = host.run(command, timeout_s=10)
    return _judge(name, code == 0, (out or "yes") if code == 0 else (errors.splitlines() or [f"exit code {code}"])[0])


def _data_sets() -> Iterator[Finding]:
    try:
        from traces.store import list_sets
    except ImportError as error:
        yield Finding("data sets", "unknown", f"not set up yet ({error})")
        return
    listed = list_sets()
    have, lacking = [s.name for s in listed if s.present], [s.name for s in listed if not s.present]
    yield _judge("data sets", not lacking, f"{', '.join(have) or 'none'}{'; not here: ' + ', '.join(lacking) if lacking else ''}")


def _disk(checkout: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(checkout).free
    yield _judge("disk", free > 2 * GIGABYTE, f"{free / GIGABYTE:.0f} GB free")


def _show(findings: Sequence[Finding]) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for finding in findings:
            sys.stdout.write(f"{finding.verdict:8} {finding.name}: {finding.seen}\n")
            if finding.advice:
                sys.stdout.write(f"{'':9}{finding.advice}\n")
        return
    colours = {"ok": "green", "lack": "yellow", "stop": "red", "unknown": "yellow"}
    table = Table("", "what", "seen here, and what a lack means -> what to do")
    for finding in findings:
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(f"[{colours[finding.verdict]}]{finding.verdict}[/]", finding.name, escape(finding.seen) + advice)
    Console().print(table)
