"""dash.js comes from npm, pinned: what npm brings is taken only when its hash is the one we know."""

import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from testbed.errors import TestbedError, UserError
from testbed.setup import dashjs, install

CONTENT = b"var dashjs;"


def fake_npm(folder: Path, content: bytes, code: int = 0) -> None:
    """An `npm` that packs `content` under the name of dash.js."""
    with tarfile.open(folder / "packed.tgz", "w:gz") as archive:
        member = tarfile.TarInfo(dashjs.MEMBER)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    script = f'#!/bin/sh\n[ {code} = 0 ] || {{ echo no network; exit {code}; }}\ncp {folder}/packed.tgz "$4/dashjs-{dashjs.VERSION}.tgz"\n'
    (folder / "npm").write_text(script)
    (folder / "npm").chmod(0o755)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(dashjs, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path


def test_what_the_page_turns_off_is_in_the_documentation():
    """Which says that everything else is dash.js's default."""
    root = Path(__file__).parents[2]
    page, told = (root / name for name in ("players/dash/page/player.js", "docs/dashjs.md"))
    off = re.findall(r"(\w+): (?:false|\{ enabled: false \})", page.read_text(encoding="utf-8").partition("updateSettings(")[2])
    assert "lastMediaSettingsCachingInfo" in off and len(off) > 3
    assert not [name for name in off if name not in told.read_text(encoding="utf-8")]


def test_it_is_fetched_once_and_known_by_its_hash(cache):
    fake_npm(cache, CONTENT)
    assert not dashjs.fetched()
    assert dashjs.fetch().read_bytes() == CONTENT and dashjs.fetched()
    (cache / "npm").unlink()
    assert dashjs.fetch() == dashjs.library()
    dashjs.library().write_bytes(b"something else")
    assert not dashjs.fetched()


def test_another_file_is_refused_and_not_kept(cache):
    fake_npm(cache, b"evil")
    with pytest.raises(TestbedError, match="has the SHA-256"):
        dashjs.fetch()
    assert not dashjs.library().exists() and list(dashjs.library().parent.iterdir()) == []


def test_what_npm_says_is_told(cache):
    fake_npm(cache, CONTENT, code=7)
    with pytest.raises(TestbedError, match="exit code 7: no network"):
        dashjs.fetch()


def test_without_npm_it_says_who_installs_it(cache, monkeypatch):
    monkeypatch.setattr(dashjs.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="scripts/setup browser"):
        dashjs.fetch()


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (["--trace", "fcc"], ["run"]),
        (["--trace", "fcc", "--player", "dashjs"], ["run", "browser"]),
        (["--player=dashjs_sync"], ["run", "browser"]),
        (["report", "dashjs-results"], ["run"]),
        (["--trace", "fcc", "--out", "dashjs-results"], ["run"]),
        (["--spec", "SPEC"], ["run", "browser"]),
    ],
)
def test_the_browser_is_set_up_for_those_who_ask_for_it(arguments, groups, tmp_path):
    spec = tmp_path / "experiment.toml"
    spec.write_text('player = "dashjs"\n')
    assert install.groups_for([str(spec) if word == "SPEC" else word for word in arguments]) == groups


def test_what_is_missing_of_the_browser_is_named_with_what_makes_it(monkeypatch):
    monkeypatch.setattr(install.debian, "missing", lambda wanted: [])
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    asset = install.Asset("the film", lambda: False, "testbed.setup.encode", "ffmpeg")
    group = install.Group(browser=True, assets=(asset,))
    recipe = install.Recipe(root=True)
    assert install._lacking_packages(recipe, [group]) == ["chromium", "ffmpeg"]
    there = install.Group(browser=True, assets=(install.Asset("the film", lambda: True, "testbed.setup.encode", "ffmpeg"),))
    assert install._lacking_packages(recipe, [there]) == ["chromium"]
