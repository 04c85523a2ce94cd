"""A kernel that says for how long a player's thread waited for a core."""

from pathlib import Path

import pytest

from players import waits


class Kernel:
    """Says in a file how long the thread has waited."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.waited_ms = folder / "schedstat", 700
        monkeypatch.setattr(waits, "SCHEDSTAT", self.path)
        self.wait(0)

    def wait(self, more_ms: int) -> None:
        self.waited_ms += more_ms
        self.path.write_text(f"12345 {self.waited_ms * 10**6} 99\n")
