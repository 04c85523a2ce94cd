"""The guest without booting one: what goes into its image and to it, and what is made of how it ended."""

import io
import subprocess
import tarfile

import pytest

from testbed.errors import TestbedError, UserError
from testbed.guest import image, machine
from testbed.guest.command import main
from testbed.setup.install import GROUPS

RECIPE = image.Recipe("bookworm", "linux-image-6.1.0-56-cloud-amd64=6.1.192-2", ("numpy==2",))


def heard(status="", console="", qemu=""):
    made = machine.Heard()
    for name, text in (("status", status), ("console", console), ("qemu", qemu)):
        made.add(name, text.encode())
    return made


def test_the_image_has_another_name_when_anything_in_it_is_another():
    others = [
        image.Recipe("trixie", RECIPE.kernel, RECIPE.python),
        image.Recipe(RECIPE.release, RECIPE.kernel.replace("56", "57"), RECIPE.python),
        image.Recipe(RECIPE.release, RECIPE.kernel, ("numpy==3",)),
    ]
    assert len({RECIPE.key, *(other.key for other in others)}) == 4


def test_ci_installs_what_the_guest_needs():
    assert {package for package in image.HOST_PACKAGES if package != "python3-venv"} <= set(GROUPS["ci"].apt)
    assert "python3-venv" in GROUPS["run"].apt


def test_the_guests_python_packages_are_those_of_the_project():
    assert all("==" in pinned for pinned in image._pinned())


def test_another_system_is_told_what_is_wanted(monkeypatch):
    monkeypatch.setattr(image.platform, "freedesktop_os_release", lambda: {"ID": "arch", "PRETTY_NAME": "Arch"})
    with pytest.raises(UserError, match="Arch.*wanted Debian"):
        image.recipe()


def test_without_root_an_image_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(image.os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="root"), image.image(RECIPE, tmp_path, False, None):
        pass
    folder = tmp_path / f"guest-{RECIPE.key}"
    folder.mkdir()
    (folder / "root.cpio").touch()
    with image.image(RECIPE, tmp_path, False, None) as (found, _):
        assert found.folder == folder and image._in_use(folder)
    assert not image._in_use(folder)


def test_a_full_disk_is_told_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(image, "FREE_BYTES", 10**18)
    with pytest.raises(UserError, match="bytes left, wanted"):
        image._build(RECIPE, tmp_path / "guest-x", None)
    assert list(tmp_path.iterdir()) == []


def test_the_checkout_goes_as_it_lies_there_without_what_git_ignores(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name, text in (("known", "old"), ("gone", "x"), (".gitignore", "ignored\n")):
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "-C", tmp_path, "add", "known", "gone", ".gitignore"], check=True)
    (tmp_path / "known").write_text("new")
    (tmp_path / "gone").unlink()
    (tmp_path / "unknown").write_text("y")
    (tmp_path / "ignored").write_text("z")
    archive = io.BytesIO()
    archive.flush = lambda: None
    machine.pack(tmp_path, ["echo", "a b", "$HOME"], archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        held = {member.name: tar.extractfile(member).read().decode() for member in tar}
        owners = {member.uid for member in tar}
    assert held == {".guest-command": "exec echo 'a b' '$HOME'\n", "known": "new", "unknown": "y", ".gitignore": "ignored\n"}
    assert owners == {0}


def test_no_checkout_is_told(tmp_path):
    with pytest.raises(UserError, match="no git checkout"):
        machine.pack(tmp_path, ["true"], io.BytesIO())


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_the_virtual_clock_counts_instructions_of_one_processor(clock, tmp_path):
    argv = machine.arguments(image.Image(tmp_path), 9, clock, dict.fromkeys((*machine.PORTS, "console"), 10))
    assert ("-icount" in argv) == (clock == "virtual")
    if clock == "virtual":
        assert argv[argv.index("-smp") + 1] == "1"
    assert argv[argv.index("-nic") + 1] == "none"


def test_the_commands_exit_code_comes_back():
    assert heard("booted\nexit 7\n", "Kernel panic - not syncing\n").exit_code() == 7


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (heard("booted\n", "x\n[ 1.0] Kernel panic - not syncing: sysrq\nmore\n"), "gave up.*sysrq"),
        (heard("", "", "qemu: no such machine\n"), "did not boot.*no such machine"),
        (heard("booted\n", "last words\n"), "before the command did.*last words"),
    ],
)
def test_another_end_is_told(said, told):
    with pytest.raises(TestbedError, match=told):
        said.exit_code()


@pytest.mark.parametrize(
    ("arguments", "told"), [([], "got no command"), (["--timeout-s", "0", "true"], "timeout-s"), (["--out", "/", "true"], "there already")]
)
def test_a_wrong_command_line_is_one_sentence(arguments, told, capsys):
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.count("\n") == 1


def test_without_qemu_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "which", lambda program: None)
    with pytest.raises(UserError, match="qemu-system-x86"):
        machine.run(image.Image(tmp_path), 0, ["true"], "virtual", 1, tmp_path / "out")
