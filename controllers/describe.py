"""What policies are called, and whether they start. Main, which may be root, asks a user process: `python -m controllers.describe`."""

import os
from typing import Any

import msgspec

from controllers.api import AbrSession, CjsSession, VpSession
from controllers.loader import KINDS, PolicyFactory, load_all, raised
from controllers.options import options_of
from controllers.stdio import Fault, claim_stdout, take_stdin
from testbed.errors import UserError


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What do `references` name, and can each start this session?"""

    references: tuple[str, ...]
    task: str = "abr"
    session: AbrSession | None = None
    """Without this, `scheduling` and `viewing` nothing is made, only described."""
    scheduling: CjsSession | None = None
    viewing: VpSession | None = None
    seed: int = 0


def describe(question: Question) -> list[dict[str, Any]]:
    """How each policy is named and shown, its reference, source, options. Raises `UserError` for one that can't be found, made or reset."""
    found = load_all(question.references, question.task)
    if session := question.session or question.scheduling or question.viewing:
        for factory in found:
            shipped = factory.policy_class.__module__ == f"{KINDS[question.task].package}.netllm" and not factory.arguments
            if not shipped:  # what ships starts, and would take torch and seconds to say so
                _try(factory, session, question.seed)
    return [
        {
            "name": each.name,
            "label": each.label,
            "colour": each.colour,
            "citation": each.citation,
            "reference": each.reference.canonical,
            "source_sha256": each.source_sha256,
            "options_sha256": each.options_sha256,
            "options": options_of(each.policy_class),
        }
        for each in found
    ]


def _try(factory: PolicyFactory, session: AbrSession | CjsSession | VpSession, seed: int) -> None:
    try:
        factory().reset(session, seed)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's policy may raise
        raise UserError(f"policy {factory.name!r}: starting a session with it failed, it {raised(error)}") from error


def main() -> int:
    """Answer a `Question` with a JSON list, or a `Fault` and exit code 2."""
    out = claim_stdout()
    answer: list[dict[str, Any]] | Fault
    try:
        answer = describe(msgspec.json.decode(take_stdin(), type=Question))
    except UserError as error:
        answer = Fault(sentence=" ".join(str(error).split()))
    out.write(msgspec.json.encode(answer))
    out.flush()
    return 2 if isinstance(answer, Fault) else 0


if __name__ == "__main__":
    os._exit(main())  # a thread that a policy started doesn't hold it
