"""What makes a real-time test void: a standstill after it began, and nothing before."""

import time

import pytest
import quiet


def test_only_a_standstill_after_the_beginning_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_s = time.monotonic() + 1000.0  # what real witnesses say while this runs is before it
    monkeypatch.setattr(quiet, "_begun_s", begun_s)
    monkeypatch.setattr(quiet, "_told_s", [begun_s - 1.0])
    assert not quiet.host_stood_still()
    monkeypatch.setattr(quiet, "_told_s", [begun_s - 1.0, begun_s + 0.01])
    assert quiet.host_stood_still()
