"""The relay in C as part of the set-up: built once, anew when its sources change, and never a reason to fail."""

import io
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_project import fake_venv, write

from testbed.progress import Progress
from testbed.setup import debian, install, native
from testbed.setup.install import State, _write_state, lacks, set_up

MISSING = ("the relay in C",)
needs_compiler = pytest.mark.skipif(not shutil.which(native.COMPILER), reason="no C compiler")


@pytest.fixture
def ready(tmp_path: Path) -> install.Recipe:
    """A project that looks set up but for its relay."""
    recipe = write(tmp_path)
    fake_venv(recipe)
    _write_state(recipe, State("ready", recipe.key(), ()))
    source(recipe).parent.mkdir(parents=True)
    source(recipe).write_text("int main(void) { return 7; }\n")
    return recipe


def source(recipe: install.Recipe) -> Path:
    return recipe.checkout / "testbed" / "shapers" / "native" / "relay.c"


def told(recipe: install.Recipe) -> str:
    """What a set-up says."""
    out = io.StringIO()
    set_up(recipe, ["run"], Progress(out))
    return out.getvalue()


@needs_compiler
def test_it_is_built_once_and_runs(ready):
    assert lacks(ready, ["run"]) == MISSING
    assert native.built(ready.checkout) is None
    assert "compiling the relay in C" in told(ready)
    assert lacks(ready, ["run"]) == () and told(ready) == ""
    program = native.built(ready.checkout)
    assert program and program.is_relative_to(ready.venv) and subprocess.run([program], check=False).returncode == 7


@needs_compiler
def test_new_sources_make_a_new_program_and_the_old_one_goes(ready):
    told(ready)
    old = native.built(ready.checkout)
    source(ready).with_name("other.h").write_text("/* more */\n")
    assert native.built(ready.checkout) is None and lacks(ready, ["run"]) == MISSING
    told(ready)
    new = native.built(ready.checkout)
    assert new and old and new != old and list(new.parent.iterdir()) == [new]


@needs_compiler
def test_a_fresh_environment_and_another_place_call_for_a_build(ready, tmp_path):
    told(ready)
    moved = replace(ready, checkout=tmp_path / "moved")
    shutil.copytree(ready.checkout, moved.checkout, ignore=shutil.ignore_patterns("moved"))
    assert native.built(moved.checkout), "where it lies is no part of it"
    shutil.rmtree(moved.venv)
    assert native.built(moved.checkout) is None


@needs_compiler
def test_what_does_not_compile_is_said_once_and_not_tried_at_every_start(ready):
    source(ready).write_text("int main(void) { return nonsense; }\n")
    said = told(ready)
    assert "links use the slower Python relay" in said and "nonsense" in said
    assert lacks(ready, ["run"]) == () and native.built(ready.checkout) is None
    assert native.fault(ready.checkout).count("\n") == 0
    native.forget_fault(ready.checkout)
    assert lacks(ready, ["run"]) == MISSING
    source(ready).write_text("int main(void) { return 0; }\n")
    assert "slower" not in told(ready)
    assert native.fault(ready.checkout) == "" and native.built(ready.checkout)


def test_without_a_compiler_and_root_the_set_up_succeeds_and_says_so(ready, monkeypatch):
    monkeypatch.setattr(native, "COMPILER", "no-such-compiler")
    assert lacks(ready, ["run"]) == ()
    assert native.fault(ready.checkout).startswith("no C compiler")
    ready.state_file.unlink()  # something else is to be set up
    monkeypatch.setattr(install, "_install_python", lambda *_: None)
    assert "links use the slower Python relay" in told(ready)


@needs_compiler
def test_root_gets_the_compiler_first(ready, monkeypatch):
    installed: list[str] = []
    monkeypatch.setattr(native, "COMPILER", "no-such-compiler")
    monkeypatch.setattr(debian, "missing", lambda wanted: [name for name in ("gcc", "libc6-dev") if name in wanted and not installed])

    def apt(packages, progress):
        installed.extend(packages)
        monkeypatch.undo()

    monkeypatch.setattr(debian, "install", apt)
    root = replace(ready, root=True)
    (missing,) = lacks(root, ["run"])
    assert missing == "the Debian packages gcc, libc6-dev"
    told(root)
    assert installed == ["gcc", "libc6-dev"] and native.built(ready.checkout)


@needs_compiler
def test_it_belongs_to_the_owner_of_the_checkout(ready, monkeypatch):
    given = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.update({Path(path).name: uid}))
    native.build(ready.checkout, lambda command: subprocess.run(command, check=True), owner=(1234, 5))
    assert given == {"libexec": 1234}, "what the compiler writes is its user's already"
    program = native.built(ready.checkout)
    assert program and stat.S_IMODE(program.stat().st_mode) & 0o055 == 0o055, "others may run it"


@needs_compiler
def test_a_checkout_that_can_not_be_written_is_used_as_it_is(ready, monkeypatch):
    told(ready)
    folder = native.target(ready.checkout).parent
    source(ready).write_text("int main(void) { return 8; }\n")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and Path(path).exists())
    assert lacks(ready, ["run"]) == ()
    assert native.fault(ready.checkout).startswith(f"{folder} can't be written: links use the slower Python relay")


def test_a_checkout_without_sources_lacks_nothing(tmp_path):
    recipe = write(tmp_path)
    assert (native.lacking(recipe.checkout), native.built(recipe.checkout), native.fault(recipe.checkout)) == (False, None, "")


@needs_compiler
def test_an_interrupted_build_leaves_nothing_that_is_taken_for_the_program(ready):
    def interrupt(command):
        Path(command[command.index("-o") + 1]).write_text("half a program")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        native.build(ready.checkout, interrupt)
    assert native.built(ready.checkout) is None and lacks(ready, ["run"]) == MISSING
    told(ready)
    program = native.built(ready.checkout)
    assert program and list(program.parent.iterdir()) == [program]
