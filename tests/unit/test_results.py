"""The result folder: never overwritten, complete at every moment, and rebuilt from its events alone."""

import json
import os
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import TestbedError, UserError
from testbed.events import TABLES, frame, read_run, schema
from testbed.records import ChunkRow, EndRow, Event, SimulatedRow, TraceRow, TrialRow
from testbed.report.build import build
from testbed.results import ResultFolder, trace_row
from traces.trace import MIN_MEAN_RATE_BPS, OpportunityTrace, RateTrace

NOW = datetime(2026, 11, 23, 18, 47, 5, tzinfo=UTC)
SMALL = FakeRun(traces=1, policies=("netllm", "bba"), chunks=4)
DERIVED = {"summary.json", "report.html", *(f"{name}.parquet" for name in TABLES)}


def written(base: Path, fake: FakeRun = SMALL) -> ResultFolder:
    folder = ResultFolder.create(base, fake.header(), NOW)
    folder.extend(event for event in list(fake.events())[1:] if not isinstance(event, EndRow))
    return folder


def finished(folder: ResultFolder, reason: str = "complete") -> dict[str, Any]:
    folder.finish(reason)
    return build(folder.path, folder.owner)


def test_folder_is_named_after_time_and_task_and_holds_the_header_at_once(tmp_path):
    folder = ResultFolder.create(tmp_path / "results", SMALL.header(), NOW)
    assert folder.path == tmp_path / "results" / "20261123T184705Z-abr"
    assert (folder.path / "experiment.toml").read_text() == SMALL.header().experiment_toml
    first = json.loads((folder.path / "events.jsonl").read_text())
    assert first["event"] == "header" and first["spec"] == SMALL.header().spec and first["trace"]["sha256"] == "ab" * 32


def test_folder_is_never_reused_and_latest_follows(tmp_path):
    paths = [ResultFolder.create(tmp_path, SMALL.header(), NOW).path for _ in range(3)]
    assert [p.name for p in paths] == ["20261123T184705Z-abr", "20261123T184705Z-abr-2", "20261123T184705Z-abr-3"]
    assert (tmp_path / "latest").resolve() == paths[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*(p.name for p in paths), "latest"]


def test_latest_that_is_no_link_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match="latest is not a symbolic link"):
        ResultFolder.create(tmp_path, SMALL.header(), NOW)
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_out_that_is_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, wanted a folder"):
        ResultFolder.create(tmp_path / "file", SMALL.header(), NOW)


def test_every_row_is_in_the_file_when_append_returns(tmp_path):
    folder = ResultFolder.create(tmp_path, SMALL.header(), NOW)
    for count, event in enumerate(list(SMALL.events())[1:20], 2):
        folder.append(event)
        assert len((folder.path / "events.jsonl").read_bytes().splitlines()) == count


def test_finish_writes_everything_derived(tmp_path):
    summary = finished(written(tmp_path))
    path = tmp_path / "latest"
    assert {p.name for p in path.iterdir()} == DERIVED | {"events.jsonl", "experiment.toml"}
    assert json.loads((path / "summary.json").read_text()) == summary
    trials = pl.read_parquet(path / "trials.parquet")
    assert trials["policy"].to_list() == ["netllm", "bba"]
    assert pl.read_parquet(path / "chunks.parquet").height == 8
    assert pl.read_parquet(path / "decisions.parquet").height == 6
    assert pl.read_parquet(path / "links.parquet").height > 10


def test_everything_derived_comes_back_from_the_events_alone(tmp_path):
    summary = finished(written(tmp_path))
    path = (tmp_path / "latest").resolve()
    before = {name: (path / name).read_bytes() for name in DERIVED}
    for name in DERIVED:
        (path / name).unlink()
    assert build(path) == summary
    assert {name: (path / name).read_bytes() for name in DERIVED} == before


def test_run_killed_by_signal_9_still_gives_a_report(tmp_path):
    program = """
import os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from typing import Any
from fake_run import FakeRun
from testbed.results import ResultFolder
fake = FakeRun(traces=2, policies=("netllm", "bba"), chunks=4, link_rows=False)
folder = ResultFolder.create(Path(sys.argv[1]), fake.header(), datetime.now(UTC))
for event in list(fake.events())[1:-3]:
    folder.append(event)
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    summary = build((tmp_path / "latest").resolve())
    assert summary["policies"]["netllm"]["trials"] == 2 and summary["policies"]["bba"]["trials"] == 1
    assert summary["unfinished"] == 1
    assert any("cut short" in note for note in summary["notes"])
    assert "cut short" in (tmp_path / "latest" / "report.html").read_text()


def test_behind_a_line_that_could_not_be_written_whole_comes_nothing(tmp_path):
    folder = ResultFolder.create(tmp_path, SMALL.header(), NOW)
    events = list(SMALL.events())[1:]
    full = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder.path / "events.jsonl").stat().st_size + 10_001, full[1]))  # as on a full disk
    try:
        with pytest.raises(TestbedError, match="too large"):
            folder.extend(events * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, full)  # and there is room again
    for write in (lambda: folder.append(events[0]), folder.finish):
        with pytest.raises(TestbedError, match="too large"):
            write()
    folder.close()
    run = read_run(folder.path)
    assert run.truncated and run.end is None


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1))
def test_last_line_may_be_cut_anywhere(tmp_path_factory, share):
    path = written(tmp_path_factory.mktemp("cut")).path
    whole = (path / "events.jsonl").read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    keep = last + int(share * (len(whole) - last))
    (path / "events.jsonl").write_bytes(whole[:keep])
    run = read_run(path)
    assert len(run.trials) == (2 if keep >= len(whole) - 1 else 1)
    assert run.end is None


def test_line_spoilt_in_the_middle_is_named(tmp_path):
    path = written(tmp_path).path
    lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = b'{"event":"chunk","trial_id":3}\n'
    (path / "events.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"events\.jsonl, line 5: .*wanted one event"):
        build(path)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("dns", r"line 1: task is 'dns', wanted one of abr, cjs, vp"),
        ("cjs", r"line 3: ChunkRow, wanted no row of another task than the header's"),
    ],
)
def test_header_of_another_task_is_named(tmp_path, task, told):
    folder = ResultFolder.create(tmp_path, msgspec.structs.replace(SMALL.header(), task=task), NOW)
    folder.extend(event for event in SMALL.events() if isinstance(event, TraceRow | ChunkRow))
    folder.close()
    with pytest.raises(UserError, match=told):
        build(folder.path)


def test_figures_that_can_not_be_written_are_one_sentence(tmp_path):
    path = written(tmp_path).path
    (path / "figures").touch()
    with pytest.raises(TestbedError, match="figures: File exists; make room for figures"):
        build(path, figures="svg")


@pytest.mark.parametrize("content", [None, b"", b"hello\n", b'{"event":"end","ended_utc":"","reason":""}\n'])
def test_folder_that_is_no_result_is_the_users_mistake(tmp_path, content):
    if content is not None:
        (tmp_path / "events.jsonl").write_bytes(content)
    with pytest.raises(UserError):
        build(tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_tables_are_typed_even_when_empty(tmp_path):
    finished(ResultFolder.create(tmp_path, SMALL.header(), NOW), "interrupted")
    for name, row in TABLES.items():
        table = pl.read_parquet(tmp_path / "latest" / f"{name}.parquet")
        assert table.height == 0 and dict(table.schema) == schema(row)
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert summary["policies"]["netllm"]["mean"] is None and summary["comparisons"] == []


def test_null_columns_keep_their_type():
    trial = next(e for e in FakeRun(traces=1, mode="simulation", chunks=3).events() if isinstance(e, TrialRow))
    assert frame([trial], TrialRow).schema["lateness_ms_p99"] == pl.Float64
    assert pl.concat([frame([trial], TrialRow), frame([], TrialRow)]).height == 1


rows = st.builds(
    ChunkRow,
    trial_id=st.text(max_size=8),
    **dict.fromkeys(("index", "level", "bitrate_bps", "size_bytes"), st.integers(0, 2**40)),
    **dict.fromkeys(
        ("request_s", "first_byte_s", "end_s", "download_s", "rebuffer_s", "buffer_s", "waited_s", "qoe"),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, max_size=5))
def test_rows_come_back_from_json_and_from_the_table(chunks):
    lines = [msgspec.json.encode(chunk) for chunk in chunks]
    assert [msgspec.json.decode(line, type=Event) for line in lines] == chunks
    assert [ChunkRow(**values) for values in frame(chunks, ChunkRow).to_dicts()] == chunks


def test_twins_score_joins_its_trial(tmp_path):
    folder = written(tmp_path)
    folder.append(SimulatedRow(trial_id="t0001", qoe=-3.5))
    folder.close()
    run = read_run(folder.path)
    assert run.trials[1].simulated_qoe == -3.5 and run.trials[0].simulated_qoe != -3.5
    assert run.tables["trials"]["simulated_qoe"][1] == -3.5


def test_the_optimum_joins_the_trials_of_its_trace_and_offset(tmp_path):
    folder = written(tmp_path, FakeRun(traces=2, policies=("netllm", "bba"), chunks=4, optimum=True))
    folder.close()
    run = read_run(folder.path)
    best = {sha256: row.qoe for (sha256, _), row in run.optima.items()}
    assert len(best) == 2 and run.tables["trials"]["optimum_qoe"].to_list() == [best[trial.trace_sha256] for trial in run.trials]
    assert read_run(written(tmp_path).path).tables["trials"]["optimum_qoe"].to_list() == [None, None]


def test_many_rows_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("testbed.events._BATCH_ROWS", 7)
    folder = written(tmp_path)
    folder.close()
    links = read_run(folder.path).tables["links"]
    assert links.height > 20 and links.filter(pl.col("trial_id") == "t0000")["start_s"].is_sorted()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folder_belongs_to_who_called_sudo(tmp_path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "23456")
    finished(written(tmp_path / "new" / "results"))
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(made) > 8
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in made} == {(12345, 23456)}
    assert tmp_path.stat().st_uid == os.getuid()


rate_traces = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1e8)), min_size=1, max_size=50).filter(
    lambda parts: sum(width * (rate - MIN_MEAN_RATE_BPS) for width, rate in parts) > 0
)


@settings(max_examples=50, deadline=None)
@given(rate_traces)
def test_binned_trace_carries_as_much(parts):
    edges = np.concatenate([[0.0], np.cumsum([w for w, _ in parts])])
    trace = RateTrace("t", tuple(edges.tolist()), tuple(r for _, r in parts))
    for most in (2000, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("testbed.results._MOST_POINTS", most)
            row = trace_row(trace)
        bits = float(np.diff(row.edges_s) @ np.asarray(row.rates_bps))
        assert bits == pytest.approx(trace.capacity_bytes * 8)
        assert row.edges_s[-1] == pytest.approx(trace.duration_s) and len(row.rates_bps) <= max(most, 5)


def test_opportunities_become_rates():
    trace = OpportunityTrace("t", tuple(0.01 * i for i in range(1, 401)))
    row = trace_row(trace)
    assert row.edges_s == pytest.approx([0, 1, 2, 3, 4])
    assert float(np.diff(row.edges_s) @ np.asarray(row.rates_bps)) == pytest.approx(400 * 1500 * 8)
