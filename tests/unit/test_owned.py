"""What `clean` removes: recorded processes that are still the same, bearers of the run's token, settings as we left them. Nothing else."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from testbed.docker import sweep
from testbed.errors import TestbedError, UserError
from testbed.netns import owned
from testbed.netns.owned import (
    TOKEN_VARIABLE,
    ChangedSetting,
    Cleaned,
    Header,
    OwnedContainers,
    OwnedProcess,
    Run,
    clean,
    run_lock,
    start_ticks,
)

TOKEN = "0123456789abcdef"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def record(state: Path, *lines: msgspec.Struct, torn: bytes = b"", boot_id: str | None = None) -> None:
    """What a run that was killed had written."""
    folder = state / "killed"
    folder.mkdir()
    header = Header("killed", TOKEN, boot_id or owned._boot_id(), 2**22 + 1, 5)
    (folder / "owned.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in (header, *lines)) + torn)


def alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process runs."""
    return process.poll() is None


def test_a_recorded_process_is_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, OwnedProcess(sleeper.pid, start_ticks(sleeper.pid) or 0, "sleep 300"), torn=b'{"type":"process","pid":')
    assert clean(tmp_path).removed == [f"process {sleeper.pid} (sleep 300)", "state of run killed"]
    assert sleeper.wait(timeout=5) == -9
    assert clean(tmp_path).removed == []


@pytest.mark.parametrize("shift", [1, -1])
def test_another_process_of_that_pid_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes], shift: int) -> None:
    record(tmp_path, OwnedProcess(sleeper.pid, (start_ticks(sleeper.pid) or 0) + shift, "sleep 300"))
    assert clean(tmp_path).removed == ["state of run killed"]
    assert alive(sleeper)


def test_a_process_recorded_without_a_start_time_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, OwnedProcess(sleeper.pid, 0, "sleep 300"))
    assert clean(tmp_path).removed == ["state of run killed"] and alive(sleeper)


def test_a_record_of_before_the_last_boot_ends_nothing(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, OwnedProcess(sleeper.pid, start_ticks(sleeper.pid) or 0, "sleep 300"), boot_id="another")
    assert clean(tmp_path).removed == ["state of run killed"] and alive(sleeper)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]\n", b'{"type":"process","pid":1,"start_ticks":1,"what":"init"}\n'])
def test_a_record_that_makes_no_sense_ends_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "owned.jsonl").write_bytes(content)
    (tmp_path / "empty").mkdir()
    assert clean(tmp_path).removed == ["state of run empty", "state of run killed"]


def test_a_bearer_of_the_token_is_ended_with_its_children(tmp_path: Path) -> None:
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    shell = subprocess.Popen(["sh", "-c", "setsid sleep 300 & echo $!; exec sleep 301"], env=environment, stdout=subprocess.PIPE, text=True)
    assert shell.stdout
    with shell.stdout:
        child = int(shell.stdout.readline())
    record(tmp_path)
    removed = clean(tmp_path).removed
    assert shell.wait(timeout=5) == -9
    assert {shell.pid, child} <= {int(item.split()[1]) for item in removed if item.startswith("process")}


@pytest.mark.parametrize("token", [TOKEN + "0", TOKEN[:-1], ""])
def test_a_bearer_of_another_token_is_left_alone(tmp_path: Path, token: str) -> None:
    process = subprocess.Popen(["sleep", "300"], env={**os.environ, TOKEN_VARIABLE: token, "OTHER": f"{TOKEN_VARIABLE}={TOKEN}"})
    try:
        record(tmp_path)
        assert clean(tmp_path).removed == ["state of run killed"] and alive(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a file `name` with a label in it is a container, of a `docker` that fails while there is a file `.down` in it."""
    folder = tmp_path_factory.mktemp("engine")
    programs = tmp_path_factory.mktemp("programs")
    (programs / "docker").write_text(
        f"""#!/bin/sh
cd {folder}
[ ! -e .down ] || {{ echo "no engine" >&2; exit 1; }}
case $1 in
ps) grep -lx "${{4#label=}}" * ;;
rm) shift 2; rm -- "$@" ;;
esac
exit 0
"""
    )
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


def containers(engine: Path) -> set[str]:
    """Names of those that are there."""
    return {path.name for path in engine.iterdir() if path.name != ".down"}


def test_a_sweep_removes_what_bears_the_label(engine: Path) -> None:
    for name, label in {"a": "ours=1", "b": "ours=1", "c": "ours=12"}.items():
        (engine / name).write_text(label + "\n")
    assert (sorted(sweep("ours=1")), containers(engine)) == (["a", "b"], {"c"})
    assert sweep("ours=1") == []


def test_a_sweep_that_can_not_ask_does_not_say_that_nothing_is_there(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (engine / ".down").touch()
    with pytest.raises(TestbedError, match="docker ps ended with code 1: no engine"):
        sweep("ours=1")
    monkeypatch.setattr("testbed.docker.ANSWER_S", 0.0)
    with pytest.raises(TestbedError, match="docker ps did not answer in 0 s"):
        sweep("ours=1")
    monkeypatch.setenv("PATH", str(engine))
    with pytest.raises(TestbedError, match="there is no docker command"):
        sweep("ours=1")


@pytest.mark.parametrize("boot_id", [None, "another"])
def test_a_record_of_containers_is_kept_until_docker_could_be_asked(tmp_path: Path, engine: Path, boot_id: str | None) -> None:
    (engine / "executor").write_text("ours=1\n")
    (engine / ".down").touch()
    record(tmp_path, OwnedContainers("ours=1"), boot_id=boot_id)
    cleaned = clean(tmp_path)
    assert cleaned.removed == [] and [text.partition(":")[0] for text in cleaned.kept] == ["docker ps ended with code 1"]
    (engine / ".down").unlink()
    assert clean(tmp_path) == Cleaned(["container executor", "state of run killed"])
    assert containers(engine) == set() and not (tmp_path / "killed").exists()


def test_a_run_starts_beside_containers_it_can_not_ask_for(tmp_path: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / ".down").touch()
    record(tmp_path, OwnedContainers("ours=1"))
    with run_lock("mine", tmp_path):
        assert "containers of run killed may be left" in capsys.readouterr().err
    assert (tmp_path / "killed").exists() and not (tmp_path / "mine").exists()


def test_a_run_ends_with_its_containers_or_keeps_their_record(tmp_path: Path, engine: Path) -> None:
    with run_lock("first", tmp_path) as run:
        run.add_containers("ours=1")
        (engine / "executor").write_text("ours=1\n")
    assert containers(engine) == set() and not (tmp_path / "first").exists()
    with pytest.raises(TestbedError, match="containers of run second may be left"), run_lock("second", tmp_path) as run:
        run.add_containers("ours=2")
        (engine / "executor").write_text("ours=2\n")
        (engine / ".down").touch()
    (engine / ".down").unlink()
    assert clean(tmp_path) == Cleaned(["container executor", "state of run second"])


def test_a_setting_is_set_back_if_it_still_is_as_we_left_it(tmp_path: Path) -> None:
    ours, changed_since = tmp_path / "ours", tmp_path / "changed"
    ours.write_text("reno cubic\n")
    changed_since.write_text("bbr")
    (tmp_path / "state").mkdir()
    record(tmp_path / "state", ChangedSetting(str(ours), "reno", "reno cubic"), ChangedSetting(str(changed_since), "reno", "reno cubic"))
    assert clean(tmp_path / "state").removed == [f"change of {ours}", "state of run killed"]
    assert (ours.read_text(), changed_since.read_text()) == ("reno", "bbr")


def test_a_setting_is_changed_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "setting"
    path.write_text("reno\n")
    with run_lock(state_dir=tmp_path / "state") as run:
        with pytest.raises(KeyError), run.changed(path, "reno cubic"):
            assert path.read_text() == "reno cubic"
            raise KeyError
        assert path.read_text() == "reno"


def test_the_end_of_a_run_leaves_the_lock_file_alone(tmp_path: Path) -> None:
    with run_lock("mine", tmp_path) as run:
        assert (run.run_id, run.folder) == ("mine", tmp_path / "mine") and run.folder.stat().st_mode & 0o777 == 0o755
        assert (run.folder / "owned.jsonl").stat().st_mode & 0o777 == 0o600
        process = subprocess.Popen(["sleep", "300"], env=run.environment(dict(os.environ)))
    assert process.wait(timeout=5) == -9  # a straggler
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with pytest.raises(TestbedError, match="is over"):
        run.add_process(1, "init")


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    with run_lock(state_dir=tmp_path):
        for attempt in (lambda: Run("other", tmp_path).__enter__(), lambda: clean(tmp_path)):
            with pytest.raises(UserError, match=f"another run is under way .process {os.getpid()},"):
                attempt()
    with run_lock(state_dir=tmp_path):
        pass


def test_the_lock_dies_with_its_holder_and_not_with_its_children(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from pathlib import Path
from testbed.netns.owned import run_lock
with run_lock(state_dir=Path(sys.argv[1])) as run:
    print(subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL, env=run.environment({"PATH": "/usr/bin:/bin"})).pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        with pytest.raises(UserError, match=f"process {process.pid},"):
            clean(tmp_path)
        process.kill()
        process.wait()
    assert f"process {child} (sleep)" in clean(tmp_path).removed


def forked_orphan(folder: Path, holds_s: float) -> int:
    """The pid of a child that a run, since killed, has forked, and that was not yet its program; it holds the lock for `holds_s`."""
    code = """
import os, sys, time
from pathlib import Path
from testbed.netns.owned import run_lock
with run_lock(state_dir=Path(sys.argv[1])):
    if child := os.fork():
        print(child, flush=True)
    time.sleep(float(sys.argv[2]))
"""
    arguments = [sys.executable, "-c", code, str(folder), str(holds_s)]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
    return child


def test_the_child_that_a_killed_run_was_just_starting_is_waited_for(tmp_path: Path) -> None:
    forked_orphan(tmp_path, 1.5)
    with pytest.raises(BlockingIOError), (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    clean(tmp_path)


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = forked_orphan(tmp_path, 60)
    monkeypatch.setattr("testbed.netns.owned.ORPHAN_TIMEOUT_S", 0.05)
    try:
        with pytest.raises(UserError, match="another run is under way"):
            clean(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("run_id", ["", "../up", "a/b", ".hidden", "x" * 101])
def test_a_run_id_that_is_no_file_name_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(TestbedError, match="run id"):
        Run(run_id, tmp_path)
