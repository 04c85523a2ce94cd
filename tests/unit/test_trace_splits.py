"""Leaks are found whatever the file is called; the split rules refuse lists that leak; our own splits are clean."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import TestbedError, UserError
from traces import check_split
from traces.catalog import Split, Upstream, load_catalog
from traces.formats import write_trace
from traces.leakage import find_leaks, measured_at, run_keys
from traces.splits import apply_rule, leak_free
from traces.store import list_sets, resolve
from traces.trace import OpportunityTrace, RateTrace


def trace(name, rates):
    return RateTrace(name, tuple(float(i) for i in range(len(rates) + 1)), tuple(1e3 * r for r in rates))


def noise(seed, n=40):
    return np.random.default_rng(seed).uniform(1e5, 5e6, n).round().tolist()


def test_unrelated_traces_share_nothing():
    assert find_leaks([trace("a", noise(1))], [trace("b", noise(2))]) == ()


def test_the_same_trace_under_another_name():
    (content, run) = find_leaks([trace("a", noise(1))], [trace("b", noise(1))])
    assert (content.kind, run.kind, content.train, content.test) == ("content", "run", "a", "b")
    assert run.detail == "33 runs of 8 samples"


@given(st.integers(8, 20), st.integers(0, 20), st.integers(0, 20))
def test_a_window_of_at_least_eight_samples_is_found_wherever_it_lies(length, start, at):
    long, window = noise(1), noise(2, 40)
    window[at : at + length] = long[start : start + length]
    (leak,) = find_leaks([trace("a", long)], [trace("b", window[:40])])
    assert (leak.kind, leak.detail) == ("run", f"{length - 7} runs of 8 samples")


def test_seven_samples_are_no_run_unless_asked_for():
    long, window = noise(1), noise(2)
    window[10:17] = long[3:10]
    assert not find_leaks([trace("a", long)], [trace("b", window)])
    assert find_leaks([trace("a", long)], [trace("b", window)], run=7)


def test_a_run_of_one_value_is_no_evidence():
    assert not find_leaks([trace("a", [*noise(1), *[0] * 20])], [trace("b", [*noise(2), *[0] * 20])])
    assert not run_keys(trace("a", [2345.6789] * 20), run=10), "not where its mean is rounded either"


def test_short_traces_have_no_runs_but_can_be_equal():
    (leak,) = find_leaks([trace("a", [1, 2, 3])], [trace("b", [1, 2, 3])])
    assert leak.kind == "content" and run_keys(trace("a", [1, 2, 3])) == frozenset()


def test_opportunities_are_compared_by_their_gaps():
    gaps = np.random.default_rng(1).integers(0, 5, 1000)
    other = np.random.default_rng(2).integers(0, 5, 1000)
    times = tuple((np.cumsum(gaps) / 1000).tolist())
    shifted = tuple((np.cumsum([7, *other[:100], *gaps[300:700]]) / 1000).tolist())
    unrelated = tuple((np.cumsum(other) / 1000).tolist())
    (leak,) = find_leaks([OpportunityTrace("a", times)], [OpportunityTrace("b", shifted), OpportunityTrace("c", unrelated)])
    assert (leak.kind, leak.test) == ("run", "b")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("000_trace_942154_http---www.ebay.com_0", ("unit", "942154")),
        ("test_fcc_trace_10652_http---www.amazon.com_720_0", ("unit", "10652")),
        ("bus.ljansbakken-oslo-report.2010-09-29_1628CEST.log_320", ("log", "bus.ljansbakken-oslo-report.2010-09-29_1628CEST.log")),
        (
            "test_norway_tram.ljabru-x-report.2010-12-09_1244CET.log_0_0",
            ("log", "tram.ljabru-x-report.2010-12-09_1244CET.log"),
        ),
        ("norway_tram_45_0", ("log", "norway_tram_45")),
        ("norway_tram_4", ("log", "norway_tram_4")),
        ("TMobile-LTE-short.down", None),
    ],
)
def test_file_names_tell_the_measurement(name, source):
    assert measured_at(name) == source


def test_the_same_unit_or_log_is_a_leak_even_if_no_sample_is_equal():
    (unit,) = find_leaks([trace("trace_12_http---a", noise(1))], [trace("007_trace_12_http---b_320", noise(2))])
    (log,) = find_leaks([trace("norway_bus_1", noise(3))], [trace("norway_bus_1_0", noise(4))])
    assert (unit.kind, unit.detail) == ("unit", "12") and (log.kind, log.detail) == ("log", "norway_bus_1")
    assert not find_leaks([trace("norway_bus_1", noise(3))], [trace("norway_bus_11", noise(4))])


PAIRS = [("fcc/train", "fcc/test"), ("fcc/valid", "fcc/test"), ("fcc/train", "fcc/valid"), ("norway/train", "norway/test")]


@pytest.mark.parametrize(("train", "test"), [*PAIRS, ("fcc/train", "norway/test"), ("norway/train", "fcc/test")])
def test_our_own_splits_are_clean(train, test):
    absent = [each.name for each in list_sets() if each.name in (train.split("/")[0], test.split("/")[0]) and not each.present]
    if absent:
        pytest.skip(f"{absent[0]} is not on this machine: scripts/fetch_data {absent[0]}")
    assert find_leaks(resolve(train).traces, resolve(test).traces) == ()


def fill(folder, traces):
    folder.mkdir(parents=True, exist_ok=True)
    for each in traces:
        write_trace(each, folder / each.name, "pensieve")
    return folder


def test_the_command_prints_a_table_and_its_exit_code_tells(tmp_path, capsys):
    train = fill(tmp_path / "train", [trace("one", noise(1)), trace("two", noise(2))])
    clean, leaky = fill(tmp_path / "clean", [trace("three", noise(3))]), fill(tmp_path / "leaky", [trace("three", noise(2)[5:30])])
    assert check_split.main([str(train), str(clean)]) == 0
    assert capsys.readouterr().out.startswith("clean: 2 training traces against 1 test traces")
    assert check_split.main([str(train), str(leaky)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["run", "two", "three", "18", "runs", "of", "8", "samples"]
    assert lines[2] == "leaks: 2 training traces against 1 test traces: 1 findings in 1 training and 1 test traces"
    assert check_split.main([str(train), str(leaky), "--run", "30"]) == 0
    assert check_split.main([str(train), "no/such"]) == 2 and "no/such" in capsys.readouterr().err
    assert check_split.main([str(train), "x" * 300]) == 2 and "check_split: [Errno 36] File name too long" in capsys.readouterr().err
    assert check_split.main([str(train), str(leaky), "--run", "1"]) == 2 and "wanted at least 2" in capsys.readouterr().err


def test_modelled_traces_are_not_checked_for_leaks(monkeypatch, capsys, tmp_path):
    train = fill(tmp_path / "train", [trace("one", noise(1))])
    monkeypatch.setattr("traces.store.data_roots", lambda root=None: (tmp_path / "data",))
    monkeypatch.setattr("traces.store.fetch_set", lambda entry, data: (_ for _ in ()).throw(TestbedError("no network")))
    assert check_split.main([str(train), "fcc/test"]) == 2 and "modelled, not measured" in capsys.readouterr().err


def fcc(tmp_path, train, valid=()):
    """An upstream checkout like NetLLM's, and a catalogue entry that lists `train` and `valid`."""
    fill(tmp_path / "up/train/fcc-train", [
        trace("trace_1_http---a", noise(1)), trace("trace_2_http---a", noise(2)), trace("trace_3_http---a", noise(3)),
        trace("trace_4_http---a", [*noise(4), *noise(9)[3:12]]), trace("bus.x-report.2010-09-28_1407CEST.log", noise(5)),
    ])  # fmt: skip
    test = fill(tmp_path / "up/test/fcc-test", [trace("000_trace_3_http---b_0", noise(8)), trace("001_trace_9_http---b_0", noise(9))])
    (test / "mahimahi_ptrs.pkl").write_bytes(b"\x80\x04not a trace")
    splits = (Split("train", len(train), "", names=tuple(train)), Split("valid", len(valid), "", names=tuple(valid)), Split("test", 2, ""))
    return dataclasses.replace(load_catalog()["fcc"], paths=("train", "test"), splits=splits, upstream=Upstream("u", "u", "c"))


def test_the_fcc_rule_keeps_upstreams_test_and_takes_listed_clean_traces(tmp_path):
    chosen = apply_rule(fcc(tmp_path, ["trace_1_http---a"], ["trace_2_http---a"]), tmp_path / "up")
    assert {split: sorted(files) for split, files in chosen.items()} == {
        "train": ["trace_1_http---a"], "valid": ["trace_2_http---a"], "test": ["000_trace_3_http---b_0", "001_trace_9_http---b_0"],
    }  # fmt: skip


@pytest.mark.parametrize("leaky", ["trace_3_http---a", "trace_4_http---a", "bus.x-report.2010-09-28_1407CEST.log"])
def test_the_fcc_rule_refuses_a_listed_trace_that_leaks(tmp_path, leaky):
    with pytest.raises(TestbedError, match=f"{leaky} shares a measurement unit or a run"):
        apply_rule(fcc(tmp_path, ["trace_1_http---a", leaky]), tmp_path / "up")


def test_leak_free_wants_a_known_unit():
    candidates = [trace("trace_1_http---a", noise(1)), trace("norway_bus_1", noise(2)), trace("trace_9_http---a", noise(3))]
    assert leak_free(candidates, [trace("trace_9_http---b_0", noise(4))]) == (candidates[0],)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (["norway_bus_1"], ["norway_bus_2_0"], None),
        (["norway_bus_1"], ["norway_bus_1_0"], "share a log"),
        (["norway_bus_1"], ["norway_bus_3"], "share a run"),
        (["norway_bus_1", "norway_bus_3"], ["norway_bus_2_0"], "norway/train: norway_bus_1 and norway_bus_3 share a run"),
        (["norway_bus_9"], ["norway_bus_2_0"], "upstream has no file norway_bus_9"),
        (["norway_bus_4"], ["norway_bus_2_0"], "2 files norway_bus_4 that differ"),
    ],
)
def test_the_norway_rule_proves_its_lists(tmp_path, train, test, said):
    fill(tmp_path / "a", [trace("norway_bus_1", noise(1)), trace("norway_bus_3", noise(1)[20:]), trace("norway_bus_4", noise(4))])
    fill(tmp_path / "b", [trace("norway_bus_1_0", noise(6)), trace("norway_bus_2_0", noise(2)), trace("norway_bus_4", noise(5))])
    fill(tmp_path / "b/deeper", [trace("norway_bus_2_0", noise(2))])
    splits = (Split("train", len(train), "", names=tuple(train)), Split("test", len(test), "", names=tuple(test)))
    entry = dataclasses.replace(load_catalog()["norway"], paths=("a", "b"), splits=splits)
    if said is None:
        assert {split: list(files) for split, files in apply_rule(entry, tmp_path).items()} == {"train": train, "test": test}
        return
    with pytest.raises(TestbedError, match=said):
        apply_rule(entry, tmp_path)


def test_a_missing_upstream_folder_and_a_run_of_nothing(tmp_path):
    with pytest.raises(TestbedError, match="holds no file"):
        apply_rule(load_catalog()["tpch"], tmp_path)
    with pytest.raises(UserError, match="wanted at least 2"):
        find_leaks([], [], run=0)
