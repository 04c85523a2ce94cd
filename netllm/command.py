"""The command lines of `scripts/adapt`, `scripts/ablate` and `scripts/evaluate`."""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from controllers.learning.start import exit_code
from testbed.errors import UserError

TASKS = ("abr", "vp")


def adapt_command(arguments: Sequence[str]) -> int:
    """Train an adapter; the codes of `controllers.learning.start.exit_code`."""
    interrupted = "--resume goes on from the last checkpoint"
    if arguments[:1] == ["vp"]:
        from netllm.vp_adapt import VpAdaptSettings
        from netllm.vp_adapt import adapt as adapt_vp

        return _run("adapt", VpAdaptSettings, adapt_vp, arguments, interrupted)
    from netllm.adapt import AdaptSettings, adapt

    return _run("adapt", AdaptSettings, adapt, arguments, interrupted)


def ablate_command(arguments: Sequence[str]) -> int:
    """Train with one thing changed at a time; the same codes."""
    interrupted = "the same command goes on from here"
    if arguments[:1] == ["vp"]:
        from netllm.vp_ablate import VpAblateSettings
        from netllm.vp_ablate import ablate as ablate_vp

        return _run("ablate", VpAblateSettings, ablate_vp, arguments, interrupted)
    from netllm.ablate import AblateSettings, ablate

    return _run("ablate", AblateSettings, ablate, arguments, interrupted)


def evaluate_command(arguments: Sequence[str]) -> int:
    """Measure; the same codes."""
    if arguments[:1] == ["vp"]:
        from netllm.vp_suite.run import VpEvaluateSettings
        from netllm.vp_suite.run import test as test_vp

        return _run("evaluate", VpEvaluateSettings, test_vp, arguments, "the same command begins anew")
    from netllm.suite.run import EvaluateSettings, test

    return _run("evaluate", EvaluateSettings, test, arguments, "the same command goes on from here")


def _run(name: str, settings_type: type, work: Callable[[Any], Any], arguments: Sequence[str], interrupted: str) -> int:
    task = arguments[0] if arguments[:1] and arguments[0] in TASKS else TASKS[0]
    return exit_code(lambda: work(tyro.cli(settings_type, prog=f"scripts/{name} {task}", args=_task_first(name, arguments))), interrupted)


def _task_first(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments after the task. Without a task, help is shown."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return ["--help"]
    if arguments[0] not in TASKS:
        raise UserError(f"scripts/{name}: task {arguments[0]!r} is unknown, wanted one of {', '.join(TASKS)}")
    return list(arguments[1:])
