"""What went wrong and whose turn it is: errors that the command line turns into one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """The user's input can't be used. The text is one sentence: what, where, the value seen, the value wanted. Exit code 2."""


class TestbedError(Exception):
    """The testbed itself failed: the text says which step, on what. Exit code 1."""


class AnswerError(ValueError):
    """A policy's answer can't be meant. The text goes on from "the policy": `answered 7, wanted a level of 0 to 5`."""


def unread(answer: object, error: Exception) -> str:
    """An answer that could not be converted, and what that raised, on one line: `'ahead' (ValueError: could not convert ...)`."""
    return " ".join(f"{answer!r:.200} ({type(error).__name__}: {error!s:.200})".split())


def suggestion(seen: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: `did you mean ...` when one is near, and what is known."""
    names = sorted(known)
    near = get_close_matches(seen, names, n=1)
    return f"did you mean {near[0]}? (known: {', '.join(names)})" if near else f"wanted one of {', '.join(names)}"
