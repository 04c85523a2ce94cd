"""When, from what and on what an evaluation was made: the first lines of its header."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.host import cpu_field

_FOLDERS = re.compile(r"(?<![\w.])[~/][^\s,=+]*/")


@dataclass(frozen=True)
class Origin:
    """What every header begins with."""

    utc: str
    commit: str
    command: str
    """How to do it again; of files and folders only the names are told."""
    hardware: str


def origin(function: str) -> dict[str, Any]:
    """The fields of an `Origin`. `function` is what was called where it was no command."""
    words = [without_folders(word) for word in sys.argv[1:]]
    return {
        "utc": utc_now().isoformat(timespec="seconds"),
        "commit": checkout_commit() or "unknown",
        "command": command_line("scripts/evaluate", words) if Path(sys.argv[0]).name == "evaluate" else f"{function}(...)",
        "hardware": cpu_field("model name") or "unknown processor",
    }


def without_folders(text: str) -> str:
    """The text with the name alone of each absolute path in it."""
    return _FOLDERS.sub("", text)
