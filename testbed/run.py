#!/usr/bin/env python3
"""The launcher: gives this host what it lacks, then becomes `python -m testbed.cli` inside `.venv`. Standard library only."""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (said in a sentence, where an import below would end in a traceback)
    sys.stderr.write("error: this is Python %d.%d, wanted 3.11 or newer: Debian 12 or 13, or Ubuntu 24.04\n" % sys.version_info[:2])  # noqa: UP031
    sys.exit(2)
if "SUDO_UID" in os.environ:
    sys.dont_write_bytecode = True  # root would leave files of its own in the user's checkout
CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = CHECKOUT  # run as a script, the folder of this file stands there, and hides whatever bears a name of a file in it

from testbed.errors import UserError  # noqa: E402
from testbed.setup import install  # noqa: E402

HELP = """\
usage: python3 testbed/run.py [--no-setup] [command] [options]

This host lacks something that the testbed needs, and the list of options with it:
  %s
Any command but these installs it first (as root all of it, else what needs no root):
  run.py doctor       what this host can do
  run.py --no-setup   refuses instead of installing
`scripts/setup` installs and does nothing else.
"""


def main() -> int:
    """Set up what is missing and go on in `.venv`; returns an exit code only when that can't be."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--no-setup"]
    refuses = len(arguments) < len(sys.argv) - 1
    recipe = install.Recipe()
    groups = install.groups_for(arguments)
    missing = install.lacks(recipe, groups)
    if arguments[:1] == ["doctor"]:  # a doctor looks and changes nothing
        if not install.usable(recipe):
            from testbed import doctor

            return doctor.main(arguments[1:])
    elif missing and {"-h", "--help"} & set(arguments):
        sys.stderr.write(HELP % "\n  ".join(missing))
        return 0
    elif missing and refuses:
        lacking = "; ".join(missing)
        raise UserError(f"this host lacks {lacking}, and --no-setup forbids installing it: run scripts/setup, or leave --no-setup out")
    elif missing:
        install.set_up(recipe, groups)
    os.execve(recipe.python, [str(recipe.python), "-m", "testbed.cli", *arguments], install.environment(recipe))


if __name__ == "__main__":
    sys.exit(install.exit_code(main))
