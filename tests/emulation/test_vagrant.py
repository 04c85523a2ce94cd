"""The Vagrantfile: Vagrant and its libvirt provider accept it, and what it runs in the machines exists. No machine is started."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TEXT = (CHECKOUT / "Vagrantfile").read_text()
SCRIPTS = re.findall(r"<<~SHELL\n(.*?)^SHELL", TEXT, re.MULTILINE | re.DOTALL)


def vagrant(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "VAGRANT_HOME": str(folder / ".home"),
        "VAGRANT_DOTFILE_PATH": str(folder / ".dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
    }
    return subprocess.run(["vagrant", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def providers_known() -> bool:
    plugins = [Path("/usr/share/rubygems-integration/all/specifications"), Path("/usr/share/vagrant-plugins")]
    return shutil.which("vagrant") is not None and any(list(folder.rglob("vagrant-libvirt*")) for folder in plugins)


needs_vagrant = pytest.mark.skipif(not providers_known(), reason="needs Debian's packages vagrant and vagrant-libvirt (scripts/setup ci)")


@needs_vagrant
def test_vagrant_accepts_it(tmp_path):
    (tmp_path / "Vagrantfile").write_text(TEXT)
    done = vagrant(tmp_path, "validate")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_vagrant
@pytest.mark.parametrize(("right", "wrong"), [("libvirt.cpus", "libvirt.cpu_count"), ("machine.vm.hostname", "machine.vm.hostnam")])
def test_a_misspelt_setting_is_found(tmp_path, right, wrong):
    assert right in TEXT
    (tmp_path / "Vagrantfile").write_text(TEXT.replace(right, wrong))
    assert vagrant(tmp_path, "validate").returncode != 0


def test_both_machines_are_named():
    assert '"debian12"' in TEXT
    assert '"ubuntu2404"' in TEXT


@pytest.mark.parametrize("script", SCRIPTS, ids=["set-up", "short run"])
def test_what_it_runs_exists(script):
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    programs = re.findall(r"^\s*python3 (?:/testbed/)?(\S+)", script, re.MULTILINE)
    assert programs
    for program in programs:
        assert (CHECKOUT / program).is_file()


def test_its_short_run_is_a_valid_experiment():
    import tyro

    from testbed.spec import Experiment

    (command,) = re.findall(r"run\.py (--trace .*)", "".join(SCRIPTS))
    experiment = tyro.cli(Experiment, args=shlex.split(command))
    assert "netllm" in experiment.policy_references
    assert experiment.chunks < 48
