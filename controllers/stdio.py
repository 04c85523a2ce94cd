"""Standard input and output of a process that runs policies: both are for messages, and policies find neither."""

import os
import sys
from typing import BinaryIO

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag="fault", tag_field="event"):
    """The last message of a process that met a user's mistake."""

    sentence: str


def claim_stdout() -> BinaryIO:
    """The process's standard output for messages alone. Call it before a policy is imported: what that prints goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")  # not inherited by what a policy may start
    os.dup2(2, 1)
    return out


def take_stdin() -> bytes:
    """All of standard input, which is empty from then on: a policy that reads it can neither take a message nor wait for one."""
    text = sys.stdin.buffer.read()
    empty_stdin()
    return text


def empty_stdin() -> None:
    """Standard input is at its end from now on, whatever may still come."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
