"""The command line of `scripts/evaluate`."""

import sys
from collections.abc import Sequence

import tyro

from netllm.suite.run import EvaluateSettings, test
from testbed.errors import UserError

TASKS = ("abr",)


def evaluate_command(arguments: Sequence[str]) -> int:
    """Measure; 0 when done, 2 for a user's mistake, 130 after Ctrl-C (what is done is kept)."""
    try:
        rest = _task_first(arguments)
        test(tyro.cli(EvaluateSettings, prog="scripts/evaluate abr", args=rest))
    except (UserError, OSError) as error:  # a disk that is full, a folder taken away
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _task_first(arguments: Sequence[str]) -> list[str]:
    """The arguments after the task. Without a task, help is shown."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return ["--help"]
    if arguments[0] not in TASKS:
        raise UserError(f"scripts/evaluate: task {arguments[0]!r} is unknown, wanted one of {', '.join(TASKS)}")
    return list(arguments[1:])
