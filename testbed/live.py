"""What a running experiment shows on the terminal: a live table with one line a lane, or quiet lines where there is no terminal."""

from types import TracebackType
from typing import Any

from rich.console import Console

from testbed.records import Row, TrialRow


class LiveView:
    """`with LiveView(total_trials, chunks) as view:` and hand it the rows as they come."""

    def __init__(self, total_trials: int, chunks: int, console: Console | None = None) -> None:
        self.total_trials = total_trials
        self.chunks = chunks
        self.console = console or Console()

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def trial_started(self, trial_id: str, policy: str, trace: str, lane: int) -> None:
        """A trial begins in a lane."""

    def row(self, row: Row) -> None:
        """A row of a trial that goes on."""

    def trial_ended(self, row: TrialRow) -> None:
        """A trial is over."""

    def note(self, text: str) -> None:
        """A sentence for the user, above the table."""


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """The table at the end of a run."""
