"""What the driver is told on its stdin."""

import msgspec

from controllers.api import CjsSession
from traces.workload import Workload

HUNG = "it hangs: its tasks are over their time, and it answers no more"
"""Why an executor is lost that whoever started it should end: the `reason` of its `ExecutorRow`."""


class ExecutorPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A Dask worker that is an executor."""

    name: str
    """As it is known to the Dask scheduler."""
    data_host: str = ""
    """Where others reach it for what its tasks left; empty: at the worker's own address."""


class DriverConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`python -m testbed.execution.process`: one trial."""

    trial_id: str
    scheduler: str
    """Address of the Dask scheduler."""
    executors: tuple[ExecutorPlace, ...]
    """By number; none: the first workers of the cluster, by name."""
    controller_url: str
    policy: str
    seed: int
    session: CjsSession
    workload: Workload
    time_scale: float
    """The workload's seconds that pass in one."""
    bytes_scale: float
    """Bytes that travel for each that the workload's stages exchange."""
    deadline_s: float
    open_deadline_s: float = 60.0
    gather_s: float = 60.0
    """For the executors to be there."""
    rejoin_s: float = 60.0
    """With nothing left to happen, so long lost executors are waited for."""
