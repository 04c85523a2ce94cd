"""The project's habits, held by machine: names, sizes, imports, what is never committed. Ruff, mypy and import-linter hold the others."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from controllers.api import CjsSession
from controllers.loader import load
from testbed.sim.abr import run_session
from testbed.sim.cjs import COMPLETE, CjsSimulator
from tests.abr_cases import session, steady
from tests.cjs_cases import random_workload
from tests.vp_cases import observation
from traces.store import data_roots

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("testbed", "traces", "controllers", "players", "netllm")
ENGINE = sorted(path for name in PACKAGES for path in (CHECKOUT / name).rglob("*.py"))
PYTHON = [*ENGINE, *sorted((CHECKOUT / "tests").rglob("*.py"))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
LARGEST_BYTES = 12_000_000


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout: what is committed can't be told")
    return [CHECKOUT / name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()]


def text_of(path: Path) -> str:
    return "" if b"\0" in path.read_bytes()[:8192] else path.read_text(encoding="utf-8", errors="replace")


def test_no_module_of_the_engine_hides_one_of_the_standard_library():
    names = {path.stem for path in (CHECKOUT / "testbed").iterdir()}
    assert not names & sys.stdlib_module_names


def test_no_module_is_called_utils():
    assert not [path for path in PYTHON if re.fullmatch(r"(utils?|helpers?|misc|common)", path.stem)]


def test_no_file_is_longer_than_500_lines():
    assert {path.name: n for path in ENGINE if (n := len(path.read_text().splitlines())) > 500} == {}


def test_every_module_begins_by_saying_what_it_is_for():
    assert [str(path) for path in PYTHON if path.stem != "__init__" and not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_only_the_clock_reads_a_clock():
    reading = re.compile(r"\btime\.(time|monotonic|perf_counter|process_time)(_ns)?\(|datetime\.(now|utcnow|today)\(")
    assert [path.name for path in ENGINE if path.name != "clock.py" and reading.search(path.read_text())] == []


def test_every_module_stands_in_a_layer():
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    placed = {name.strip(" ()") for layer in layers for name in re.split(r"[:|]", layer)}
    modules = {".".join(path.relative_to(CHECKOUT).with_suffix("").parts) for path in ENGINE}
    unplaced = {module for module in modules if not any(module == name or module.startswith(f"{name}.") for name in placed)}
    packages = {f"{name}.__init__" for name in PACKAGES}
    assert unplaced - packages == {"testbed.run"}, "run.py is the launcher, which nothing imports"


@pytest.mark.parametrize(
    "module", ["testbed.cli", "testbed.experiment", "testbed.emulation", "testbed.doctor", "players.headless", "players.origin"]
)
def test_what_runs_as_root_loads_no_language_model(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'netllm'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["setup.install", "setup.debian", "setup.native", "setup.dashjs", "setup.encode", "progress", "checks", "host", "doctor"]
)
def test_the_set_up_needs_only_the_standard_library(module):
    command = [sys.executable, "-S", "-c", f"import testbed.{module}"]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0


def test_no_registry_and_no_path_of_a_machine_is_named():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "deb." + "debian.org", "ubuntu" + ".com", "npm" + "js.org", "py" + "torch.org"]
    machine = re.compile(r"(^|[^A-Za-z0-9_.])/(work|home/\w+|Users/\w+)/")
    named = []
    for path in tracked():
        text = text_of(path)
        named += [f"{path.relative_to(CHECKOUT)}: {host}" for host in hosts if host in text]
        named += [f"{path.relative_to(CHECKOUT)}: {found.group(0)}" for found in machine.finditer(text)]
    assert named == []


def test_no_large_file_is_committed():
    assert {str(path): size for path in tracked() if (size := path.stat().st_size) > LARGEST_BYTES} == {}


def test_no_third_party_data_are_committed():
    roots = [root for root in data_roots() if root.is_dir()]
    if not roots:
        pytest.skip("no data folder on this machine to compare with (scripts/fetch_data NAME fills one)")
    ours: dict[int, list[Path]] = {}
    for path in tracked():
        ours.setdefault(path.stat().st_size, []).append(path)
    copies = [
        f"{path.relative_to(CHECKOUT)} is a copy of {data}"
        for root in roots
        for data in root.rglob("*")
        if data.is_file() and 0 < data.stat().st_size in ours
        for path in ours[data.stat().st_size]
        if path.read_bytes() == data.read_bytes()
    ]
    assert copies == []


def test_the_readme_and_ci_agree_on_the_commands():
    readme, ci = (CHECKOUT / "README.md").read_text(), (CHECKOUT / ".ci" / "run").read_text()
    assert "sudo python3 testbed/run.py --trace fcc" in readme
    assert "scripts/test" in readme
    assert "scripts/test" in ci.splitlines()[-1]


@pytest.fixture
def examples(tmp_path):
    """The files of CONTRIBUTING.md, in its order."""
    found = []
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", (CHECKOUT / "CONTRIBUTING.md").read_text(), re.DOTALL)):
        found.append(tmp_path / f"example_{number}.py")
        found[-1].write_text(text)
    return found


def test_the_policy_in_contributing_works(examples):
    policy = load(f"{examples[0]}+target_s=8")()
    levels = [chunk.level for chunk in run_session(steady(20.0), session(), policy, seed=1)]
    assert policy.target_s == 8.0
    assert levels[:8] == [0, 0, 0, 1, 2, 3, 4, 5]
    assert set(levels[8:]) == {5}


def test_the_scheduler_in_contributing_works(examples):
    made, profiles = random_workload(3)
    policy, simulator = load(str(examples[1]), "cjs")(), CjsSimulator(made, CjsSession("test", 4), profiles=profiles)
    policy.reset(simulator.session, 1)
    while not simulator.ended:
        simulator.step(policy.decide(simulator.observation))
    assert simulator.ended == COMPLETE


@pytest.mark.parametrize("history_deg", [[[0, 0, 90]], [[0, 0, 178], [1, 0, -178]]])
def test_the_predictor_in_contributing_works(examples, history_deg):
    policy, seen = load(str(examples[2]), "vp")(), observation(history_deg)
    policy.reset(seen.session, 1)
    answered = policy.decide(seen)
    assert answered.shape == (20, 3)
    assert np.abs(answered - np.array(history_deg[-1])).max() <= 0.1 * 20 * 4 + 1e-9
