"""The command lines of `scripts/adapt` and `scripts/ablate`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from testbed.errors import UserError

TASKS = ("abr",)


def adapt_command(arguments: Sequence[str]) -> int:
    """Train; 0 when done, 2 for a user's mistake, 130 after Ctrl-C (a checkpoint is kept)."""
    from netllm.adapt import AdaptSettings, adapt

    return _run("adapt", AdaptSettings, adapt, arguments)


def ablate_command(arguments: Sequence[str]) -> int:
    """Train with one thing changed at a time; the same codes."""
    from netllm.ablate import AblateSettings, ablate

    return _run("ablate", AblateSettings, ablate, arguments)


def _run(name: str, settings_type: type, work: Callable[[Any], Any], arguments: Sequence[str]) -> int:
    try:
        rest = _task_first(name, arguments)
        work(tyro.cli(settings_type, prog=f"scripts/{name} abr", args=rest))
    except (UserError, OSError) as error:  # a disk that is full, a folder taken away
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _task_first(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments after the task. Without a task, help is shown."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return ["--help"]
    if arguments[0] not in TASKS:
        raise UserError(f"scripts/{name}: task {arguments[0]!r} is unknown, wanted one of {', '.join(TASKS)}")
    return list(arguments[1:])
