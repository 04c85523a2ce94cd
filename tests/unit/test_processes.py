"""Work in several processes: results, and scripts that processes may import."""

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from testbed.errors import UserError
from testbed.processes import in_processes

ROOT = Path(__file__).parents[2]


def square(number: int) -> int:
    return number * number


def die(number: int) -> None:
    os._exit(number)


def test_every_task_gives_its_result():
    assert dict(in_processes(square, {name: i for i, name in enumerate("abc")}, 2)) == {"a": 0, "b": 1, "c": 4}


def test_a_process_that_is_killed_is_told_in_a_sentence():
    with pytest.raises(UserError, match="a process was killed"):
        dict(in_processes(die, {0: 9}, 2))


def tell_and_wait(fifo: Path) -> None:
    with fifo.open("w") as told:
        told.write(f"{os.getpid()}\n")
    threading.Event().wait()


def test_a_kill_of_the_parent_leaves_no_process(tmp_path):
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    told = f"dict(in_processes(tell_and_wait, dict.fromkeys('ab', Path({str(fifo)!r})), 2))"
    code = f"from pathlib import Path; from tests.unit.test_processes import in_processes, tell_and_wait; {told}"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        with open(os.open(fifo, os.O_RDWR)) as pids:
            workers = [int(pids.readline()) for _ in range(2)]
        handles = [os.pidfd_open(pid) for pid in workers]
    finally:
        parent.kill()
        parent.wait()
    ended = [bool(select.select([handle], [], [], 10)[0]) for handle in handles]
    for pid in (pid for pid, gone in zip(workers, ended, strict=True) if not gone):
        os.kill(pid, 9)
    assert ended == [True, True]


@pytest.mark.parametrize("script", ["ablate", "adapt", "evaluate", "train"])
def test_a_process_that_a_script_starts_does_not_start_the_script_again(script):
    code = f"import runpy; runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name='__mp_main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
