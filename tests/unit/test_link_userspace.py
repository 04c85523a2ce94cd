"""The testbed's side of a relay: what a late answer may be taken for."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.errors import TestbedError
from testbed.shapers import messages, userspace
from testbed.shapers.messages import Stop
from testbed.shapers.userspace import RelaySet


def test_a_late_answer_is_not_that_to_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "ANSWER_TIMEOUT_S", 0.05)
    ends: list[socket.socket] = []

    def spawn(argv: list[str], pass_fds: list[int], **_: object) -> SimpleNamespace:
        ends.append(socket.socket(fileno=os.dup(pass_fds[0])))
        return SimpleNamespace(pid=1, poll=lambda: None, wait=lambda **_: 0)

    relay = RelaySet(spawn, tmp_path, "python")
    with ends[0] as theirs:
        theirs.send(messages.ANSWER.pack(messages.READY))
        assert relay.problems == []
        with pytest.raises(TestbedError, match="does not answer .timed out; it runs"):
            relay.request(Stop(lane=1))
        theirs.send(messages.ANSWER.pack(messages.DONE))
        theirs.send(messages.ANSWER.pack(messages.FAILED) + b"there is no lane 2")
        with pytest.raises(TestbedError, match="does not answer"):
            relay.request(Stop(lane=2))
        relay.close()
