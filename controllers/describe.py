"""What policies call themselves: `python -m controllers.describe REFERENCE...` prints it as JSON.

A user's policy is code, and the process that builds the network is root; so another process, which runs as the user, reads it.
"""

import sys
from collections.abc import Sequence

import msgspec

from controllers.loader import load_all
from testbed.errors import UserError


class PolicyCard(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy is named and shown, and the reference that loads it in any process from anywhere."""

    name: str
    reference: str
    label: str
    colour: str
    citation: str


def describe(references: Sequence[str]) -> list[PolicyCard]:
    """A card for each reference; raises `UserError` when one can't be loaded or two bear one name."""
    return [
        PolicyCard(
            name=factory.name,
            reference="+".join([factory.reference.target, *(f"{name}={value}" for name, value in factory.reference.options)]),
            label=factory.label,
            colour=factory.colour,
            citation=factory.citation,
        )
        for factory in load_all(references)
    ]


def main(references: Sequence[str]) -> int:
    """Print the cards; one sentence on stderr and code 2 for a reference that can't be used."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(describe(references)))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
