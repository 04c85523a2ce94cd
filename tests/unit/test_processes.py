"""Work in several processes: results, and scripts that processes may import."""

import os
import subprocess
import sys
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


@pytest.mark.parametrize("script", ["ablate", "adapt", "evaluate", "train"])
def test_a_process_that_a_script_starts_does_not_start_the_script_again(script):
    code = f"import runpy; runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name='__mp_main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
