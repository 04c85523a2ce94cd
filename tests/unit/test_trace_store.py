"""The store: names, splits, files and paths resolve; what is missing, changed or unknown is said; modelled traces say so."""

import dataclasses

import pytest

from testbed.errors import TestbedError, UserError
from traces import store
from traces.catalog import Split, hash_files, load_catalog, split_files, split_folder
from traces.store import data_roots, find_video, list_sets, obtain, resolve

COOKED = "0 1\n1 2\n2 3\n"


@pytest.fixture
def measured():
    """The catalogued sets where this machine has them."""

    def need(name):
        if not next(each for each in list_sets() if each.name == name).present:
            pytest.skip(f"{name} is not on this machine: scripts/fetch_data {name}")

    return need


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with one small set `tiny` (splits a, b and test), and a catalogue that names it; nothing can be fetched."""
    folder = tmp_path / "data"
    splits = []
    for number, name in enumerate(("a", "b", "test")):
        where = folder / "traces" / "tiny" / name
        where.mkdir(parents=True)
        for file in range(number + 1):
            (where / f"trace_{file}").write_text(COOKED + f"3 {number}.{file}\n")
        splits.append(Split(name, number + 1, hash_files(where, where.iterdir())))
    entry = dataclasses.replace(load_catalog()["fcc"], name="tiny", folder="traces/tiny", splits=tuple(splits), default_split="test")
    catalog = {**load_catalog(), "tiny": entry}
    monkeypatch.setattr(store, "load_catalog", lambda: catalog)
    monkeypatch.setattr(store, "fetch_set", offline)
    return folder


def offline(entry, data):
    raise TestbedError(f"fetching {entry.name}: no network here")


def test_a_name_gives_its_default_split_sorted_and_hashed(data):
    found = resolve("tiny", data)
    assert (found.name, found.split, found.source, found.note) == ("tiny", "test", "store", "")
    assert [trace.name for trace in found.traces] == ["trace_0", "trace_1", "trace_2"]
    assert found.sha256 == hash_files(data / "traces/tiny/test", (data / "traces/tiny/test").iterdir())


def test_a_split_and_a_file(data):
    assert len(resolve("tiny/b", data).traces) == 2
    one = resolve("tiny/test:trace_1", data)
    assert one == dataclasses.replace(resolve("tiny:trace_1", data))
    assert one.sha256 != resolve("tiny", data).sha256 and len(one.traces) == 1


def test_a_path_to_a_file_or_a_folder(data):
    folder = data / "traces/tiny/test"
    found = resolve(str(folder))
    assert (found.name, found.split, found.source, len(found.traces)) == ("test", "", "path", 3)
    assert found.sha256 == resolve("tiny", data).sha256
    assert resolve(str(folder / "trace_0")).traces == found.traces[:1]


def test_a_catalogued_name_wins_and_a_dot_asks_for_the_path(data, tmp_path, monkeypatch):
    (tmp_path / "tiny").write_text(COOKED)
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny", data).source == "store"
    assert resolve("./tiny", data).source == "path"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("tinny", "did you mean tiny"),
        ("", "neither a catalogued set nor a file"),
        ("tiny/tset", "did you mean test"),
        ("tiny:trace_9", "did you mean trace_"),
        ("video1", "a catalogued video, not a set of traces"),
        ("/no/such/path", "neither a catalogued set nor a file"),
        ("lte", "not on this machine .*no network here.*scripts/fetch_data lte"),
        ("fcc:no_such_file", "not on this machine"),
    ],
)
def test_what_cant_be_resolved_says_why(data, reference, said):
    with pytest.raises(UserError, match=said) as caught:
        resolve(reference, data)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_a_folder_with_something_else(tmp_path):
    with pytest.raises(UserError, match="folder without files"):
        resolve(str(tmp_path))
    (tmp_path / "notes.txt").write_text("these are my traces\n")
    with pytest.raises(UserError, match=r"notes.txt:1: has 4 columns"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_changed_files_are_refused_by_name_but_not_by_path(data, change):
    folder = data / "traces/tiny/test"
    assert resolve("tiny", data).source == "store"
    match change:
        case "edit":
            (folder / "trace_0").write_text(COOKED)
        case "add":
            (folder / "trace_7").write_text(COOKED)
        case "remove":
            (folder / "trace_0").unlink()
    with pytest.raises(UserError, match=r"sha256 [0-9a-f]{12}, wanted 3 with"):
        resolve("tiny", data)
    assert resolve(str(folder)).source == "path"
    listing = next(each for each in list_sets(data) if each.name == "tiny")
    assert not listing.present and "sha256" in listing.where


def test_the_listing_tells_what_is_there(data):
    listings = {each.name: each for each in list_sets(data)}
    assert listings["tiny"].present and listings["tiny"].where == str(data / "traces/tiny")
    assert listings["tiny"].splits == (("a", 1), ("b", 2), ("test", 3))
    assert not listings["fcc"].present and listings["fcc"].where == "scripts/fetch_data fcc"
    assert find_video("video1", data) is None and obtain("tpch", data)[0] is None


def test_fcc_is_modelled_when_it_cant_be_had_and_says_so(data):
    found = resolve("fcc", data)
    assert (found.source, found.split, len(found.traces)) == ("model", "test", 100)
    assert "modelled, not measured" in found.note and "no network here" in found.note
    assert found == resolve("fcc", data) and found.sha256 != resolve("fcc/train", data).sha256
    assert not {t.sha256 for t in found.traces} & {t.sha256 for t in resolve("fcc/train", data).traces}


def test_a_set_that_is_missing_is_fetched_into_the_last_root(data, monkeypatch):
    asked = []

    def fetch(entry, into):
        asked.append((entry.name, into))
        (into / "traces/tiny").mkdir(parents=True)
        for split in entry.splits:
            (data / "traces/tiny" / split.name).rename(into / "traces/tiny" / split.name)

    monkeypatch.setattr(store, "fetch_set", fetch)
    other = data.parent / "other"
    assert len(resolve("tiny", other).traces) == 3 and len(resolve("tiny/b", other).traces) == 2
    assert asked == [("tiny", other)]


def test_the_environment_comes_first_then_the_shared_folder_then_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("NETLLM_DATA", str(tmp_path))
    roots = data_roots()
    assert roots[0] == tmp_path and roots[1].parts[-2:] == ("shared", "data") and roots[2] == store.CHECKOUT / "data"
    monkeypatch.delenv("NETLLM_DATA")
    assert data_roots() == roots[1:]


def test_the_catalogue_is_complete():
    for name, entry in load_catalog().items():
        assert len(entry.upstream.commit) == 40 and entry.upstream.url.endswith(f"{entry.upstream.repository}.git"), name
        assert entry.licence and entry.title and entry.paths, name
        assert not entry.default_split or entry.split(entry.default_split), name
        for split in entry.splits:
            assert len(split.sha256) == 64 and split.files > 0, (name, split.name)
            assert not split.names or len(set(split.names)) == split.files, (name, split.name)


@pytest.mark.parametrize("name", ["fcc", "norway", "lte"])
def test_catalogued_sets_read_whole_and_hold_the_listed_names(measured, name):
    measured(name)
    entry = load_catalog()[name]
    for split in entry.splits:
        found = resolve(f"{name}/{split.name}")
        assert len(found.traces) == split.files and found.sha256 == split.sha256
        assert not split.names or tuple(trace.name for trace in found.traces) == tuple(sorted(split.names))


def test_hidden_files_and_other_suffixes_are_not_part_of_a_split(tmp_path):
    entry = load_catalog()["lte"]
    folder = split_folder(tmp_path, entry, entry.splits[0])
    folder.mkdir(parents=True)
    for name in ("b.down", "a.down", "a.up", ".hidden.down"):
        (folder / name).write_text("1\n")
    assert [path.name for path in split_files(folder, entry.splits[0])] == ["a.down", "b.down"]
