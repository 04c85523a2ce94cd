"""Tables in Markdown and on a terminal that they fit in."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOMY = 160
"""Columns that the tables of an evaluation fit in."""


def roomy() -> Console:
    """Standard output, where it is a terminal as wide as that is; else as wide as the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=ROOMY)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Texts to the left, numbers to the right."""
    filled = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    right = [all(row[i][:1] in "0123456789+<-\N{MINUS SIGN}\N{EN DASH}*" for row in filled) and i > 0 for i in range(len(headings))]
    rule = ["---:" if each else "---" for each in right]
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *filled)]


def print_table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same on the terminal: the first column to the left, the others to the right."""
    drawn = Table(title=escape(title), title_justify="left")
    for i, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if i else "left")
    for row in rows:
        drawn.add_row(*(escape(cell.strip("`")) for cell in row))
    console.print(drawn)
