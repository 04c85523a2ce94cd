"""`scripts/guest [OPTIONS] [--] COMMAND...`: one command in a guest; its output, its exit code, and a folder of what it left."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.clock import utc_now
from testbed.errors import UserError
from testbed.guest import image, machine
from testbed.progress import Progress, termination_interrupts
from testbed.setup.install import exit_code

TIMEOUT_S = 1800.0
INTERRUPTED = 130
RESULTS = image.CHECKOUT / "results"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="scripts/guest",
        description="Runs a command in a copy of this checkout under Debian's own kernel, in QEMU. The first time it builds the image, "
        "which takes root and some minutes. What the command leaves in $GUEST_OUT comes back.",
    )
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, as root, in the checkout")
    made.add_argument("--rebuild", action="store_true", help="build the image anew")
    made.add_argument(
        "--clock",
        choices=sorted(machine.CLOCKS),
        default="virtual",
        help="virtual (default): guest time is the instructions it executes, so the host's load disturbs nothing; real: the host's, faster",
    )
    made.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help="on the host's clock, boot included; default %(default)s")
    made.add_argument("--out", type=Path, help="where $GUEST_OUT comes back; by default results/guest-TIME")
    made.add_argument("--cache", type=Path, default=image.CACHE, help="where images lie; default %(default)s")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run it; the command's exit code, or 2, 1 or 130 and a sentence when it could not be run or was not done."""
    try:
        return exit_code(lambda: _run(arguments))
    except BrokenPipeError:  # whoever read the output has had enough
        sys.stdout = None
        return 1


def _run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command and not options.rebuild:
        raise UserError("scripts/guest got no command, wanted one, as in `scripts/guest -- uname -r`")
    if not options.timeout_s > 0:
        raise UserError(f"--timeout-s is {options.timeout_s}, wanted more than 0")
    out = options.out or RESULTS / f"guest-{utc_now():%Y%m%dT%H%M%S}"
    if out.exists():
        raise UserError(f"--out {out} is there already, wanted a folder that is not")
    if options.out and not os.access(next(folder for folder in out.absolute().parents if folder.exists()), os.W_OK):
        raise UserError(f"--out {out} can't be made, wanted a place where you may write")
    try:
        return _boot(command, out, options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing of the guest is left\n")
        return INTERRUPTED


def _boot(command: Sequence[str], out: Path, options: argparse.Namespace) -> int:
    progress = Progress()
    with termination_interrupts(), image.image(image.recipe(), options.cache, options.rebuild, progress) as (built, lock):
        if not command:
            return 0
        code = machine.run(built, lock, command, options.clock, options.timeout_s, out)
    if out.exists():
        progress.say(f"what the command left is in {out}")
    return code
