"""dash.js as its authors publish it on npm: one version, pinned by its hash, fetched once into the cache. Standard library only.

`python -m testbed.setup.dashjs` fetches it. BSD-3 licence, © its authors; nothing of it is in this repository.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from testbed.cache import cache_folder
from testbed.errors import TestbedError, UserError

VERSION = "5.2.1"
SHA256 = "3a22b1f4576ab294f41e56f156cec7972a5f83edda379416778293ff22d2eb49"
MEMBER = "package/dist/modern/umd/dash.all.min.js"
"""The whole player in one file."""


def library() -> Path:
    """Where the file belongs."""
    return cache_folder() / f"dashjs-{VERSION}" / Path(MEMBER).name


def fetched() -> bool:
    """Whether it is there, and the pinned one."""
    try:
        return hashlib.sha256(library().read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def fetch() -> Path:
    """Fetch it, unless it is there; returns its path. TestbedError when npm fails or what it brings isn't the pinned file."""
    path = library()
    if fetched():
        return path
    if not shutil.which("npm"):
        raise UserError(f"npm is not installed, wanted it to fetch dash.js {VERSION}: scripts/setup browser")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".npm-") as scratch:
        command = ["npm", "pack", f"dashjs@{VERSION}", "--pack-destination", scratch, "--cache", f"{scratch}/cache", "--ignore-scripts"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise TestbedError(f"`{' '.join(command[:3])}` ended with exit code {done.returncode}: {' '.join(done.stdout.split())[-500:]}")
        with tarfile.open(Path(scratch, f"dashjs-{VERSION}.tgz")) as archive:
            member = archive.extractfile(MEMBER)
            content = member.read() if member else b""
        if (seen := hashlib.sha256(content).hexdigest()) != SHA256:
            raise TestbedError(f"dash.js {VERSION}: {MEMBER} has the SHA-256 {seen}, wanted {SHA256}")
        fresh = Path(scratch, path.name)
        fresh.write_bytes(content)
        fresh.replace(path)
    return path


def main() -> int:
    """Fetch it; exit code 1 and a sentence when that fails."""
    try:
        fetch()
    except (UserError, TestbedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
