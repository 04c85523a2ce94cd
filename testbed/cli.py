"""The command line: an experiment by default, or one of `_COMMANDS`. The only place that turns errors into exit codes."""

import contextlib
import errno
import io
import itertools
import operator
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from testbed.errors import TestbedError, UserError, suggestion

if TYPE_CHECKING:
    from testbed.spec import Experiment

_USAGE = """\
Runs an experiment: `run.py --trace fcc`. Other commands:
  run.py report DIR     rebuild tables and report.html of a result folder (--figures pdf: figures for a paper)
  run.py doctor         what this host can do (--json: for programs)
  run.py fidelity       check links by captures of their packets
  run.py clean          remove what a killed run left
  run.py list           tasks, traces, videos and policies
  run.py --spec FILE    run an experiment.toml again; other options override it
  run.py --no-setup     refuse instead of installing what the host lacks"""
_BOX = "│╭╮╰╯─"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.EILSEQ, errno.ENOTDIR)
"""What the system says of a path that a user gave, wherever it is met."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the testbed failed, 2 the input can't be used, 130 interrupted."""
    try:
        with _ended_by_signals():
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        return _say("error", str(error), 2)
    except TestbedError as error:
        return _say("failed", str(error), 1)
    except OSError as error:
        if error.errno not in _UNUSABLE or error.filename is None:
            raise
        return _say("error", f"{str(error.filename)[:200]}: {error.strerror}, wanted a path that can be used", 2)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        return _say("error", f"{error.object!a:.200} is no text in UTF-8, wanted a name that is", 2)
    except KeyboardInterrupt:
        return _say("interrupted", "what was made is undone", 130)


def _say(what: str, text: str, code: int) -> int:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    sys.stderr.write(f"{red}{what}:{plain} {text}\n")
    return code


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP (a lost terminal) raise SystemExit, so that everything is undone. For the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _dispatch(arguments: list[str]) -> int:
    """Run a command. All else is imported in the commands: Ctrl-C must find `main` listening, and errors must come fast."""
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in _COMMANDS:
            raise UserError(f"unknown command {arguments[0]!r}, {suggestion(arguments[0], _COMMANDS)}")
        if arguments[0] not in _PARSED and {"-h", "--help"} & set(arguments[1:]):
            sys.stdout.write(f"{_USAGE}\n")
            return 0
        return _COMMANDS[arguments[0]](arguments[1:])
    return _run(arguments)


def _parse(kind: type, arguments: Sequence[str], **settings: Any) -> Any:
    """What tyro makes of the arguments; what it has to say against them becomes one sentence."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, **settings)
    except SystemExit as end:
        if end.code == 2:
            raise UserError(_sentence(said.getvalue())) from None
        raise


def _sentence(box: str) -> str:
    """The first paragraph of tyro's box, and the option it suggests."""
    lines = [line.strip(_BOX + " ") for line in _ANSI.sub("", box).splitlines()[1:]]
    lines = ["" if set(line) == {"-"} else line for line in lines]  # the rules of a box where standard output isn't called utf-8
    told = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines)))
    hints = [line.split()[0] for before, line in itertools.pairwise(lines) if before == "Perhaps you meant:"]
    return told + (f"; did you mean {hints[0]}?" if hints else "")


def _run(arguments: list[str]) -> int:
    from rich.console import Console

    from testbed.experiment import run
    from testbed.spec import Experiment

    default, rest = _take_spec(arguments)
    run(_parse(Experiment, rest, prog="run.py", description=_USAGE, default=default), Console())
    return 0


def _take_spec(arguments: list[str]) -> tuple["Experiment | None", list[str]]:
    """Split off `--spec FILE`; given traces replace the file's."""
    import dataclasses

    from testbed.spec import from_toml
    from testbed.user import expanded

    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--spec":
            if not value and i + 1 >= len(arguments):
                raise UserError("--spec has no value, wanted a path to experiment.toml")
            path = expanded(value or arguments[i + 1])
            rest = arguments[:i] + arguments[i + (1 if value else 2) :]
            spec = from_toml(path)
            if any(a.split("=")[0] == "--trace" for a in rest):
                spec = dataclasses.replace(spec, trace=())
            return spec, rest
    return None, arguments


def _report(arguments: list[str]) -> int:
    from dataclasses import dataclass
    from pathlib import Path

    import tyro
    from rich.console import Console

    from testbed.experiment import report
    from testbed.user import expanded

    @dataclass(frozen=True)
    class Report:
        """Rebuild everything derived in a result folder from its events.jsonl."""

        folder: tyro.conf.Positional[Path] = Path("results/latest")
        """The result folder."""
        figures: str | None = None
        """Also write figures for a paper in this format: pdf, png or svg."""

    options = _parse(Report, arguments, prog="run.py report")
    report(expanded(options.folder), options.figures, Console())
    return 0


def _fidelity(arguments: list[str]) -> int:
    from rich.console import Console

    from testbed.fidelity.command import Check, run

    return run(_parse(Check, arguments, prog="run.py fidelity"), Console())


def _doctor(arguments: list[str]) -> int:
    from testbed.doctor import main as doctor

    return doctor(arguments)


def _clean(arguments: list[str]) -> int:
    from rich.console import Console

    from testbed.experiment import clean

    if arguments:
        raise UserError(f"clean takes no argument, got {arguments[0]!r}")
    clean(Console())
    return 0


def _list(arguments: list[str]) -> int:
    from rich.console import Console

    from testbed.experiment import list_all

    if arguments:
        raise UserError(f"list takes no argument, got {arguments[0]!r}")
    list_all(Console())
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "report": _report,
    "fidelity": _fidelity,
    "doctor": _doctor,
    "clean": _clean,
    "list": _list,
}

_PARSED = ("report", "fidelity")
"""Those with options of their own, which tell them."""

if __name__ == "__main__":
    sys.exit(main())
