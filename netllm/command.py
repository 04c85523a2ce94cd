"""The command lines of `scripts/adapt`, `scripts/ablate` and `scripts/evaluate`: what each does for each task."""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import tyro

from controllers.learning.start import exit_code
from testbed.errors import UserError


class Work(NamedTuple):
    """Where the work lies, which is imported when it is asked for: `function` takes an instance of `settings`."""

    module: str
    settings: str
    function: str
    interrupted: str
    """What a user does after Ctrl-C."""


RESUMES, GOES_ON, ANEW = "--resume goes on from the last checkpoint", "the same command goes on from here", "the same command begins anew"
COMMANDS: dict[str, dict[str, Work]] = {
    "adapt": {
        "abr": Work("netllm.adapt", "AdaptSettings", "adapt", RESUMES),
        "abr-choose": Work("netllm.choose", "ChooseSettings", "choose", ANEW),
        "cjs": Work("netllm.cjs.adapt", "CjsAdaptSettings", "adapt", RESUMES),
        "cjs-trust": Work("netllm.cjs.trust", "TrustSettings", "choose", ANEW),
        "vp": Work("netllm.vp_adapt", "VpAdaptSettings", "adapt", RESUMES),
    },
    "ablate": {
        "abr": Work("netllm.ablate", "AblateSettings", "ablate", GOES_ON),
        "vp": Work("netllm.vp_ablate", "VpAblateSettings", "ablate", GOES_ON),
    },
    "evaluate": {
        "abr": Work("netllm.suite.run", "EvaluateSettings", "test", GOES_ON),
        "cjs": Work("netllm.cjs_suite.run", "CjsEvaluateSettings", "test", GOES_ON),
        "vp": Work("netllm.vp_suite.run", "VpEvaluateSettings", "test", ANEW),
    },
}


def adapt_command(arguments: Sequence[str]) -> int:
    """Train an adapter; the codes of `controllers.learning.start.exit_code`."""
    return _run("adapt", arguments)


def ablate_command(arguments: Sequence[str]) -> int:
    """Train with one thing changed at a time; the same codes."""
    return _run("ablate", arguments)


def evaluate_command(arguments: Sequence[str]) -> int:
    """Measure; the same codes."""
    return _run("evaluate", arguments)


def _run(name: str, arguments: Sequence[str]) -> int:
    """The first argument is the task; without one, the help of the first task is shown."""
    tasks = COMMANDS[name]
    task = arguments[0] if arguments and arguments[0] in tasks else next(iter(tasks))

    def work() -> None:
        rest = list(arguments[1:])
        if not arguments or arguments[0] in ("-h", "--help"):
            rest = ["--help"]
        elif arguments[0] not in tasks:
            raise UserError(f"scripts/{name}: task {arguments[0]!r} is unknown, wanted one of {', '.join(tasks)}")
        module = import_module(tasks[task].module)
        settings = tyro.cli(getattr(module, tasks[task].settings), prog=f"scripts/{name} {task}", args=rest)
        getattr(module, tasks[task].function)(settings)

    return exit_code(work, tasks[task].interrupted)
