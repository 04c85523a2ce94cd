"""What a run was asked for: each setting that its task and its mode have, for the list on top of the report."""

from testbed.records import RunHeader
from testbed.spec import NOT_FOR_CLUSTER, UNREAD

_SETTINGS: tuple[tuple[str, str, str], ...] = (
    ("player", "Player", "{}"),
    ("video", "Video", "{}"),
    ("chunks", "Chunks a trial", "{}"),
    ("rtt_ms", "Round-trip time", "{:g} ms"),
    ("uplink", "Uplink trace", "{}"),
    ("queue", "Queue", "{:,} bytes"),
    ("queue_packets", "Queue in packets", "{:,}"),
    ("aqm", "Queue drops by", "{}"),
    ("cc", "Congestion control", "{}"),
    ("link", "Link", "{}"),
    ("repeats", "Repeats where a link fails", "{}"),
    ("awake", "Cores kept from halting", "{}"),
    ("deadline_ms", "Decision deadline", "{:g} ms"),
    ("offset_s", "Trace offset", "{:g} s"),
    ("seeds", "Seeds", "{}"),
    ("parallel", "Lanes", "{}"),
    ("llm", "Backbone", "{}"),
    ("workload", "Workload", "{}"),
    ("jobs", "Jobs", "{}"),
    ("executors", "Executors", "{}"),
    ("interarrival", "Mean time between arrivals", "{:g} s"),
    ("time_scale", "Time scale", "{:g}"),
    ("bytes_scale", "Bytes scale", "{:g}"),
    ("cluster", "Dask cluster", "{}"),
    ("containers", "Executors in containers", "{}"),
    ("history", "History", "{:g} s"),
    ("horizon", "Horizon", "{:g} s"),
)
_PLAYBACK_ONLY = {"player", "video", "chunks", "uplink", "queue_packets", "aqm", "link", "offset_s", "parallel"}
_SCHEDULE_ONLY = {"workload", "jobs", "executors", "interarrival", "time_scale", "bytes_scale", "cluster", "containers"}
_VIEWING_ONLY = {"history", "horizon"}
_OF_OTHERS = {
    "abr": _SCHEDULE_ONLY | _VIEWING_ONLY,
    "cjs": _PLAYBACK_ONLY | _VIEWING_ONLY,
    "vp": _SCHEDULE_ONLY | {"player", "video"},
}
"""Settings that a task does not have."""
_EMULATION_ONLY = {
    "repeats",
    "containers",
    "time_scale",
    "bytes_scale",
    "uplink",
    "queue",
    "queue_packets",
    "aqm",
    "cc",
    "link",
    "deadline_ms",
    "parallel",
    "player",
    "awake",
}


def asked(header: RunHeader) -> list[tuple[str, str]]:
    """Label and value of each setting that was given or has a default."""
    rows = []
    for key, label, form in _SETTINGS:
        value = header.host.get(key) if key == "awake" else header.spec.get(key)  # asked for, it is done in virtual machines
        unread = {
            "simulation": key in _EMULATION_ONLY or key in UNREAD.get(header.task, ()),
            "cluster": key in NOT_FOR_CLUSTER,
        }.get(header.mode, False)
        if value is None or key in _OF_OTHERS[header.task] or unread:
            continue
        words = ("no", "yes")[value] if isinstance(value, bool) else value
        rows.append((label, ", ".join(map(str, value)) if isinstance(value, list | tuple) else form.format(words)))
    return rows
