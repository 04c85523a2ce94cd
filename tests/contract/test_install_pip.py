"""The set-up with real pip and venv, on a project that needs no network: failures, kill -9, Ctrl-C, and the mending of what they leave."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_project import write

from testbed.progress import CommandFailed, Progress
from testbed.setup import install
from testbed.setup.install import _read_state, lacks, set_up

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent / 'unit'}"}
CAPABLE = install._can_make_venv(Path("/usr/bin/python3"))
pytestmark = pytest.mark.skipif(not CAPABLE, reason="/usr/bin/python3 can't make virtual environments")


def quiet() -> Progress:
    return Progress(io.StringIO())


def test_from_nothing_through_failures_and_a_kill_to_ready(tmp_path):
    recipe = write(tmp_path)
    fail, hang, hanging = (tmp_path / name for name in ("fail", "hang", "hanging"))
    fail.touch()
    with pytest.raises(CommandFailed, match="told to fail"):
        set_up(recipe, ["run"], quiet())
    assert _read_state(recipe).status == "made", "pip failed before it installed anything: nothing to make anew"
    fail.unlink()

    hang.touch()
    child = subprocess.Popen([sys.executable, "-c", SET_UP, str(tmp_path)], env=ENVIRONMENT)
    wait_for(hanging)
    child.kill()
    child.wait()
    for orphan in running_in(tmp_path):  # pip dies with the set-up; the build back end that it started would go on to its end
        os.kill(orphan, signal.SIGKILL)
    assert "cut short" in lacks(recipe, ["run"])[0]
    hang.unlink()

    set_up(recipe, ["run"], quiet())
    assert lacks(recipe, ["run"]) == ()
    assert subprocess.run([recipe.python, "-c", "import backend"], check=False, cwd="/").returncode == 0, "installed in editable form"
    made = (recipe.venv / "pyvenv.cfg").stat().st_mtime_ns
    set_up(recipe, ["run", "test"], quiet())
    assert lacks(recipe, ["run", "test"]) == ()
    assert (recipe.venv / "pyvenv.cfg").stat().st_mtime_ns == made, "an extra is added, nothing is made anew"
    assert _read_state(recipe).extras == ("test",)


def test_ctrl_c_stops_pip_and_leaves_what_was_there(tmp_path):
    recipe = write(tmp_path)
    (tmp_path / "hang").touch()
    child = subprocess.Popen([sys.executable, "-c", SET_UP, str(tmp_path)], env=ENVIRONMENT)
    wait_for(tmp_path / "hanging")
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 130
    assert _read_state(recipe).status == "made"
    assert running_in(tmp_path) == [], "a command of the set-up still runs"


def running_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.resolve(strict=True) == folder:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


SET_UP = """
import io, sys
from pathlib import Path
from testbed.setup import install
from testbed.progress import Progress
from tiny_project import recipe

def go():
    install.set_up(recipe(Path(sys.argv[1])), ["run"], Progress(io.StringIO()))
    return 0

sys.exit(install.exit_code(go))
"""


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
