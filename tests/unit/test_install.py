"""The set-up: what it finds missing, what it leaves when it's cut short, and that it mends that. For real pip see `tests/contract`."""

import io
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_project import PYPROJECT, fake_venv, recipe, write

from testbed.errors import TestbedError, UserError
from testbed.progress import Progress
from testbed.setup import debian, install
from testbed.setup.install import State, _read_state, _write_state, lacks, set_up


def quiet() -> Progress:
    return Progress(io.StringIO())


@pytest.fixture
def ready(tmp_path: Path) -> install.Recipe:
    """A project that looks set up."""
    recipe = write(tmp_path)
    fake_venv(recipe)
    _write_state(recipe, State("ready", recipe.key(), ()))
    return recipe


def test_nothing_is_missing_once_ready(ready):
    assert lacks(ready, ["run"]) == ()
    assert install.usable(ready)


def test_an_extra_is_missing_until_it_was_installed(ready):
    assert lacks(ready, ["run", "test"]) == ("the Python packages of its extra `test`",)
    _write_state(ready, State("ready", ready.key(), ("test",)))
    assert lacks(ready, ["run", "test"]) == ()


@pytest.mark.parametrize("state", [State("building"), State("made"), State("installed"), State(), State("ready", "another key")])
def test_a_set_up_that_did_not_end_is_no_set_up(ready, state):
    _write_state(ready, replace(state, key=state.key or ready.key()))
    assert len(lacks(ready, ["run"])) == 1


def test_a_damaged_state_file_is_no_set_up(ready):
    for text in ("", "{", "[]", '{"status": "ready"}', "null"):
        ready.state_file.write_text(text)
        assert len(lacks(ready, ["run"])) == 1, text


def test_new_dependencies_call_for_a_set_up_and_tool_settings_do_not(ready):
    project = ready.checkout / "pyproject.toml"
    project.write_text(PYPROJECT + "\n[tool.ruff]\nline-length = 1\n")
    assert lacks(ready, ["run"]) == ()
    project.write_text(PYPROJECT.replace("dependencies = []", 'dependencies = ["six"]', 1))
    assert lacks(ready, ["run"]) == (f"the Python packages of {project}",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"include-system-site-packages": "false"}, "sees the system's packages"),
        ({"command": "python3 -m venv /elsewhere/.venv"}, "moved"),
        ({"version": "3.99.0"}, "sees the system's packages"),
    ],
)
def test_an_unfit_environment_is_named_with_its_fault(tmp_path, changes, said):
    recipe = write(tmp_path)
    fake_venv(recipe, **changes)
    _write_state(recipe, State("ready", recipe.key(), ()))
    (fault,) = lacks(recipe, ["run"])
    assert said in fault


def test_root_wants_the_environment_made_from_the_systems_python(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "missing", lambda wanted: [])
    root = recipe(tmp_path, root=True)
    write(tmp_path)
    fake_venv(root, home="/opt/python/bin")
    _write_state(root, State("ready", root.key(), ()))
    assert "sees Mininet" in lacks(root, ["run"])[0]
    assert lacks(replace(root, root=False), ["run"]) == ()


def test_only_root_asks_for_debian_packages(ready, monkeypatch):
    monkeypatch.setattr(debian, "missing", lambda wanted: [name for name in wanted if name == "mininet"])
    assert lacks(ready, ["run"]) == ()
    assert "the Debian packages mininet" in lacks(replace(ready, root=True), ["run"])


def test_the_checkouts_owner_behind_sudo_runs_the_steps_and_nobody_else(tmp_path):
    owner = (os.getuid(), os.getgid())
    assert replace(write(tmp_path), caller=owner).user == owner
    assert replace(write(tmp_path), caller=(owner[0] + 1, owner[1])).user is None
    assert "PYTHONDONTWRITEBYTECODE" in install.environment(replace(write(tmp_path), caller=owner))
    assert install.environment(write(tmp_path))["PYTHONSAFEPATH"] == "1"


def test_an_unwritable_checkout_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="can't be written"):
        set_up(write(tmp_path), ["run"], quiet())


def test_when_only_debian_packages_are_missing_pip_is_left_alone(ready, monkeypatch):
    missing, installed = ["kmod"], []
    monkeypatch.setattr(debian, "missing", lambda wanted: missing)
    monkeypatch.setattr(debian, "install", lambda packages, progress: installed.extend(packages))
    monkeypatch.setattr(install, "_install_python", None)
    set_up(replace(ready, root=True), ["run"], quiet())
    assert installed == ["kmod"]


@pytest.mark.parametrize(("error", "code"), [(UserError("x"), 2), (TestbedError("x"), 1), (KeyboardInterrupt(), 130)])
def test_exit_codes(error, code, capsys):
    def go() -> int:
        raise error

    assert install.exit_code(go) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_script_goes_on_inside_once(ready, monkeypatch):
    became = []
    monkeypatch.setattr(install, "Recipe", lambda: ready)
    monkeypatch.setattr(os, "execve", lambda program, arguments, env: became.append((program, arguments)))
    monkeypatch.setattr("sys.argv", ["scripts/adapt", "abr"])
    install.go_on_inside()
    assert became == [(ready.python, [str(ready.python), "scripts/adapt", "abr"])]
    monkeypatch.setattr("sys.prefix", str(ready.venv))
    install.go_on_inside()
    assert len(became) == 1


def test_a_script_ends_when_the_set_up_fails(ready, monkeypatch):
    monkeypatch.setattr(install, "Recipe", lambda: ready)
    monkeypatch.setattr(install, "lacks", lambda recipe, groups: ("something",))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit) as exit:
        install.go_on_inside()
    assert exit.value.code == 2


def test_an_unknown_group_is_a_sentence(capsys):
    assert install.command(["tset"]) == 2
    assert "did you mean test?" in capsys.readouterr().err


def test_a_second_set_up_waits_and_then_finds_nothing_to_do(ready):
    ready.state_file.unlink()
    told = io.StringIO()
    entered, release = multiprocessing.Event(), multiprocessing.Event()

    def first() -> None:
        with install._alone(ready, quiet()):
            entered.set()
            release.wait()
            _write_state(ready, State("ready", ready.key(), ()))

    class Watching(Progress):
        def say(self, text: str) -> None:
            super().say(text)
            release.set()

    process = multiprocessing.get_context("fork").Process(target=first)
    process.start()
    entered.wait()
    set_up(ready, ["run"], Watching(told))
    process.join()
    assert "waiting for another set-up" in told.getvalue()
    assert "Setting up" not in told.getvalue()


def test_what_another_user_left_is_given_to_the_one_who_runs_the_steps(ready, monkeypatch):
    changed = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: changed.append((str(path), uid)))
    owner = ready.venv.stat().st_uid
    other = replace(ready, caller=(owner, 5), root=True)
    install._own(other)
    assert changed == []
    monkeypatch.setattr(install.Recipe, "user", (owner + 1, 5))
    install._own(other)
    assert (str(ready.python), owner + 1) in changed


def test_state_survives_a_round_trip_and_is_replaced_whole(ready):
    _write_state(ready, State("installed", "k", ("a", "b")))
    assert _read_state(ready) == State("installed", "k", ("a", "b"))
    assert json.loads(ready.state_file.read_text())["status"] == "installed"
    assert not ready.state_file.with_suffix(".new").exists()
