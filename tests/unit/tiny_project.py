"""A project that pip installs in a second without a network: its build back end lies in it, and fails or hangs when told so by a file."""

import platform
from pathlib import Path

from testbed.setup.install import Recipe

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1"
dependencies = []

[project.optional-dependencies]
test = []
"""
BACKEND = """\
import pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    if pathlib.Path("fail").exists():
        raise RuntimeError("told to fail")
    if pathlib.Path("hang").exists():
        pathlib.Path("hanging").touch()
        time.sleep(600)
    name = "tiny-1-py3-none-any.whl"
    info = "tiny-1.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("tiny.pth", str(pathlib.Path.cwd()))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\nProvides-Extra: test\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""


def write(folder: Path) -> Recipe:
    """Write the project and return the recipe to set it up without root."""
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return recipe(folder)


def recipe(folder: Path, root: bool = False) -> Recipe:
    """The recipe of a written project."""
    return Recipe(checkout=folder, weights_package="", prepare=(), caller=None, root=root)


def fake_venv(recipe: Recipe, **changes: str) -> None:
    """What the launcher looks at in a virtual environment, without one."""
    version = ".".join(platform.python_version_tuple()[:2])
    settings = {
        "home": str(recipe.system_python.parent),
        "include-system-site-packages": "true",
        "version": f"{version}.0",
        "command": f"python3 -m venv {recipe.venv}",
    }
    (recipe.venv / "bin").mkdir(parents=True)
    (recipe.venv / "lib" / f"python{version}").mkdir(parents=True)
    recipe.python.write_text("#!/bin/sh\n")
    lines = [f"{key} = {value}" for key, value in {**settings, **changes}.items()]
    (recipe.venv / "pyvenv.cfg").write_text("\n".join(lines))
