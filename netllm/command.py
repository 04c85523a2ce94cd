"""The command lines of `scripts/adapt`, `scripts/ablate` and `scripts/evaluate`."""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from controllers.learning.start import exit_code
from testbed.errors import UserError

TASKS = ("abr", "cjs")
MEASURED = (*TASKS, "vp")
"""What `scripts/evaluate` can measure."""


def adapt_command(arguments: Sequence[str]) -> int:
    """Train an adapter; the codes of `controllers.learning.start.exit_code`."""
    if arguments[:1] == ["cjs"]:
        return _adapt_cjs(arguments[1:])
    from netllm.adapt import AdaptSettings, adapt

    return _run("adapt", AdaptSettings, adapt, arguments, "--resume goes on from the last checkpoint")


def _adapt_cjs(arguments: Sequence[str]) -> int:
    from netllm.cjs.adapt import CjsAdaptSettings, adapt

    resume = "--resume goes on from the last checkpoint"
    return exit_code(lambda: adapt(tyro.cli(CjsAdaptSettings, prog="scripts/adapt cjs", args=arguments)), resume)


def ablate_command(arguments: Sequence[str]) -> int:
    """Train with one thing changed at a time; the same codes."""
    from netllm.ablate import AblateSettings, ablate

    return _run("ablate", AblateSettings, ablate, arguments, "the same command goes on from here")


def evaluate_command(arguments: Sequence[str]) -> int:
    """Measure; the same codes."""
    if arguments[:1] == ["vp"]:
        return _evaluate_vp(arguments[1:])
    if arguments[:1] == ["cjs"]:
        return _evaluate_cjs(arguments[1:])
    from netllm.suite.run import EvaluateSettings, test

    return _run("evaluate", EvaluateSettings, test, arguments, "the same command goes on from here")


def _evaluate_vp(arguments: Sequence[str]) -> int:
    from netllm.vp_suite.run import VpEvaluateSettings, test

    return exit_code(lambda: test(tyro.cli(VpEvaluateSettings, prog="scripts/evaluate vp", args=arguments)), "the same command begins anew")


def _evaluate_cjs(arguments: Sequence[str]) -> int:
    from netllm.cjs_suite.run import CjsEvaluateSettings, test

    again = "the same command goes on from here"
    return exit_code(lambda: test(tyro.cli(CjsEvaluateSettings, prog="scripts/evaluate cjs", args=arguments)), again)


def _run(name: str, settings_type: type, work: Callable[[Any], Any], arguments: Sequence[str], interrupted: str) -> int:
    return exit_code(lambda: work(tyro.cli(settings_type, prog=f"scripts/{name} abr", args=_task_first(name, arguments))), interrupted)


def _task_first(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments after the task. Without a task, help is shown."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return ["--help"]
    if arguments[0] != "abr":
        wanted = {"evaluate": MEASURED, "adapt": TASKS}.get(name, ("abr",))
        raise UserError(f"scripts/{name}: task {arguments[0]!r} is unknown, wanted one of {', '.join(wanted)}")
    return list(arguments[1:])
