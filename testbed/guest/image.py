"""Builds the guest's image and keeps it: Debian's cloud kernel, and a small root with Mininet, Open vSwitch and what link tests need.

The root is debootstrap's, of the host's own release from the host's own apt sources; the Python packages are those that pyproject.toml
pins. An image lies in a folder of the cache named after a hash of this recipe and the kernel's version, and appears there complete or
not at all. Standard library only.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UserError
from testbed.progress import Progress
from testbed.setup import debian
from testbed.user import DIE_WITH_STARTER

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/netllm-testbed")
HOST_PACKAGES = ("cpio", "debootstrap", "python3-venv", "qemu-system-x86")
"""What building needs of the host; running needs the last alone."""
PACKAGES = (
    *("bash", "iproute2", "kmod", "procps", "net-tools", "iputils-ping", "ethtool", "tcpdump", "iperf3"),
    *("mininet", "openvswitch-switch", "python3", "ca-certificates"),
)
PYTHON_PACKAGES = ("msgspec", "numpy", "pytest", "pytest-asyncio", "pytest-rerunfailures", "pytest-timeout", "hypothesis")
INIT = Path(__file__).with_name("init.sh")
UNWANTED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")
"""Folders of the root that nobody reads in the guest's memory."""
FREE_BYTES = 2_000_000_000
"""Wanted before a build: the root as files, then as an archive."""
KERNEL = "linux-image-cloud-amd64"
ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""For debootstrap: what it mounts and starts ends with it, also after a kill -9."""


@dataclass(frozen=True)
class Image:
    """A guest that can be booted."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """Its kernel."""
        return self.folder / "vmlinuz"

    @property
    def root(self) -> Path:
        """The cpio archive of its root, which the kernel unpacks into memory."""
        return self.folder / "root.cpio"


@dataclass(frozen=True)
class Recipe:
    """What goes into an image."""

    release: str
    """Debian's name of it, as `bookworm`."""
    kernel: str
    """Package of the kernel, with its version: `linux-image-6.1.0-56-cloud-amd64=6.1.192-2`."""
    python: tuple[str, ...]
    """Pinned requirements."""

    @property
    def key(self) -> str:
        """Changes with anything that makes another image."""
        text = json.dumps([1, self.release, self.kernel, self.python, PACKAGES, UNWANTED, INIT.read_text(encoding="utf-8")])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe() -> Recipe:
    """The image that this host would build now. UserError where none can be built."""
    names = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    if names.get("ID") != "debian" or platform.machine() != "x86_64":
        seen = f"{names.get('PRETTY_NAME', platform.system())} on {platform.machine()}"
        raise UserError(f"the guest is built from the host's own apt sources; this host is {seen}, wanted Debian on x86_64")
    return Recipe(names["VERSION_CODENAME"], _kernel_package(), _pinned())


def _pinned() -> tuple[str, ...]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {line.partition("==")[0]: line for line in (*project["dependencies"], *project["optional-dependencies"]["test"])}
    return tuple(known[name] for name in PYTHON_PACKAGES)


def _kernel_package() -> str:
    shown = _ask("apt-cache", "show", "--no-all-versions", KERNEL)
    if not shown and os.geteuid() == 0:
        _ask("apt-get", "update")
        shown = _ask("apt-cache", "show", "--no-all-versions", KERNEL)
    found = re.search(r"^Depends:.*?(linux-image-[0-9]\S*) \(= ([^)]+)\)", shown, re.MULTILINE)
    if not found:
        raise UserError(f"apt knows no package {KERNEL}, wanted apt sources with Debian's main component (and one `apt-get update`)")
    return "=".join(found.groups())


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.strip() if done.returncode == 0 else ""


@contextlib.contextmanager
def image(wanted: Recipe, cache: Path, rebuild: bool, progress: Progress) -> Iterator[tuple[Image, int]]:
    """The image, built when it is absent or `rebuild`; yields it and a descriptor: it is not removed as long as that is open.

    UserError: it would have to be built, and that takes root, Debian packages or disk space that are not there.
    """
    folder = cache / f"guest-{wanted.key}"
    if rebuild or not folder.exists():
        with _alone(cache, progress):
            if rebuild or not folder.exists():  # another process may have built it meanwhile
                _build(wanted, folder, progress)
    descriptor = os.open(folder / "root.cpio", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield Image(folder), descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(cache: Path, progress: Progress) -> Iterator[None]:
    """Be the only one who builds in this cache."""
    if os.geteuid() != 0:
        raise UserError(f"no guest image is in {cache} and building one takes root (debootstrap): use sudo once; running it does not")
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another build in {cache}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(wanted: Recipe, folder: Path, progress: Progress) -> None:
    """Make `folder`, or nothing."""
    _discard(folder.parent.glob("building-*"))
    if (free := shutil.disk_usage(folder.parent).free) < FREE_BYTES:
        raise UserError(f"{folder.parent} has {free:,} bytes left, wanted {FREE_BYTES:,} to build the guest's image")
    progress.say(f"Building the guest's image in {folder} ({wanted.release}, {wanted.kernel}): once, a few minutes. Ctrl-C is safe.")
    if packages := debian.missing(HOST_PACKAGES):
        debian.install(packages, progress)
    build = folder.with_name(f"building-{os.getpid()}")
    build.mkdir()
    try:
        version = _fetch_kernel(wanted, build, progress)
        _make_root(wanted, build, progress)
        _install_python(wanted, build, progress)
        _complete(build, version, progress)
        _put_aside([folder] if folder.exists() else [])
        build.rename(folder)
        _put_aside([other for other in folder.parent.glob("guest-*") if other != folder and not _in_use(other)])
    finally:
        _discard(folder.parent.glob("building-*"))
    progress.say("Built.")


def _put_aside(folders: Iterable[Path]) -> None:
    """Out of sight before they are removed, which can be cut short."""
    for folder in folders:
        folder.rename(folder.with_name(f"building-old-{folder.name}"))


def _discard(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether a guest runs on the image."""
    try:
        with open(folder / "root.cpio", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _run(progress: Progress, title: str, *command: str | Path, cwd: Path | None = None, shown: Sequence[str] = ()) -> None:
    """A step that dies with this process."""
    env = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PIP_ROOT_USER_ACTION": "ignore"}
    progress.run(title, [*DIE_WITH_STARTER, *map(str, command)], shown, env=env, cwd=cwd)


def _fetch_kernel(wanted: Recipe, build: Path, progress: Progress) -> str:
    """Download and unpack it; returns its release, as `6.1.0-56-cloud-amd64`."""
    as_root = ("-o", "APT::Sandbox::User=root")
    _run(progress, f"apt-get download {wanted.kernel}", "apt-get", *as_root, "download", wanted.kernel, cwd=build)
    (package,) = build.glob("*.deb")
    _run(progress, "unpacking the kernel", "dpkg-deb", "-x", package, build / "kernel")
    (kernel,) = (build / "kernel" / "boot").glob("vmlinuz-*")
    kernel.rename(build / "vmlinuz")
    (build / "vmlinuz").chmod(0o644)
    package.unlink()
    return kernel.name.removeprefix("vmlinuz-")


def _make_root(wanted: Recipe, build: Path, progress: Progress) -> None:
    include = f"--include={','.join(PACKAGES)}"
    command = ("debootstrap", "--variant=minbase", include, wanted.release, build / "root", _archive(wanted.release))
    _run(progress, "debootstrap: Debian and Mininet", *ISOLATED, *command, shown=("I: Retrieving", "I: Extracting", "I: Configuring"))
    _discard(build / "root" / folder for folder in UNWANTED)


def _archive(release: str) -> str:
    """Where the host itself has Debian's packages from."""
    fields = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
    for line in _ask("apt-get", "indextargets", "--format", fields, "Created-By: Packages").splitlines():
        origin, codename, component, uri = line.split("|", 3)
        if (origin, codename, component) == ("Debian", release, "main"):
            return uri
    raise UserError(f"the host's apt sources name no archive with Debian {release} main, wanted one to build the guest from")


def _install_python(wanted: Recipe, build: Path, progress: Progress) -> None:
    """By a pip of the host: it has the host's configuration, and the same Python as the guest."""
    python = Path("/usr/bin/python3")
    inside = Path(os.readlink(build / "root" / "usr" / "bin" / "python3")).name
    if os.path.realpath(python).rpartition("/")[2] != inside:
        raise UserError(f"{python} is {os.path.realpath(python)}, wanted Debian's own {inside}")
    _run(progress, "making a virtual environment for pip", python, "-m", "venv", build / "pip")
    target = build / "root" / "usr" / "local" / "lib" / inside / "dist-packages"
    pip = (build / "pip" / "bin" / "python", "-m", "pip", "--no-input", "--disable-pip-version-check", "install")
    _run(progress, f"pip install {' '.join(wanted.python)}", *pip, "--target", target, *wanted.python, shown=("Collecting", "Installing"))
    _discard([build / "pip"])


def _complete(build: Path, version: str, progress: Progress) -> None:
    """The kernel's modules, our init, a name; then the archive of it all."""
    root = build / "root"
    shutil.copytree(build / "kernel" / "lib" / "modules", root / "lib" / "modules", symlinks=True, dirs_exist_ok=True)
    shutil.copy(INIT, root / "sbin" / "guestinit")
    (root / "sbin" / "guestinit").chmod(0o755)
    (root / "etc" / "hostname").write_text("guest\n", encoding="utf-8")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost guest\n", encoding="utf-8")  # else `hostname -f` waits for a name server
    _run(progress, "listing the kernel's modules", "chroot", root, "depmod", version)
    pack = "find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc > ../root.cpio"
    _run(progress, "packing it", "bash", "-o", "pipefail", "-ec", pack, cwd=root)
    (build / "root.cpio").chmod(0o644)
    _discard([build / "kernel", root])
