"""Debian's packages, with stand-ins for dpkg and apt that log what they are asked; and the runner of commands with its progress."""

import fcntl
import io
import os
import signal
import stat
from pathlib import Path

import pytest

from testbed.errors import TestbedError, UserError
from testbed.progress import CommandFailed, Progress
from testbed.setup import debian

LOG = 'echo "$(basename "$0") $*" >> "$LOG"\n'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that is all of PATH but the basics; each call is a line of `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "calls"))
    monkeypatch.setattr(debian, "_LOCKS", (str(tmp_path / "lock"),))
    for name in ("dpkg", "apt-get", "apt-cache", "dpkg-query"):
        write(folder / name, "")
    return folder


def write(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{LOG}{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(programs: Path) -> list[str]:
    return [line.split(" -y")[0] for line in (programs.parent / "calls").read_text().splitlines()]


def quiet() -> Progress:
    return Progress(io.StringIO())


def test_only_wholly_installed_packages_count(programs):
    write(programs / "dpkg-query", "printf 'git installed\\nmininet half-configured\\nethtool config-files\\n'; exit 1")
    assert debian.missing(["ethtool", "git", "mininet", "procps"]) == ["ethtool", "mininet", "procps"]


def test_a_system_without_dpkg_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert debian.missing([]) == []
    with pytest.raises(UserError, match="Debian 12 or 13"):
        debian.missing(["git"])


def test_known_packages_are_installed_without_an_update(programs):
    write(programs / "apt-cache", "printf 'git:\\n  Installed: (none)\\n  Candidate: 1:2.39\\n'")
    debian.install(["git"], quiet())
    assert calls(programs) == ["dpkg --configure -a", "apt-cache policy git", "apt-get install"]


@pytest.mark.parametrize("policy", ["printf ''", "printf 'git:\\n  Installed: (none)\\n  Candidate: (none)\\n'"])
def test_unknown_packages_call_for_an_update_first(programs, policy):
    write(programs / "apt-cache", policy)
    debian.install(["git"], quiet())
    assert calls(programs)[-2:] == ["apt-get update", "apt-get install"]


def test_an_install_from_old_lists_is_tried_once_more_after_an_update(programs):
    write(programs / "apt-cache", "printf 'git:\\n  Candidate: 1:2.39\\n'")
    write(programs / "apt-get", '[ "$1" = update ] && touch "$LOG.new"; [ -e "$LOG.new" ] || { echo 404; exit 100; }')
    debian.install(["git"], quiet())
    assert calls(programs)[-3:] == ["apt-get install", "apt-get update", "apt-get install"]


def test_a_failing_install_is_told_with_its_last_lines(programs):
    write(programs / "apt-get", 'echo "E: no space left"; exit 100')
    with pytest.raises(CommandFailed, match="exit code 100"):
        debian.install(["git"], quiet())


def test_apt_is_told_not_to_ask(programs):
    write(programs / "apt-get", 'echo "$DEBIAN_FRONTEND" >> "$LOG"')
    debian.install(["git"], quiet())
    assert calls(programs)[-1] == "noninteractive"


def test_waiting_for_another_package_manager_ends(programs, monkeypatch):
    lock = programs.parent / "lock"
    assert not debian._held(str(lock)), "no file, no lock"
    lock.touch()
    assert not debian._held(str(lock))
    reader, writer = os.pipe()
    child = os.fork()  # a lock of this very process would not count
    if child == 0:
        with lock.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    naps = []
    monkeypatch.setattr(debian.time, "sleep", naps.append)
    clock = iter(range(0, 10_000, 100))
    try:
        with pytest.raises(TestbedError, match="another package manager has held"):
            debian.install(["git"], Progress(io.StringIO(), lambda: float(next(clock))))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert naps


def test_output_is_returned_and_chosen_lines_are_told():
    told = io.StringIO()
    clock = iter(range(0, 1000, 10))
    progress = Progress(told, lambda: float(next(clock)))
    lines = progress.run("count", ["sh", "-c", "echo Downloading a; echo b; printf c"], ("Downloading",))
    assert lines == ("Downloading a", "b", "c")
    assert "s]   Downloading a\n" in told.getvalue()


def test_silence_is_broken():
    told = io.StringIO()
    clock = iter(range(0, 100_000, 20))
    Progress(told, lambda: float(next(clock))).run("slow", ["sh", "-c", "echo x; sleep 0.01"])
    assert "still at it: x\n" in told.getvalue()


def test_of_a_line_that_is_drawn_again_and_again_the_last_is_taken():
    assert quiet().run("bar", ["printf", "10 %%\\r50 %%\\r100 %%\\n"]) == ("100 %",)


def test_a_service_that_keeps_the_pipe_open_does_not_keep_the_set_up_waiting():
    lines = quiet().run("start", ["sh", "-c", "sleep 30 & echo $!"])
    os.kill(int(lines[-1]), signal.SIGKILL)


def test_an_interrupted_command_is_stopped_and_its_last_lines_are_kept():
    class CtrlC(io.StringIO):
        def write(self, text: str) -> int:
            if "up" in text:
                raise KeyboardInterrupt
            return super().write(text)

    clock = iter(range(0, 100_000, 10))
    progress = Progress(CtrlC(), lambda: float(next(clock)))
    with pytest.raises(KeyboardInterrupt):
        progress.run("wait", ["sh", "-c", "trap 'echo stopped; exit' INT; echo up; while :; do sleep 0.01; done"], ("up",))
    assert progress.last_lines == ("up", "stopped")
