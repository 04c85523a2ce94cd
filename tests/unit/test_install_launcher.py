"""The launcher as a process, in a copy of the files it needs, on a host that was never set up: what it says, and that it leaves nothing."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.setup import install

CHECKOUT = Path(__file__).parents[2]
NEEDED = (
    "__init__",
    "run",
    "setup/__init__",
    "setup/install",
    "setup/native",
    "setup/debian",
    "setup/dashjs",
    "setup/encode",
    "progress",
    "errors",
    "clock",
    "user",
    "units",
    "host",
    "doctor",
    "cache",
    "docker",
)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """A checkout with the files that run before the set-up, and no other; the test fails when anything was added to it."""
    (tmp_path / "testbed" / "setup").mkdir(parents=True)
    for name in NEEDED:
        shutil.copy(CHECKOUT / "testbed" / f"{name}.py", tmp_path / "testbed" / f"{name}.py")
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    yield tmp_path
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert left == {"pyproject.toml", *(f"testbed/{name}.py" for name in NEEDED)}


def launch(checkout: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(checkout / "testbed" / "run.py"), *arguments]  # -S: no packages but the standard library's
    return subprocess.run(command, cwd=cwd or checkout, capture_output=True, text=True, check=False)


def test_no_setup_refuses_in_one_sentence(bare):
    done = launch(bare, "--trace", "fcc", "--no-setup")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this host lacks ")
    assert "virtual environment" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_installs_nothing(bare):
    done = launch(bare, "--help")
    assert done.returncode == 0
    assert "--no-setup" in done.stderr


def test_doctor_looks_and_changes_nothing(bare):
    done = launch(bare, "doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert not told["ready"]
    verdicts = {finding["name"]: finding["verdict"] for finding in told["findings"]}
    assert verdicts["packages"] == "stop"
    assert verdicts["netem"] == verdicts["data sets"] == "unknown"


def test_doctor_shows_a_plain_table_before_the_set_up(bare):
    done = launch(bare, "doctor")
    assert "stop     packages: missing:" in done.stdout
    assert "The main job can't run here yet" in done.stdout


def test_a_folder_of_misleading_names_does_no_harm(bare, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "json.py").write_text("raise SystemExit('json of the working directory')")
    (elsewhere / "testbed").mkdir()
    (elsewhere / "testbed" / "install.py").write_text("raise SystemExit('another testbed')")
    assert launch(bare, "--no-setup", cwd=elsewhere).returncode == 2


def test_an_old_python_is_told_what_is_wanted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(CHECKOUT / "testbed" / "run.py"))
    assert exit.value.code == 2
    assert "this is Python 3.9, wanted 3.11 or newer" in capsys.readouterr().err


def test_the_launchers_syntax_is_readable_for_old_pythons():
    import ast

    for name in ("testbed/run.py", "scripts/setup", "scripts/test"):
        ast.parse((CHECKOUT / name).read_text(), feature_version=(3, 7))


def test_when_nothing_is_missing_it_becomes_the_command_line(monkeypatch):
    became = []
    monkeypatch.setattr(install, "lacks", lambda recipe, groups: ())
    monkeypatch.setattr("os.execve", lambda program, arguments, env: became.append((arguments[1:], env["PYTHONSAFEPATH"])))
    monkeypatch.setattr(sys, "argv", ["run.py", "--trace", "fcc", "--no-setup", "--chunks", "5"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(SystemExit):
        runpy.run_path(str(CHECKOUT / "testbed" / "run.py"), run_name="__main__")
    assert became == [(["-m", "testbed.cli", "--trace", "fcc", "--chunks", "5"], "1")]


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (CHECKOUT / "scripts").iterdir() if path.name not in ("setup", "test", "guest"))
)
def test_a_script_first_sees_to_its_packages(monkeypatch, name):
    """On a fresh checkout, too, where there is nothing to go on in."""
    seen = []

    def go_on_inside(*groups):
        seen.append(groups)
        raise SystemExit(7)

    monkeypatch.setattr(install, "go_on_inside", go_on_inside)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    with pytest.raises(SystemExit, match="7"):
        runpy.run_path(str(CHECKOUT / "scripts" / name), run_name="__main__")
    assert len(seen) == 1
