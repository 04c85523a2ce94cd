"""Fetching from a local git repository: the pinned commit, our split rule, checked hashes; a failed or killed fetch leaves nothing."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from testbed.errors import TestbedError
from traces import fetch_data
from traces.catalog import CatalogSet, Split, Upstream, hash_files, load_catalog
from traces.fetch import fetch_set

FILES = {"in/one.txt": "0 1\n1 2\n", "in/sub/two.txt": "0 1\n1 3\n", "other/big.txt": "not asked for\n"}


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repository, files):
    for name, content in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "files")
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def upstream(tmp_path):
    """A repository whose newest commit is not the pinned one."""
    repository = tmp_path / "upstream"
    repository.mkdir()
    git(repository, "init", "-q")
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    pinned = commit(repository, FILES)
    commit(repository, {"in/one.txt": "changed since\n"})
    return Upstream("local/upstream", f"file://{repository}", pinned)


@pytest.fixture
def entry(upstream, tmp_path):
    wanted = tmp_path / "wanted"
    for name, content in FILES.items():
        if name.startswith("in/"):
            (wanted / name[3:]).parent.mkdir(parents=True, exist_ok=True)
            (wanted / name[3:]).write_text(content)
    sha256 = hash_files(wanted, (path for path in wanted.rglob("*") if path.is_file()))
    return CatalogSet(
        "local", "workload", "t", upstream, ("in",), "sets/local", "text", "whole", "none", default_split="", splits=(Split("", 2, sha256),)
    )


def held(data):
    return sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file() and path.name != ".fetch.lock")


def test_the_pinned_commit_is_fetched_and_only_the_asked_paths(entry, tmp_path):
    steps = []
    folder = fetch_set(entry, tmp_path / "data", steps.append)
    assert folder == tmp_path / "data/sets/local"
    assert held(tmp_path / "data") == ["sets/local/one.txt", "sets/local/sub/two.txt"]
    assert (folder / "one.txt").read_text() == FILES["in/one.txt"]
    assert len(steps) == 2 and entry.upstream.url in steps[0]


def test_only_asked_blobs_travel(entry, tmp_path):
    def look(line):
        if "split rule" in line:
            (checkout,) = (tmp_path / "data").glob(".fetch-*/checkout")
            assert (checkout / "in/one.txt").exists() and not (checkout / "other").exists()
            looked.append(git(checkout, "rev-parse", "HEAD"))

    looked = []
    fetch_set(entry, tmp_path / "data", look)
    assert looked == [entry.upstream.commit]


def test_two_splits_in_folders_of_their_own(entry, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/one.txt").write_text(FILES["in/one.txt"])
    first = Split("a", 1, hash_files(tmp_path / "one", [tmp_path / "one/one.txt"]), names=("one.txt",))
    (tmp_path / "two").mkdir()
    (tmp_path / "two/two.txt").write_text(FILES["in/sub/two.txt"])
    second = Split("b", 1, hash_files(tmp_path / "two", [tmp_path / "two/two.txt"]), names=("two.txt",))
    fetch_set(dataclasses.replace(entry, rule="listed", splits=(first, second)), tmp_path / "data")
    assert held(tmp_path / "data") == ["sets/local/a/one.txt", "sets/local/b/two.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"splits": (Split("", 2, "0" * 64),)}, "sha256 [0-9a-f]{12}, wanted 2 with 000000000000; nothing was kept"),
        ({"paths": ("absent",)}, "has no absent at"),
        ({"rule": "listed", "splits": (Split("a", 1, "0" * 64, names=("three.txt",)),)}, "upstream has no file three.txt"),
    ],
)
def test_wrong_files_leave_nothing(entry, tmp_path, change, said):
    with pytest.raises(TestbedError, match=said):
        fetch_set(dataclasses.replace(entry, **change), tmp_path / "data")
    assert held(tmp_path / "data") == [] and not list((tmp_path / "data").glob(".fetch-*"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("url", "file:///no/such/repository", "git ls-remote .* failed"), ("commit", "0" * 40, "git fetch .* failed")],
)
def test_an_upstream_that_fails_is_told_in_one_line(entry, tmp_path, field, value, said):
    broken = dataclasses.replace(entry, upstream=dataclasses.replace(entry.upstream, **{field: value}))
    with pytest.raises(TestbedError, match=said) as caught:
        fetch_set(broken, tmp_path / "data")
    assert "\n" not in str(caught.value) and held(tmp_path / "data") == []


def test_an_interrupt_leaves_nothing(entry, tmp_path):
    def interrupt(line):
        if "split rule" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_set(entry, tmp_path / "data", interrupt)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".fetch.lock"]


def test_a_killed_fetch_leaves_nothing_visible_and_the_next_one_cleans_up(entry, tmp_path):
    child = os.fork()
    if not child:
        fetch_set(entry, tmp_path / "data", lambda line: os.kill(os.getpid(), signal.SIGKILL) if "split rule" in line else None)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list((tmp_path / "data").glob(".fetch-*")) and not (tmp_path / "data/sets").exists()
    fetch_set(entry, tmp_path / "data")
    assert not list((tmp_path / "data").glob(".fetch-*")) and len(held(tmp_path / "data")) == 2


def test_a_second_fetch_at_the_same_time_is_refused(entry, tmp_path):
    def second(line):
        with pytest.raises(TestbedError, match="another fetch"):
            fetch_set(entry, tmp_path / "data")
        tried.append(line)

    tried = []
    fetch_set(entry, tmp_path / "data", second)
    assert len(tried) == 2


def test_what_is_there_is_never_overwritten(entry, tmp_path):
    (tmp_path / "data/sets/local").mkdir(parents=True)
    with pytest.raises(TestbedError, match="exists already"):
        fetch_set(entry, tmp_path / "data")


def test_a_folder_that_cant_be_written_is_named(entry, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(TestbedError, match=r"data: .*wanted to write there"):
        fetch_set(entry, tmp_path / "data")


def test_no_git(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TestbedError, match="git is not installed"):
        fetch_set(entry, tmp_path / "data")


def test_the_command_fetches_once_and_refuses_unknown_names(entry, tmp_path, monkeypatch, capsys):
    catalog = {**load_catalog(), "local": entry}
    monkeypatch.setattr(fetch_data, "load_catalog", lambda: catalog)
    monkeypatch.setattr("traces.store.load_catalog", lambda: catalog)
    arguments = ["local", "--into", str(tmp_path / "data")]
    assert fetch_data.main(arguments) == 0 and "local: in " in capsys.readouterr().out
    assert fetch_data.main(arguments) == 0 and "local: already in " in capsys.readouterr().out
    assert fetch_data.main(["locla"]) == 2 and "did you mean local" in capsys.readouterr().err
    broken = {"local": dataclasses.replace(entry, upstream=dataclasses.replace(entry.upstream, url="file:///no/such"))}
    monkeypatch.setattr(fetch_data, "load_catalog", lambda: broken)
    assert fetch_data.main(["local", "--into", str(tmp_path / "other")]) == 1 and "ls-remote" in capsys.readouterr().err


def test_the_script_runs_from_anywhere(tmp_path):
    script = fetch_data.CHECKOUT / "scripts/fetch_data"
    if not (fetch_data.CHECKOUT / ".venv/bin/python").exists():
        pytest.skip("the checkout has no .venv, which scripts/setup makes")
    done = subprocess.run([script, "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("fetch_data: nothing is not catalogued"), sys.executable
