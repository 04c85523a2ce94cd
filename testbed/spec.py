"""The specification of an experiment: one frozen dataclass whose field docstrings are the `--help`, and its TOML form."""

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro

from testbed.errors import UserError, suggestion
from traces.trace import MAX_DURATION_S


def _comma_integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of integers such as 1,2,3") from None


_CommaIntegers = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="1,2,...",
        instance_from_str=lambda args: _comma_integers(args[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]


MOST_EXECUTORS = 60
"""As many links as one relay carries, less a few."""


OF_ONE_TASK = {
    "abr": ("player", "video", "show"),
    "cjs": ("workload", "jobs", "executors", "interarrival", "time_scale", "bytes_scale", "containers", "cluster"),
    "vp": ("history", "horizon"),
}
"""Options that mean nothing for the other tasks."""
NOT_FOR_CJS = ("uplink", "trials", "parallel", "chunks", "offset_s", "queue_packets", "aqm", "link")
"""Of the others those that `cjs` has no use for: its workloads are counted by seeds, its links are the relay's, with droptail."""
NOT_FOR_CLUSTER = ("trace", "rtt_ms", "queue", "cc", "awake", "repeats", "containers")
"""Options of emulated links and hosts, which `--cluster` has none of."""

UNREAD = {
    "cjs": ("trace", "rtt_ms", "queue", "cc", "deadline_ms", "time_scale", "bytes_scale", "containers", "cluster"),
    "vp": ("trace", "uplink", "chunks", "offset_s", "rtt_ms", "queue", "queue_packets", "aqm", "cc", "link", "deadline_ms"),
}
"""Options that a task's simulator never reads: they may be given, for an experiment is simulated as it was emulated, and a note says so."""


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


@dataclass(frozen=True)
class Experiment:
    """A paired grid of trials: every policy meets the same traces, offsets and seeds."""

    task: Literal["abr", "cjs", "vp"] = "abr"
    """The workload: abr, adaptive bitrate streaming; cjs, cluster job scheduling; vp, viewport prediction for 360-degree video."""
    trace: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A catalogued set (`fcc`, `fcc/test`, `fcc/test:FILE`; see `list`), or a file or folder in a known format. Default: fcc."""
    uplink: str | None = None
    """Traces of the way back, named as for --trace (`lte` is `lte/up` here): one for all trials, or one for each downlink trace, paired by
    name without ending (`X.down` with `X.up`). Default: delay only."""
    policies: str = ""
    """Default: netllm,robust_mpc,bola,bba; for cjs netllm,decima,srpt_cap,fair,fifo_half, for vp netllm,track,mlp,linear_l1,static, as far
    as they are trained. Comma-separated: names (see `list`), with options (`fixed+level=3`), your own file (`~/mine.py`) or
    `package.module:Class`."""
    player: Literal["headless", "dashjs", "dashjs_sync"] = "headless"
    """The player: headless behaves like dash.js 5; dashjs is dash.js in Chromium; dashjs_sync the same, blocked while a decision is due."""
    trials: int | Literal["all"] = 3
    """How many traces of the set each policy meets, spread evenly over the set; or `all`. With --task vp --simulate: how many viewers."""
    seeds: _CommaIntegers = (1,)
    """Seeds of the policies and of the traces' random losses; each gives one trial per policy and trace."""
    parallel: int | None = None
    """Lanes side by side, at most 32, each with its own emulated path. Default: all trials of as many traces as fit in 12
    lanes, with a browser in 4."""
    chunks: int = 48
    """Chunks to play, 2 to 48."""
    video: str | None = None
    """The video whose chunk sizes are served: video1, video2, synthetic, or a file in SABRE's format. Default: video1, or synthetic."""
    offset_s: float = 0.0
    """Where in the trace a trial starts, seconds; in the uplink's, too. A trace that is shorter is begun anew so often."""
    rtt_ms: float = 80.0
    """Round-trip time of the path, milliseconds."""
    queue: int = 100_000
    """Bound of the bottleneck's queue, bytes."""
    queue_packets: int | None = None
    """A second bound of the queue, packets. Default: none."""
    aqm: Literal["droptail", "codel"] = "droptail"
    """What the queue drops: droptail, what finds it full; codel (RFC 8289), at its head too when packets wait over 5 ms for 100 ms."""
    cc: str = "cubic"
    """TCP congestion control of all hosts."""
    link: Literal["userspace", "python", "kernel"] = "userspace"
    """Back end of the links: the user-space relay, its readable reference in Python, or HTB and netem."""
    repeats: int = 1
    """How often a trial is played again, at the end of the run, because its link failed its verdict (which knows no QoE); 0: never."""
    awake: bool = True
    """In a virtual machine, keep all cores spinning between packets, at the lowest priority: a host may be slow to run a halted one again.
    What spins counts in the host's busy time and CPU pressure."""
    deadline_ms: float = 1000.0
    """A decision later than this is taken by the player's local rule, and recorded as a fallback."""
    llm: str | None = None
    """Backbone of the policy `netllm`: a Hugging Face causal language model (name or folder). Default: the embedded one of its adapter."""
    workload: Literal["tpch", "tpch_own"] = "tpch"
    """cjs: profiles that jobs are drawn from: tpch, by Decima's authors, or tpch_own, by this project on small data. Default: tpch, or
    tpch_own where it can't be had."""
    jobs: int = 8
    """cjs: jobs of a workload; each seed draws one."""
    executors: int = 10
    """cjs: executors, one Dask worker each, at most 60."""
    interarrival: float = 25.0
    """cjs: mean time between arrivals, seconds of the workload."""
    time_scale: float = 10.0
    """cjs: seconds of the workload that pass in one second. Tasks, traces, delays and the bytes that travel shrink alike."""
    bytes_scale: float = 0.001
    """cjs: bytes that travel for each that the workload's stages exchange; 0.001 suits access links of some Mbit/s."""
    containers: Literal["auto", "always", "never"] = "auto"
    """cjs: executors as Docker containers, with limits: auto, where a Docker engine answers; always; or never."""
    cluster: str | None = None
    """cjs: address of a Dask scheduler, whose workers are the executors; no link is emulated then."""
    history: float = 2.0
    """vp: seconds of head movement that policies are told, at most 5."""
    horizon: float = 4.0
    """vp: seconds that they predict, 3 to 6."""
    show: bool = False
    """Serve a page on loopback that shows the lanes live: picture (of browsers), trace, buffer, decisions."""
    simulate: bool = False
    """Run the same experiment on the virtual clock: no root, no network, the same records. For vp: how far predictions are off on the test
    split."""
    out: str = "results"
    """Folder in which the run's own result folder is made."""

    def __post_init__(self) -> None:
        checks = (
            ("chunks", self.chunks, 2 <= self.chunks <= 48, "2 to 48"),
            ("trials", self.trials, self.trials == "all" or int(self.trials) >= 1, "a number of at least 1, or all"),
            ("parallel", self.parallel, self.parallel is None or 1 <= self.parallel <= 32, "1 to 32"),
            ("rtt_ms", self.rtt_ms, math.isfinite(self.rtt_ms) and 0 <= self.rtt_ms <= 10_000, "0 to 10000"),
            ("queue", self.queue, 3_000 <= self.queue <= 100_000_000, "3000 to 100000000 bytes"),
            ("queue_packets", self.queue_packets, self.queue_packets is None or 2 <= self.queue_packets <= 100_000, "2 to 100000"),
            ("uplink", repr(self.uplink), self.uplink is None or bool(self.uplink.strip()), "a set, a folder or a file"),
            ("llm", repr(self.llm), self.llm is None or bool(self.llm.strip()), "a name or a folder"),
            ("cluster", repr(self.cluster), self.cluster is None or bool(self.cluster.strip()), "an address"),
            ("cc", repr(self.cc), bool(self.cc.strip()), "a name"),
            ("repeats", self.repeats, 0 <= self.repeats <= 9, "0 to 9"),
            ("deadline_ms", self.deadline_ms, math.isfinite(self.deadline_ms) and self.deadline_ms > 0, "more than 0"),
            ("offset_s", self.offset_s, 0 <= self.offset_s <= MAX_DURATION_S, f"0 to {MAX_DURATION_S:.0f} s"),
            ("seeds", self.seeds, bool(self.seeds) and min(self.seeds) >= 0 and max(self.seeds) < 2**63, "numbers from 0 to 2^63-1"),
            ("seeds", self.seeds, len(set(self.seeds)) == len(self.seeds), "each seed once"),
            ("policies", repr(self.policies), not self.policies or bool(self.policy_references), "at least one policy"),
            ("jobs", self.jobs, 1 <= self.jobs <= 10_000, "1 to 10000"),
            ("executors", self.executors, 1 <= self.executors <= MOST_EXECUTORS, f"1 to {MOST_EXECUTORS}"),
            ("interarrival", self.interarrival, 0 < self.interarrival <= 1e6, "more than 0, at most 1000000 s"),
            ("time_scale", self.time_scale, 0.1 <= self.time_scale <= 1000, "0.1 to 1000"),
            ("bytes_scale", self.bytes_scale, 0 <= self.bytes_scale <= 100, "0 to 100"),
            ("history", self.history, 0.2 <= self.history <= 5 and _whole(5 * self.history), "0.2 to 5 s, a multiple of 0.2"),
            ("horizon", self.horizon, 3 <= self.horizon <= 6 and _whole(5 * self.horizon), "3 to 6 s, a multiple of 0.2"),
            ("show", self.show, not (self.show and self.simulate), "false with --simulate"),
        )
        for name, seen, ok, wanted in checks:
            if not ok:
                raise UserError(f"--{name.replace('_', '-')} is {seen}, wanted {wanted}")
        self._check_for_task()
        if len(set(self.policy_references)) < len(self.policy_references):
            raise UserError(f"--policies is {self.policies}, wanted each policy once")

    def _check_for_task(self) -> None:
        """Refuse what the task has no use for: a run must not seem to have been made with it."""
        useless = {name: f"--task {task}" for task, names in OF_ONE_TASK.items() if task != self.task for name in names}
        if self.task == "cjs":
            useless |= dict.fromkeys(NOT_FOR_CJS, "--task abr and vp")
        if self.cluster and not self.simulate:
            useless |= dict.fromkeys(NOT_FOR_CLUSTER, "emulated executors, not those of --cluster")
        for field in dataclasses.fields(self):
            seen = getattr(self, field.name)
            if field.name in useless and seen != field.default:
                raise UserError(f"--{field.name.replace('_', '-')} is {seen}, wanted nothing: it is for {useless[field.name]}")

    @property
    def unread(self) -> tuple[str, ...]:
        """Options with their values that were given although the simulator, which is asked for, doesn't read them."""
        names = UNREAD.get(self.task, ()) if self.simulate else ()
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        return tuple(f"--{name.replace('_', '-')} {_option_value(given[name])}" for name in names if name in given)

    @property
    def policy_references(self) -> tuple[str, ...]:
        """The policies asked for, one reference each; none: the task's default."""
        return tuple(part.strip() for part in self.policies.split(",") if part.strip())

    @property
    def trace_references(self) -> tuple[str, ...]:
        """The traces asked for; `fcc` when none is."""
        return self.trace or ("fcc",)

    def to_toml(self) -> str:
        """The experiment as TOML that `from_toml` reads back to an equal one."""
        lines = ["# An experiment of the testbed; run it again: testbed/run.py --spec THIS_FILE"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                lines.append(f"{field.name} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"


def _option_value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return msgspec.json.encode(value).decode()


def from_toml(path: Path) -> Experiment:
    """Read an experiment. A missing file, bad TOML, an unknown key or a value of the wrong type is a `UserError` naming file and key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--spec {path}: {error.strerror}, wanted a readable experiment.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}, wanted TOML") from None
    known = {field.name for field in dataclasses.fields(Experiment)}
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}, {suggestion(key, sorted(known))}")
    try:
        return msgspec.convert(values, Experiment)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
