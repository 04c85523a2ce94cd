"""The command lines of `scripts/adapt`, `scripts/ablate` and `scripts/evaluate`: what each does for each task."""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import tyro

from controllers.learning.start import exit_code, usage
from testbed.errors import UserError


class Work(NamedTuple):
    """Where the work lies, which is imported when it is asked for: `function` takes an instance of `settings`."""

    about: str
    """One line."""
    module: str
    settings: str
    function: str
    interrupted: str
    """What a user does after Ctrl-C."""


RESUMES, GOES_ON, ANEW = "--resume goes on from the last checkpoint", "the same command goes on from here", "the same command begins anew"
COMMANDS: dict[str, dict[str, Work]] = {
    "adapt": {
        "abr": Work("train for adaptive bitrate, on teachers' labels", "netllm.abr.adapt", "AdaptSettings", "adapt", RESUMES),
        "abr-choose": Work("choose among adapters for adaptive bitrate", "netllm.abr.choose", "ChooseSettings", "choose", ANEW),
        "cjs": Work("train for cluster job scheduling, on look-ahead", "netllm.cjs.adapt", "CjsAdaptSettings", "adapt", RESUMES),
        "cjs-trust": Work("choose how far that adapter leans on a rule", "netllm.cjs.trust", "TrustSettings", "choose", ANEW),
        "vp": Work("train for viewport prediction, on head movement", "netllm.vp.adapt", "VpAdaptSettings", "adapt", RESUMES),
    },
    "ablate": {
        "abr": Work("adaptive bitrate, one thing changed at a time", "netllm.abr.ablate", "AblateSettings", "ablate", GOES_ON),
        "vp": Work("viewport prediction, one thing changed at a time", "netllm.vp.ablate", "VpAblateSettings", "ablate", GOES_ON),
    },
    "evaluate": {
        "abr": Work("policies for adaptive bitrate", "netllm.abr.suite.run", "EvaluateSettings", "test", GOES_ON),
        "cjs": Work("policies for cluster job scheduling", "netllm.cjs.suite.run", "CjsEvaluateSettings", "test", GOES_ON),
        "vp": Work("policies for viewport prediction", "netllm.vp.suite.run", "VpEvaluateSettings", "test", ANEW),
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
    """The first argument is the task; without one, the tasks are told."""
    tasks, program = COMMANDS[name], f"scripts/{name}"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program, {task: work.about for task, work in tasks.items()}))  # noqa: T201
        return 0
    task = arguments[0]

    def work() -> None:
        if task not in tasks:
            raise UserError(f"{program}: task {task!r} is unknown, wanted one of {', '.join(tasks)}")
        module = import_module(tasks[task].module)
        settings = tyro.cli(getattr(module, tasks[task].settings), prog=f"{program} {task}", args=arguments[1:])
        getattr(module, tasks[task].function)(settings)

    return exit_code(work, tasks[task].interrupted if task in tasks else "")
