"""A player's process, whatever it plays: its config from the command line, rows on stdout, an end when it is told to stop."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from controllers.client import Client, DecisionFailed
from controllers.config import read_config
from players.config import PlayerConfig
from testbed.errors import UserError

CLOSE_DEADLINE_S = 0.5
"""Longest wait for the controller to forget the session."""


def run(config_type: type[msgspec.Struct], play: Callable[[Any, Callable[[Any], None]], Coroutine[Any, Any, None]]) -> int:
    """Read the config, `play`. Exit code 0 however that ended; a config that can't be used is one sentence and exit code 2."""
    try:
        asyncio.run(_until_told(play(read_config(config_type, sys.argv[1:]), _write_row)))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


async def open_early(controller: Client, config: PlayerConfig) -> None:
    """Open the session before the clock runs. If that fails, each decision tries again."""
    try:
        await controller.open(config.open_deadline_s)
    except DecisionFailed as failed:
        sys.stderr.write(f"{config.trial_id}: no session yet: {failed.reason}: {failed.message}\n")


def _write_row(row: msgspec.Struct) -> None:
    """One JSON line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
    sys.stdout.buffer.flush()


async def _until_told(playback: Coroutine[Any, Any, None]) -> None:
    """Play; the first SIGTERM or SIGINT interrupts."""
    playing = asyncio.create_task(playback)
    told = asyncio.Event()

    def stop() -> None:
        if not told.is_set():
            told.set()
            playing.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):  # its last row was written before
        await playing
