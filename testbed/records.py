"""The rows a run leaves behind. One struct per table; names carry units; `None` means not measured."""

from typing import Any

import msgspec

from testbed.records_trial import TrialBase
from testbed.records_vp import ViewingRow, ViewingTrialRow


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True, tag="chunk", tag_field="event"):
    """One chunk. Times count from the trial's first media request, seconds."""

    trial_id: str
    index: int
    level: int
    bitrate_bps: int
    size_bytes: int
    request_s: float
    first_byte_s: float
    end_s: float
    download_s: float
    rebuffer_s: float
    buffer_s: float
    waited_s: float
    qoe: float


class DecisionRow(msgspec.Struct, frozen=True, kw_only=True, tag="decision", tag_field="event"):
    """One decision. `latency_s` is what the player waited; `policy_s` what the policy computed (None when no answer came)."""

    trial_id: str
    chunk_index: int
    at_s: float
    level: int
    latency_s: float
    policy_s: float | None
    source: str
    """`policy`, or `fallback` when the player's local rule answered."""
    reason: str
    """Empty, or why it fell back: `late`, `invalid`, `error`, `unreachable`."""


class StallRow(msgspec.Struct, frozen=True, kw_only=True, tag="stall", tag_field="event"):
    """Playback stood still from `start_s` to `end_s` (start-up is not a stall)."""

    trial_id: str
    start_s: float
    end_s: float


class PlaybackEndRow(msgspec.Struct, frozen=True, kw_only=True, tag="playback_end", tag_field="event"):
    """How a playback ended: the player's last line. `startup_s + played_s + rebuffer_s + hiccup_s` is `wall_s`."""

    trial_id: str
    end_reason: str
    """`complete`, or what ended it early."""
    startup_s: float
    played_s: float
    rebuffer_s: float
    wall_s: float
    detail: str = ""
    """One sentence on an early end."""
    began_at_s: float | None = None
    """The first media request, seconds on CLOCK_MONOTONIC; None when there was none or the clock was virtual."""
    throughput_bps: float | None = None
    """dash.js 5's estimate at the end; None when not measured."""
    hiccup_s: float = 0.0
    """Playback stood still with media in the buffer: a browser that got no processor. No stall of the network's."""
    waited_for_core_s: float = 0.0
    """By so much the player's times are late because it waited for a core of the host (`players.waits`); 0 where nobody counts."""


class LinkRow(msgspec.Struct, frozen=True, kw_only=True, tag="link", tag_field="event"):
    """100 ms of one direction of a lane's link. `allowed` = delivered capacity + wasted (nothing was waiting); IP bytes."""

    trial_id: str
    direction: str
    start_s: float
    allowed_bytes: float
    delivered_bytes: float
    wasted_bytes: float
    dropped_bytes: float
    queue_bytes: float
    link: str = ""
    """Whose, where a trial has several."""
    lost_bytes: float = 0.0
    """Of the delivered ones, lost at random after the bottleneck, as the trace says."""


class TrialRow(TrialBase, frozen=True, kw_only=True, tag="trial", tag_field="event"):
    """One playback: one policy, one trace at one offset, one seed."""

    qoe: float | None
    bitrate_mbps: float | None
    rebuffer_s: float | None
    """Stall per chunk."""
    switch_mbps: float | None
    startup_s: float | None
    chunks: int
    simulated_qoe: float | None
    """The same policy, trace and offset in the simulator twin (emulation only)."""
    replayed_qoe: float | None = None
    """The simulator twin's QoE when it plays the levels of this trial (emulation only)."""
    parts_at_chunk: int | None = None
    """First chunk at which the twin under the same policy chose another level (emulation only)."""
    optimum_qoe: float | None = None
    """The offline optimum of the same trace and offset, in the simulator (also of an emulated trial), mean per chunk as `qoe`."""

    @property
    def value(self) -> float | None:
        """The metric."""
        return self.qoe

    @property
    def simulated(self) -> float | None:
        """The metric of the simulator twin."""
        return self.simulated_qoe


class ScheduleRow(TrialBase, frozen=True, kw_only=True, tag="schedule", tag_field="event"):
    """One schedule: one policy, one workload, whose name and seed stand for the trace. Times are the workload's (`time_scale` times faster
    than the wall's)."""

    avg_jct_s: float | None
    """Mean over jobs of the time from arrival to the end of the last task."""
    p50_jct_s: float | None
    p95_jct_s: float | None
    makespan_s: float | None
    busy_share: float | None
    """Executor time spent on tasks, over all executor time until the makespan."""
    shuffled_mb: float | None
    """Megabytes that travelled between executors."""
    jobs: int
    tasks: int
    """Runs of tasks, those that came to nothing among them."""
    unfinished: int
    """Jobs that never ended."""
    executors_lost: int = 0
    tasks_run_again: int = 0
    time_scale: float = 1.0
    simulated_jct_s: float | None = None
    """Mean JCT of the same policy and workload in the simulator twin (on a cluster only)."""
    late_task_share: float | None = None
    """Share of bundles of tasks whose executor was later than the slack of `testbed.execution.driver`."""

    @property
    def value(self) -> float | None:
        """The metric."""
        return self.avg_jct_s

    @property
    def simulated(self) -> float | None:
        """The metric of the simulator twin."""
        return self.simulated_jct_s


class JobRow(msgspec.Struct, frozen=True, kw_only=True, tag="job", tag_field="event"):
    """One job of a schedule. Times are the workload's, from the trial's start."""

    trial_id: str
    job: int
    name: str
    arrived_s: float
    done_s: float | None
    """None: it never ended."""
    jct_s: float | None
    stages: int
    tasks: int
    work_s: float
    """Tasks x mean duration in the profile."""


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, tag="task", tag_field="event"):
    """One run of a task. Times are the workload's."""

    trial_id: str
    job: int
    stage: int
    task: int
    executor: int
    start_s: float
    end_s: float
    profiled_s: float
    """What it takes by the profile; it took longer where what it read came late."""
    outcome: str = "done"
    """`done`; `lost` with its executor; `failed`, because what it reads could not be had."""


class ExecutorRow(msgspec.Struct, frozen=True, kw_only=True, tag="executor", tag_field="event"):
    """An executor left or came back."""

    trial_id: str
    executor: int
    at_s: float
    """The workload's time."""
    what: str
    """`lost` or `joined`."""
    reason: str = ""


class TransferRow(msgspec.Struct, frozen=True, kw_only=True, tag="transfer", tag_field="event"):
    """All that one executor read from another in a trial."""

    trial_id: str
    sender: int
    receiver: int
    size_bytes: int


class ScheduleDecisionRow(msgspec.Struct, frozen=True, kw_only=True, tag="schedule_decision", tag_field="event"):
    """One scheduling decision. `at_s` is the workload's time, `latency_s` and `policy_s` the wall's, as in `DecisionRow`."""

    trial_id: str
    index: int
    at_s: float
    committable: int
    active_jobs: int
    job: int
    """-1: all on offer were declined."""
    stage: int
    executors: int
    latency_s: float
    policy_s: float | None
    source: str
    """`policy`, or `fallback` when the driver's own rule answered: jobs in order of arrival."""
    reason: str
    """Empty, or why it fell back: `late`, `invalid`, `error`, `unreachable`."""


class ScheduleBeginRow(msgspec.Struct, frozen=True, kw_only=True, tag="schedule_begin", tag_field="event"):
    """The driver's first line: all executors are there, and the first job arrives."""

    trial_id: str
    began_at_s: float
    """Seconds on CLOCK_MONOTONIC."""


class ScheduleEndRow(msgspec.Struct, frozen=True, kw_only=True, tag="schedule_end", tag_field="event"):
    """How a schedule ended: its last line."""

    trial_id: str
    end_reason: str
    """`complete`; `starved`: nothing would happen any more though jobs are left, because the policy declined executors; or what else."""
    avg_jct_s: float | None
    p50_jct_s: float | None
    p95_jct_s: float | None
    makespan_s: float | None
    busy_share: float | None
    jobs: int
    unfinished: int
    tasks: int = 0
    wall_s: float = 0.0
    detail: str = ""
    began_at_s: float | None = None
    shuffled_bytes: int = 0
    executors_lost: int = 0
    tasks_run_again: int = 0
    late_task_share: float | None = None


ScheduleTrialRow = JobRow | TaskRow | ExecutorRow | TransferRow | ScheduleDecisionRow | ScheduleBeginRow | ScheduleEndRow | ScheduleRow
Row = ChunkRow | DecisionRow | StallRow | PlaybackEndRow | LinkRow | TrialRow | ScheduleTrialRow | ViewingTrialRow
AnyTrialRow = TrialRow | ScheduleRow | ViewingRow
"""A trial that is over, whatever the task."""


class RunHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="event"):
    """The first line of `events.jsonl`: what was run, on what, by what; enough to run it again and to label every figure."""

    task: str
    """`abr`, `cjs` or `vp`."""
    mode: str
    """`emulation` or `simulation`."""
    metric: str
    """`qoe_lin`, `avg_jct_s`, `viewport_qoe` or `mae_deg`."""
    unit: str
    """Of the metric, for example `per chunk`."""
    started_utc: str
    """ISO 8601."""
    command: str
    """The command line that started it."""
    commit: str
    """Git commit of this checkout; empty when unknown."""
    spec: dict[str, Any]
    """The whole experiment as built-in types."""
    experiment_toml: str
    """The same as a file that runs it again."""
    policies: dict[str, dict[str, str]]
    """Name to `label`, `colour` and `citation`, in the order asked for."""
    trace: dict[str, Any]
    """`name`, `split`, `source` (store, path, model), `traces` (how many), `sha256` of the set; `uplink`: the same of the way back."""
    versions: dict[str, str] = {}
    """Of python and the packages that matter."""
    host: dict[str, Any] = {}
    """Kernel, cores, memory, link back end, scheduling class: what the numbers depend on."""
    notes: list[str] = []
    """Sentences that the report must show."""


class TraceRow(msgspec.Struct, frozen=True, kw_only=True, tag="trace", tag_field="event"):
    """A trace's capacity for the figures: `rates_bps[i]` on `edges_s[i]` to `edges_s[i+1]`, from the trace's own start; then it wraps."""

    trace: str
    sha256: str
    edges_s: list[float]
    rates_bps: list[float]


class LatenessRow(msgspec.Struct, frozen=True, kw_only=True, tag="lateness", tag_field="event"):
    """How late packets left one direction of a trial's link: `counts[i]` were at most `upper_ms[i]` late and more than the bin before."""

    trial_id: str
    direction: str
    upper_ms: list[float]
    counts: list[int]


class HostRow(msgspec.Struct, frozen=True, kw_only=True, tag="host", tag_field="event"):
    """A moment of the host while an emulation runs, between trials, too: what the links' timing depends on. Shares are 0 to 1."""

    at_s: float
    """Its end, seconds on CLOCK_MONOTONIC, the clock of `TrialRow.began_at_s` and `PlaybackEndRow.began_at_s`."""
    window_s: float
    busy_share: float
    """Of all cores' time: running something. The kernel counts it in ticks of mostly 10 ms, so a short window is coarse."""
    steal_share: float
    """Of all cores' time: what the hypervisor kept from this machine."""
    cpu_pressure_share: float | None
    """Share of the window in which some task waited for a core; None where the kernel doesn't tell (`/proc/pressure/cpu`)."""
    relay_busy_share: float | None = None
    """Of one core: the relay process ran. None without a relay, or where the kernel doesn't tell (`/proc/PID/schedstat`)."""
    relay_wait_share: float | None = None
    """Share of the window in which the relay could have run and did not get a core."""


class SimulatedRow(msgspec.Struct, frozen=True, kw_only=True, tag="simulated", tag_field="event"):
    """What an emulated trial scores in the simulator twin: the same policy, trace, offset and seed.

    It becomes the trial's `simulated_qoe` or `simulated_jct_s`.
    """

    trial_id: str
    qoe: float | None = None
    """Mean per chunk, as `TrialRow.qoe`; None of a schedule, and where the policy decides nowhere but in the browser."""
    avg_jct_s: float | None = None
    """Mean JCT, as `ScheduleRow.avg_jct_s`; None of a playback."""
    replayed_qoe: float | None = None
    """The same when the simulator plays the very levels that the emulated trial chose: what path and player alone differ by."""
    parts_at_chunk: int | None = None
    """First chunk whose level differs from the emulated trial's; None when all are the same."""


class OptimumRow(msgspec.Struct, frozen=True, kw_only=True, tag="optimum", tag_field="event"):
    """The offline optimum of a trace from one offset: the best playback found in the simulator. It becomes `TrialRow.optimum_qoe`.

    Means are per chunk over chunks 1 .. N-1, as in `TrialRow`; lists have an entry for each chunk, chunk 0 included.
    """

    trace: str
    trace_sha256: str
    offset_s: float
    grid_s: float
    """Of trace time: playbacks within one cell competed."""
    qoe: float | None
    reason: str = ""
    """Why there is none; else empty."""
    bitrate_mbps: float | None = None
    rebuffer_s: float | None = None
    switch_mbps: float | None = None
    startup_s: float | None = None
    wall_s: float | None = None
    bitrates_bps: list[int] = []
    request_s: list[float] = []
    """Seconds from the first request."""
    chunk_qoe: list[float] = []


class EndRow(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="event"):
    """The last line of a run that was not killed."""

    ended_utc: str
    reason: str
    """`complete`, or what ended it early, for example `interrupted`."""


Event = RunHeader | TraceRow | Row | LatenessRow | HostRow | SimulatedRow | OptimumRow | EndRow
"""One line of `events.jsonl`."""
