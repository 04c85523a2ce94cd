"""The command line: an experiment by default, or `report`, `doctor`, `clean`, `list`. The only place that turns errors into exit codes."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from testbed.errors import TestbedError, UserError, suggestion
from testbed.spec import Experiment, from_toml

_USAGE = """\
Runs an experiment: `run.py --trace fcc`. Other commands:
  run.py report DIR     rebuild tables and report.html of a result folder (--figures pdf: figures for a paper)
  run.py doctor         what this host can do
  run.py clean          remove what a killed run left
  run.py list           tasks, traces, videos and policies
  run.py --spec FILE    run an experiment.toml again; other options override it"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the testbed failed, 2 the input can't be used, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return _dispatch(arguments)
    except UserError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}")
        return 2
    except TestbedError as error:
        errors.print(f"[red]failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; what was made is undone")
        return 130


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {"report": _report, "doctor": _doctor, "clean": _clean, "list": _list}
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in commands:
            raise UserError(f"unknown command {arguments[0]!r}, {suggestion(arguments[0], commands)}")
        return commands[arguments[0]](arguments[1:])
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    default, rest = _take_spec(arguments)
    experiment = tyro.cli(Experiment, prog="run.py", description=_USAGE, args=rest, default=default)
    from testbed.experiment import run

    run(experiment, Console())
    return 0


def _take_spec(arguments: list[str]) -> tuple[Experiment | None, list[str]]:
    """Split off `--spec FILE`; given traces replace the file's."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--spec":
            if not value and i + 1 >= len(arguments):
                raise UserError("--spec has no value, wanted a path to experiment.toml")
            path = Path(value or arguments[i + 1])
            rest = arguments[:i] + arguments[i + (1 if value else 2) :]
            spec = from_toml(path)
            if any(a.split("=")[0] == "--trace" for a in rest):
                spec = dataclasses.replace(spec, trace=())
            return spec, rest
    return None, arguments


def _report(arguments: list[str]) -> int:
    from testbed.experiment import report

    @dataclasses.dataclass(frozen=True)
    class Report:
        """Rebuild everything derived in a result folder from its events.jsonl."""

        folder: tyro.conf.Positional[Path] = Path("results/latest")
        """The result folder."""
        figures: str | None = None
        """Also write figures for a paper in this format: pdf, png or svg."""

    options = tyro.cli(Report, prog="run.py report", args=arguments)
    report(options.folder, options.figures, Console())
    return 0


def _doctor(arguments: list[str]) -> int:
    from testbed.doctor import main as doctor

    return doctor(arguments)


def _clean(arguments: list[str]) -> int:
    from testbed.experiment import clean

    if arguments:
        raise UserError(f"clean takes no argument, got {arguments[0]!r}")
    clean(Console())
    return 0


def _list(arguments: list[str]) -> int:
    from testbed.experiment import list_all

    if arguments:
        raise UserError(f"list takes no argument, got {arguments[0]!r}")
    list_all(Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
