"""The driver's process: `python -m testbed.execution.process` reads a `DriverConfig` on stdin and plays one trial.

It writes rows as JSON lines: `ScheduleBeginRow` first, `ScheduleEndRow` last; an empty line now and then is a sign of life.
"""

import asyncio
import signal
import sys
from typing import BinaryIO

import msgspec

from controllers.client_cjs import SchedulingClient
from controllers.config import read_config
from controllers.stdio import claim_stdout
from testbed.errors import TestbedError, UserError
from testbed.execution.config import DriverConfig
from testbed.execution.dask_cluster import DaskCluster
from testbed.execution.driver import Driver
from testbed.records import Row
from traces.durations import FrozenDurations
from traces.tpch_own import profiles_named

WRITE_EVERY_S = 0.5


class _Writer:
    """Rows as lines, some at a time."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._rows = out, list[Row]()

    def emit(self, row: Row) -> None:
        """Write it soon."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write what there is."""
        rows, self._rows = self._rows, []
        self._out.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        self._out.flush()

    async def keep_writing(self) -> None:
        """Until cancelled. An empty line is a sign of life."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            self._out.write(b"\n")
            self.flush()


async def drive(config: DriverConfig, out: BinaryIO) -> None:
    """Play one trial."""
    _end_on_signals()
    writer = _Writer(out)
    durations = FrozenDurations(config.workload, profiles_named(config.workload.name))
    controller = SchedulingClient(config.controller_url, config.session, config.policy, config.seed)
    writing = asyncio.create_task(writer.keep_writing())
    try:
        async with DaskCluster(config.scheduler, config.executors, config.session.executors, config.trial_id) as cluster:
            await Driver(config, cluster, controller, durations, writer.emit, writer.flush).run()
            writer.flush()
    finally:
        writing.cancel()
        writer.flush()
        await controller.close(1.0)


def _end_on_signals() -> None:
    """SIGTERM and Ctrl-C cancel this task, once: executors are let go before the process ends."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task

    def end() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


def main() -> int:
    """Read the config, drive; what can't be used is one sentence and exit code 2, what failed one and exit code 1."""
    out = claim_stdout()
    try:
        asyncio.run(drive(read_config(DriverConfig, sys.argv[1:]), out))
    except (UserError, TestbedError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UserError) else 1
    except asyncio.CancelledError:
        sys.stderr.write("it was told to end\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
