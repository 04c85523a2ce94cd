"""What parts emulation from simulation: the simulator's own formula, parts that add up, and a page that refuses other runs."""

from dataclasses import astuple

import msgspec
import numpy as np
import polars as pl
import pytest
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.api import AbrSession, Manifest
from testbed import stats
from testbed.bench.command import command
from testbed.bench.live import LiveSettings, chunk_costs, costs, live, seconds_for
from testbed.errors import UserError
from testbed.events import read_run
from testbed.records import TrialRow
from testbed.sim.abr import PAYLOAD_SHARE, AbrSimulator
from traces.trace import RateTrace


def written(folder, run):
    folder.mkdir()
    (folder / "events.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in run.events()))
    return folder


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.floats(1e5, 2e7)), min_size=1, max_size=20),
    st.lists(st.tuples(st.floats(0, 500), st.integers(1000, 5_000_000)), min_size=1, max_size=8),
)
def test_a_chunk_takes_as_long_as_in_the_simulator(segments, asked):
    trace = RateTrace("any", tuple(np.append(0.0, np.cumsum([width for width, _ in segments]))), tuple(rate for _, rate in segments))
    begin_s, sizes = np.array([begin for begin, _ in asked]), np.array([size for _, size in asked], float)
    found_s = seconds_for(trace, begin_s, sizes / PAYLOAD_SHARE)
    for at_s, (_, size), mine_s in zip(begin_s, asked, found_s, strict=True):
        session = AbrSession("one", Manifest("one", 4.0, (300_000,), ((size,),)), 1)
        simulator = AbrSimulator(trace, session, at_s)
        assert mine_s + session.rtt_s == pytest.approx(simulator.step(0).download_s, rel=1e-6, abs=1e-6)


def test_the_steps_add_up_to_the_time_a_chunk_took(tmp_path):
    run = read_run(written(tmp_path / "run", FakeRun()))
    chunks = chunk_costs(run, run.trials)
    assert len(chunks) == sum(trial.chunks for trial in run.trials)
    found = costs(chunks)
    assert found.download_s == pytest.approx(sum(astuple(found)[1:]))
    assert not chunks.filter(pl.col("index") == 0)["paused"].any() and chunks["paused"].any()


def test_chunks_that_go_at_the_link_s_rate_leave_nothing_to_tcp(tmp_path):
    """The fake player gets its bytes at the trace's very rate, a round trip after the request, without a header."""
    run = read_run(written(tmp_path / "run", FakeRun(policies=("bola",), traces=1)))
    (trial,) = run.trials
    media = run.tables["chunks"]["size_bytes"].sum()
    whole = run.tables["links"].head(1).with_columns(pl.lit(float(media)).alias("delivered_bytes"))
    exact = msgspec.structs.replace(trial)
    chunks = chunk_costs(type(run)(**{**run.__dict__, "tables": {**run.tables, "links": whole}}), [exact])
    assert np.abs(chunks["rest_s"].to_numpy() + chunks["clock_s"].to_numpy()).max() < 0.05 * chunks["download_s"].max()
    assert (chunks["headers_s"] < 0).all(), "the simulator's 5 % of headers are not there"


def test_the_page_tells_path_and_choice_of_each_policy(tmp_path):
    folder = written(tmp_path / "run", FakeRun(optimum=True, invalid_every=5))
    page, run = live(LiveSettings((folder,), tmp_path / "page.md")), read_run(folder)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page
    assert "](page.svg)" in page and b"RobustMPC" in (tmp_path / "page.svg").read_bytes()
    for policy in FakeRun().policies:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{policy}` |") and line.endswith(" of 3 |"))
        cells = [cell.strip().replace("\N{MINUS SIGN}", "-") for cell in line.split("|")[1:-1]]
        valid = [trial for trial in run.trials if trial.policy == policy and trial.valid]
        assert cells[-1] == f"{len(valid)} of 3"
        assert float(cells[1].split()[0]) == pytest.approx(np.mean([trial.qoe for trial in valid]), abs=6e-4)
        assert float(cells[4]) == pytest.approx(float(cells[5]) + float(cells[6]), abs=2e-3)
    for other in FakeRun().policies[1:]:
        mean = stats.compare("netllm", other, run.trials).estimate.mean
        assert f"| `{other}` | {mean:+.3f} |".replace("-", "\N{MINUS SIGN}") in page


def test_a_policy_without_twin_or_valid_trial_has_a_line_with_dashes(tmp_path):
    """The browser's own rules are never simulated under their own name; a policy may fail in every trial."""
    events = []
    for event in FakeRun(policies=("robust_mpc", "bola", "bba")).events():
        if isinstance(event, TrialRow) and event.policy == "bola":
            event = msgspec.structs.replace(event, simulated_qoe=None, parts_at_chunk=None)
        if isinstance(event, TrialRow) and event.policy == "bba":
            event = msgspec.structs.replace(event, valid=False, invalid_reason="ended early: policy raised")
        events.append(event)
    (tmp_path / "events.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    page = live(LiveSettings((tmp_path,), tmp_path / "page.md"))
    cells = {
        policy: [cell.strip() for cell in line.split("|")[1:-1]]
        for policy in ("bola", "bba")
        for line in page.splitlines()
        if line.startswith(f"| `{policy}` |") and line.endswith(" of 3 |")
    }
    none = "\N{EN DASH}"
    assert cells["bola"][1] != none and cells["bola"][3:7] == [none, none, cells["bola"][5], none] and cells["bola"][5] != none
    assert set(cells["bba"][1:11]) == {none} and cells["bba"][11:] == [f"{none}, {none}", "0 of 0", "0 of 3"]


def test_a_run_that_was_not_emulated_is_refused(tmp_path, capsys):
    folder = written(tmp_path / "run", FakeRun(mode="simulation"))
    with pytest.raises(UserError, match="in simulation, wanted one of abr in emulation"):
        live(LiveSettings((folder,)))
    assert command(["live", str(tmp_path)]) == 2
    assert "is not a result folder" in capsys.readouterr().err
