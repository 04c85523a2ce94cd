"""Reading TPC-H profiles: the restricted reader refuses what could run, the rules make the arrays, workloads follow their seeds."""

import collections
import contextlib
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import UserError
from tests.cjs_cases import random_workload
from traces import tpch
from traces.durations import FrozenDurations, StreamDurations, WordStream, level_span
from traces.pickled import read_object
from traces.tpch import FIRST, FRESH, LEVELS, REST, checked, convert, first_without_fresh, load_profiles, read_edges
from traces.workload import draw_workload

STAGE = {
    "first_wave": {2: [9], 5: [30, 10, 30], 10: [40]},
    "rest_wave": {2: [1], 5: [], 10: [5, 6]},
    "fresh_durations": {2: [], 5: [30], 10: [40]},
}


def saved(path: Path, value: object) -> Path:
    """As upstream saved it: an array of shape () with one object."""
    np.save(path, np.array(value, dtype=object), allow_pickle=True)
    return path


def with_pickle(path: Path, pickled: bytes) -> Path:
    """An npy file of one object with any pickle behind its header."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(header.getvalue() + pickled)
    return path


class Runs:
    """What a malicious file holds: something that is called when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_it_reads_what_numpy_wrote(tmp_path):
    assert read_object(saved(tmp_path / "a.npy", {0: STAGE})) == {0: STAGE}
    assert read_object(saved(tmp_path / "b.npy", {"a": [1, [2]]})) == {"a": [1, [2]]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, os.mkdir, shutil.rmtree, getattr, np.load, collections.OrderedDict, open])
def test_nothing_in_a_file_runs(tmp_path, function, protocol):
    victim = tmp_path / "made"
    path = with_pickle(tmp_path / "evil.npy", pickle.dumps(Runs(function, str(victim)), protocol))
    with pytest.raises(UserError, match=r"evil\.npy: can't be read safely \(names .*wanted an npy file"):
        read_object(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cnumpy\nndarray\n.",  # an allowed name, but no array
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\ndtype\n(N(dS'__init__'\nI5\nstb.",  # would change what stands in
        b"cnumpy\ndtype\n(dS'items'\nI5\nsb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(ttR.",
        b"cbuiltins\nexec\n(S'import os'\ntR.",
        b"\x80\x04\x95",
        b"(lp0\n",
        b"",
        b"garbage",
        b"\x80\x02]q\x00(h\x00e.",  # a list that holds itself
        b"\x82\x01.",  # an extension code
        b"Pid\n.",  # a persistent id
    ],
)
def test_garbage_is_refused_in_one_sentence(tmp_path, pickled):
    with pytest.raises(UserError) as error:
        read_object(with_pickle(tmp_path / "bad.npy", pickled))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "bad.npy") in str(error.value)


@pytest.mark.parametrize("value", [{0: 1.5}, {0: "text"}, {(1, 2): 3}, {0: {1, 2}}, {0: np.arange(3)}, [[[[[[[[1]]]]]]]], None, True])
def test_only_dicts_lists_and_integers_come_out(tmp_path, value):
    inner = np.empty((), dtype=object)
    inner[()] = value
    np.save(tmp_path / "other.npy", inner, allow_pickle=True)
    with pytest.raises(UserError, match="can't be read safely"):
        read_object(tmp_path / "other.npy")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.npy"
    with_pickle(path, content)
    with contextlib.suppress(UserError):
        read_object(path)


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(3))
    for name, content in {"numbers.npy": None, "text.npy": b"hello", "empty.npy": b""}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_object(tmp_path / name)
    with pytest.raises(UserError, match="none.npy"):
        read_object(tmp_path / "none.npy")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "large.npy", "wb") as file:
        file.truncate(5_000_000)
    with pytest.raises(UserError, match="5000000 bytes"):
        read_object(tmp_path / "large.npy")


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.zeros((2, 3)), "square"),
        (np.full((2, 2), 0.5), "square"),
        (np.zeros(4), "square"),
        (np.array([["a", "b"], ["c", "d"]]), "square"),
        (np.tril(np.ones((2, 2)), -1), "earlier"),
        (np.eye(2), "earlier"),
    ],
)
def test_a_matrix_that_is_no_dag_is_refused(tmp_path, matrix, reason):
    np.save(tmp_path / "adj.npy", matrix)
    with pytest.raises(UserError, match=reason):
        read_edges(tmp_path / "adj.npy")


@pytest.mark.parametrize(
    "waves",
    [
        [],
        {},
        {**STAGE, "more": {}},
        {**STAGE, "rest_wave": {2: [1]}},
        {**STAGE, "rest_wave": {2: [1], 5: [-1], 10: []}},
        {**STAGE, "rest_wave": {2: [1], 5: [70_000], 10: []}},
        {**STAGE, "rest_wave": {2: [1], 5: 3, 10: []}},
        {"first_wave": {5: []}, "rest_wave": {5: []}, "fresh_durations": {5: []}},
        {"first_wave": {}, "rest_wave": {}, "fresh_durations": {}},
    ],
)
def test_a_stage_that_is_none_is_refused(waves):
    with pytest.raises(UserError, match="file: stage 0 has"):
        checked(waves, "file: stage 0")


def test_fresh_durations_leave_the_first_wave_once_each():
    assert first_without_fresh({5: [1, 2, 2, 3]}, {5: [2, 3, 9]}) == {5: [1, 2]}
    assert first_without_fresh({10: [7], 2: [1], 5: [4]}, {10: [7], 2: [], 5: [4]}) == {2: [1], 5: [1], 10: [1]}


def made_of(stage: dict) -> tpch.Profiles:
    maker = tpch.Maker()
    maker.add((1, []), {0: stage}, Path("file"))
    return maker.profiles()


def lists(profiles: tpch.Profiles, level: int, kind: int) -> tuple[list[int], int]:
    start, count, cold = profiles.recorded[0, LEVELS.index(level), kind].tolist()
    return profiles.durations_ms[start : start + count].tolist(), cold


def test_the_arrays_follow_the_rules():
    profiles = made_of(STAGE)
    assert profiles.tasks.tolist() == [2], "first and rest wave of the level listed first"
    assert profiles.mean_ms.tolist() == pytest.approx([np.mean([9, 10, 30, 10, 30, 1, 5, 6, 30, 40])])
    assert lists(profiles, 5, FRESH) == ([30], 0)
    assert lists(profiles, 5, FIRST) == ([10, 30], 0)
    assert lists(profiles, 5, REST) == ([10, 30], 0), "no rest: as first"
    assert lists(profiles, 10, REST) == ([5, 6], 0)
    assert lists(profiles, 10, FIRST) == ([10, 30], 0), "emptied: as the next lower level"
    assert lists(profiles, 100, REST) == ([5, 6], 0), "a level that was not recorded: the highest"
    nothing_fresh = made_of({**STAGE, "fresh_durations": {2: [], 5: [], 10: []}})
    assert lists(nothing_fresh, 5, FRESH) == ([30, 10, 30], 1), "nothing fresh: first, warmed up"
    start, count, _ = nothing_fresh.recorded[0, 0, FIRST]
    assert nothing_fresh.ordered_ms[start : start + count].tolist() == [10, 30, 30]


def small_store(folder: Path) -> Path:
    for size in tpch.SIZES:
        (folder / size).mkdir(parents=True)
        for query in range(1, tpch.QUERIES + 1):
            np.save(folder / size / f"adj_mat_{query}.npy", np.array([[0.0, 1.0], [0.0, 0.0]]))
            saved(folder / size / f"task_duration_{query}.npy", {0: STAGE, 1: STAGE})
    return folder


def test_a_folder_becomes_arrays_and_names_the_file_that_is_bad(tmp_path):
    folder = small_store(tmp_path)
    profiles = convert(folder)
    assert (profiles.templates, len(profiles.tasks), len(profiles.edges)) == (154, 308, 154)
    saved(folder / "50g" / "task_duration_7.npy", {0: STAGE})
    with pytest.raises(UserError, match=r"50g/task_duration_7\.npy: holds no stages 0 to 1"):
        convert(folder)


def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    folder = small_store(tmp_path / "store")
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tpch, "obtain", lambda name, root: (folder, ""))
    tpch._load.cache_clear()
    first = load_profiles()
    (kept,) = (tmp_path / "cache" / "tpch").iterdir()
    for damage in (b"", kept.read_bytes()[: kept.stat().st_size // 2], b"PK nonsense"):
        kept.write_bytes(damage)
        tpch._load.cache_clear()
        again = load_profiles()
        assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    monkeypatch.setattr(tpch, "obtain", lambda name, root: pytest.fail("what is kept was not read"))
    tpch._load.cache_clear()
    assert np.array_equal(load_profiles().durations_ms, first.durations_ms)
    tpch._load.cache_clear()


def test_profiles_that_are_not_here_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tpch, "obtain", lambda name, root: (None, "no network"))
    tpch._load.cache_clear()
    with pytest.raises(UserError, match=r"workload tpch is not on this machine \(no network\).*scripts/fetch_data tpch"):
        load_profiles()
    tpch._load.cache_clear()


@pytest.fixture
def small(tmp_path) -> tpch.Profiles:
    return convert(small_store(tmp_path))


def test_a_seed_gives_one_workload_and_arrivals_are_poisson(small):
    one, same, other = (draw_workload(400, 25.0, seed, small) for seed in (1, 1, 2))
    assert one == same
    assert [job.arrival_s for job in one.jobs] != [job.arrival_s for job in other.jobs]
    gaps = np.diff([job.arrival_s for job in one.jobs])
    assert one.jobs[0].arrival_s == 0.0
    assert gaps.mean() == pytest.approx(25.0, rel=0.15)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.15), "the spread of an exponential gap is its mean"
    assert {job.template for job in one.jobs} <= set(range(154))
    assert draw_workload(10, 25.0, 1, small).jobs == one.jobs[:10], "more jobs change none of the first"


def test_a_workload_without_sense_is_refused(small):
    for jobs, gap_s, seed in ((0, 25.0, 1), (1, 0.0, 1), (1, float("nan"), 1), (1, 25.0, -1)):
        with pytest.raises(UserError, match="are asked for"):
            draw_workload(jobs, gap_s, seed, small)


def test_stages_write_their_share_of_the_input(small):
    for job in draw_workload(20, 25.0, 3, small).jobs:
        written = sum(stage.output_bytes * len(stage.children) for stage in job.stages)
        gigabytes = float(job.name.partition("-")[2].removesuffix("g"))
        assert written == pytest.approx(0.05 * gigabytes * 1e9)
        assert job.stages[-1].output_bytes == 0.0, "the last stage writes for nobody"


@pytest.mark.parametrize(
    ("attached", "span"), [(1, (0, 0)), (5, (0, 0)), (6, (0, 1)), (9, (0, 1)), (10, (1, 1)), (99, (6, 7)), (300, (7, 7))]
)
def test_levels_around_a_number_of_executors(attached, span):
    assert level_span(attached) == span


def test_frozen_durations_do_not_depend_on_the_order():
    workload, profiles = random_workload(1)
    tasks = [(job.number, s, t) for job in workload.jobs for s, stage in enumerate(job.stages) for t in range(stage.tasks)]
    drawn = FrozenDurations(workload, profiles)
    forwards = [drawn.draw_ms(*task, kind, 7) for task in tasks for kind in (FRESH, REST, FIRST)]
    again = FrozenDurations(workload, profiles)
    backwards = [again.draw_ms(*task, kind, 7) for task in reversed(tasks) for kind in (FIRST, REST, FRESH)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 20


def test_both_ways_draw_from_the_same_distribution():
    """Means over many tasks of one stage, at an interpolated number of executors, agree with what was recorded."""
    workload, profiles = random_workload(2)
    row = int(profiles.first_stage[workload.jobs[0].template])
    low, high = (profiles.recorded[row, level, REST].tolist() for level in level_span(6))
    means = [profiles.durations_ms[s : s + n].mean() + 1000 * cold for s, n, cold in (low, high)]
    wanted = means[0] / 5 + means[1] * 4 / 5  # one above level 5, the published rule takes 5 one time in five
    stream = StreamDurations(workload, profiles, WordStream(1))
    found = np.mean([stream.draw_ms(0, 0, 0, REST, 6) for _ in range(20_000)])
    assert found == pytest.approx(wanted, rel=0.03)
    frozen = FrozenDurations(workload, profiles)
    frozen._drawn[0, 0] = np.random.default_rng(1).random((20_000, 3, 2))
    assert np.mean([frozen.draw_ms(0, 0, task, REST, 6) for task in range(20_000)]) == pytest.approx(wanted, rel=0.03)


def test_the_stream_is_that_of_python(monkeypatch):
    import random

    theirs, ours = random.Random(5), WordStream(5)
    for count in (1, 2, 3, 7, 200, 1, 64):
        assert theirs.choice(range(count)) == ours.below(count)
        assert theirs.random() == ours.random()
