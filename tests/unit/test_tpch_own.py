"""Our own TPC-H profile: the file that ships, how it is read and written, when it stands in for Decima's, and how it is made."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from controllers.api import CjsPolicy, CjsSession
from controllers.loader import load
from testbed.errors import TestbedError, UserError
from testbed.sim.cjs import CjsSimulator
from testbed.sim.cjs_compiled import CompiledCjs
from traces import profile_tpch, spark_run, tpch
from traces.profile_tpch import Settings, assemble, main, record, table_text
from traces.spark_log import LoggedQuery, LoggedStage
from traces.spark_run import SparkSettings, application, generate, queries, query_text
from traces.tpch import FIRST, FRESH, LEVELS, QUERIES, REST
from traces.tpch_own import OWN_FILE, WORK_S, OwnProfile, find_profiles, load_own, profiles_named, read_own, to_json
from traces.workload import draw_workload

SETTINGS = Settings((0.5, 1.0), (1, 2))


def toy_run(query: int, executors: int) -> LoggedQuery:
    """Two stages: 3 tasks, then 1."""
    fresh, rest = ((10 * query,), (5, 7)) if executors == 1 else ((10 * query, 12), (6,))
    return LoggedQuery((LoggedStage((), 1000 * query, fresh, (), rest), LoggedStage((0,), 0, (), (4,), ())), 0.5)


def toy_profile() -> OwnProfile:
    keys = [(size, query, count) for size in SETTINGS.sizes_gb for query in range(1, QUERIES + 1) for count in SETTINGS.executors]
    parts = {key: profile_tpch.Part(toy_run(key[1], key[2]), {"spark": "x"}, 1.0) for key in keys}
    return assemble(SETTINGS, parts, {"utc": "today"})


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "own.json"
    path.write_bytes(to_json(toy_profile()))
    return path


@pytest.fixture
def without_decima(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tpch, "obtain", lambda name, root: (None, "no network"))
    tpch._load.cache_clear()
    yield
    tpch._load.cache_clear()


def test_the_profile_that_ships() -> None:
    profile = read_own(OWN_FILE)
    assert OWN_FILE.stat().st_size < 300_000
    assert len(profile.sizes) >= 3 and len(profile.templates) == QUERIES * len(profile.sizes)
    assert {"utc", "command", "machine", "spark", "java", "tpchgen-cli", "settings", "load_before", "load_during", "cpu_share"} <= set(
        profile.made
    )
    for template in profile.templates:
        assert len(template.stages) >= 2
        ends = set(range(len(template.stages))) - {parent for stage in template.stages for parent in stage.parents}
        assert ends == {len(template.stages) - 1}, "a query has one result"
        writers = {parent for stage in template.stages for parent in stage.parents}
        assert any(template.stages[number].bytes for number in writers)
    by_query = {}
    for template in profile.templates:
        by_query.setdefault(template.query, []).append([stage.parents for stage in template.stages])
    assert all(len(set(map(len, dags))) == 1 for dags in by_query.values()), "a query has as many stages at each size"


def test_its_arrays_and_its_mean_job() -> None:
    profiles = load_own()
    assert profiles.name == "tpch_own" and profiles.templates == QUERIES * len(profiles.sizes)
    assert (profiles.edges[:, 0] < profiles.edges[:, 1]).all() and (profiles.recorded[..., 1] > 0).all()
    assert profiles.durations_ms.min() >= 1
    work_s = (profiles.tasks * profiles.mean_ms).sum() / 1000 / profiles.templates
    assert work_s == pytest.approx(WORK_S, rel=0.1), "as much as Decima's, so that 25 s between arrivals load a cluster alike"
    assert profiles.template_name(QUERIES) == f"q1-{profiles.sizes[1]}"


def test_durations_and_bytes_are_stretched(toy: Path) -> None:
    stretch, profiles = toy_profile().stretch, load_own(toy)
    assert profiles.tasks[:2].tolist() == [3, 1]
    assert profiles.shuffled_bytes is not None and profiles.shuffled_bytes[:2].tolist() == [1000.0 * stretch, 0.0]
    assert profiles.mean_ms[0] == pytest.approx(stretch * np.mean([10, 5, 7, 10, 12, 6]))
    start, count, _ = profiles.recorded[0, LEVELS.index(50), REST]
    assert profiles.durations_ms[start : start + count].tolist() == [6 * stretch], "beyond what was recorded: the highest"
    assert profiles.recorded[0, 0, FRESH, 1] == 2 and profiles.recorded[0, 0, FIRST, 1] == 2, "nothing first: fresh"
    (job,) = draw_workload(1, seed=1, profiles=profiles).jobs
    assert [stage.output_bytes for stage in job.stages] == [1000 * stretch * (job.template % QUERIES + 1), 0], "the last writes for nobody"


def test_a_seed_names_the_same_queries_whatever_the_profiles() -> None:
    profiles = load_own()
    one, again, longer = (draw_workload(jobs, seed=5, profiles=profiles) for jobs in (20, 20, 30))
    assert one == again and longer.jobs[:20] == one.jobs and one.name == "tpch_own"
    assert {job.name.partition("-")[2] for job in longer.jobs} <= set(profiles.sizes)


def test_schedulers_differ_on_it_and_both_simulators_agree() -> None:
    workload, session = draw_workload(8, seed=2, profiles=load_own()), CjsSession("test", 10)
    jct_s = {}
    for name in ("fifo_full", "fair", "srpt_cap"):
        plain, compiled = CjsSimulator(workload, session, "conserving"), CompiledCjs(workload, session, "conserving")
        for simulator in (plain, compiled):
            policy: CjsPolicy = load(name, "cjs")()
            policy.reset(session, 1)
            while not simulator.ended:
                simulator.step(policy.decide(simulator.observation))
        assert plain.summary == compiled.summary
        jct_s[name] = plain.summary.avg_jct_s
    assert jct_s["srpt_cap"] < jct_s["fair"] < jct_s["fifo_full"]


def test_it_stands_in_where_decimas_can_not_be_had(without_decima: None) -> None:
    profiles, note = find_profiles("tpch")
    assert profiles is load_own()
    assert note.startswith("tpch_own, a profile of our own on small data, stands in for Decima's: workload tpch is not on this machine")
    with pytest.raises(UserError, match="scripts/fetch_data tpch"):
        profiles_named("tpch")
    assert find_profiles("tpch_own") == (load_own(), "")
    with pytest.raises(UserError, match="workload 'tcph' is unknown: did you mean tpch"):
        find_profiles("tcph")


def test_profiles_that_are_bad_are_not_replaced(without_decima: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(name: str, root: str | None) -> tuple[None, str]:
        raise UserError("tpch has other files")

    monkeypatch.setattr(tpch, "obtain", bad)
    with pytest.raises(UserError, match="other files"):
        find_profiles("tpch")


def test_what_is_written_is_read_again(toy: Path) -> None:
    assert read_own(toy) == toy_profile()
    assert len(toy.read_text().splitlines()) < 70, "a line for each template"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: file.update(version=9), "has version 9 instead of 1"),
        (lambda file: file.update(more=1), "unknown field `more`"),
        (lambda file: file["templates"].pop(), "doesn't hold queries 1 to 22 once at each of the sizes 0.5g, 1g"),
        (lambda file: file["templates"][3].update(query=23), "`int` <= 22"),
        (lambda file: file["templates"][0]["stages"][1].update(parents=[1]), "stage 1 of q1-0.5g has parents \\[1\\]"),
        (lambda file: file["templates"][0]["stages"][1].update(parents=[0, 0]), "stage 1 of q1-0.5g has parents \\[0, 0\\]"),
        (lambda file: file["templates"][0]["stages"][0]["executors"].pop("2"), "was recorded with \\[1\\] executors instead of \\[1, 2\\]"),
        (lambda file: file["templates"][0]["stages"][0]["executors"]["2"]["rest"].append(4), "not as many with each number"),
        (lambda file: file["templates"][0]["stages"][0]["executors"]["2"]["rest"].append(0), "`int` >= 1"),
        (lambda file: file["templates"][0].update(stages=[]), "length >= 1"),
        (lambda file: file.update(stretch=0), "`int` >= 1"),
    ],
)
def test_a_bad_file_is_one_sentence(toy: Path, change, told: str) -> None:
    file = json.loads(toy.read_text())
    change(file)
    toy.write_text(json.dumps(file))
    with pytest.raises(UserError, match=f"^{toy}: .*{told}.*, wanted a profile that scripts/profile_tpch wrote$"):
        load_own(toy)


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    for content in (None, b"", b"nonsense", b"\xff\xfe"):
        path = tmp_path / "own.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="own.json: .*, wanted a profile"):
            read_own(path)


def test_all_22_queries_are_there() -> None:
    assert list(queries()) == list(range(1, 23))
    assert all(text.startswith(("SELECT", "WITH")) and ";" not in text for text in queries().values())
    assert "* 0.0002000000\n" in query_text(11, 0.5), "the specification's fraction"


class Played:
    """Stands for a Spark application."""

    versions = {"spark": "x", "java": "y"}  # noqa: RUF012

    def __init__(self, executors: int, ran: list[tuple[int, int]], last: int) -> None:
        self.executors, self.ran, self.last = executors, ran, last

    def run(self, query: int) -> LoggedQuery:
        if len(self.ran) == self.last:
            raise KeyboardInterrupt
        self.ran.append((query, self.executors))
        return toy_run(query, self.executors)


def test_an_interrupted_profiling_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int]] = []
    last, told = [50], []

    @contextmanager
    def played(data: Path, size_gb: float, executors: int, settings: SparkSettings, work: Path) -> Iterator[Played]:
        yield Played(executors, ran, last[0])

    monkeypatch.setattr(profile_tpch, "generate", lambda size_gb, folder: None)
    monkeypatch.setattr(profile_tpch, "application", played)
    settings = replace(SETTINGS, sizes_gb=(0.5,))
    with pytest.raises(KeyboardInterrupt):
        record(settings, tmp_path, lambda text, more: None)
    assert len(ran) == 50, "22 to warm up, 22 with one executor, 6 with two"
    last[0] = -1
    parts = record(settings, tmp_path, lambda text, more: told.append(more))
    assert len(ran) == 50 + 22 + 16 and sum(told) == settings.queries == 44
    assert ran[-16:] == [(query, 2) for query in range(7, 23)]
    profile = assemble(settings, parts, {})
    assert profile.templates == toy_profile().templates[:QUERIES]
    assert "| 0.5g | 2.0 | 4.0 |" in table_text(profile)
    with pytest.raises(TestbedError, match="query 3 fell into other stages"):
        assemble(settings, parts | {(0.5, 3, 2): msgspec.structs.replace(parts[0.5, 3, 2], run=LoggedQuery((), 1.0))}, {})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sizes", "0"], "--sizes is 0, wanted 0.01 to 1000 GB, rising"),
        (["--sizes", "2", "1"], "--sizes is 2 1, wanted"),
        (["--executors", "0"], "--executors is 0, wanted 1 to 256"),
        (["--partitions", "0"], "--partitions is 0"),
        (["--out", "none/own.json"], "--out is none/own.json, whose folder can't be written"),
    ],
)
def test_what_can_not_be_profiled_is_one_sentence(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_tpch, "check_installed", lambda: None)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_without_spark_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spark_run, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "pyspark is not installed, wanted it for profiling: scripts/profile_tpch installs" in capsys.readouterr().err


def lacking() -> str:
    missing = [name for name, there in (("pyspark", find_spec("pyspark")), ("java", shutil.which("java"))) if not there]
    return ", ".join([*missing, *([] if spark_run.generator() else ["tpchgen-cli"])])


@pytest.mark.skipif(bool(lacking()), reason=f"real Spark can't run: {lacking()} is not installed (scripts/setup profile)")
@pytest.mark.timeout(600)
def test_real_spark(tmp_path: Path) -> None:
    data = tmp_path / "data"
    generate(0.01, data)
    settings = SparkSettings(partitions=4, memory_gb=1)
    with application(data, 0.01, 2, settings, tmp_path) as runner:
        found = {query: runner.run(query) for query in (1, 6, 11)}
    assert [stage.parents for stage in found[6].stages] == [(), (0,)]
    assert [stage.parents for stage in found[1].stages] == [(), (0,), (0, 1), (2,)], "ORDER BY samples first"
    for logged in found.values():
        assert sum(not stage.shuffled_bytes for stage in logged.stages) >= 1 and logged.stages[0].shuffled_bytes > 0
        assert len({parent for stage in logged.stages for parent in stage.parents}) == len(logged.stages) - 1
