"""`prepare`: where a trial's uplink comes from, and that nothing asked for is left out unsaid."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from controllers.api import Manifest
from testbed.abr import PreparedPlaybacks, _video_notes, job
from testbed.cjs import compressed
from testbed.errors import UserError
from testbed.experiment import _header
from testbed.policycards import PolicyCard, from_any_folder
from testbed.report.settings import asked
from testbed.spec import Experiment, from_toml
from testbed.tasks import prepare
from testbed.twin import SimulationJob, simulate
from traces.catalog import load_catalog
from traces.formats import write_trace
from traces.store import find_split
from traces.trace import Conditions, OpportunityTrace, RateTrace

PLAIN = RateTrace("plain", (0.0, 600.0), (3e6,))
LATE = dataclasses.replace(PLAIN, conditions=Conditions((0.0, 600.0), delay_s=(0.05,)))
LOSSY = dataclasses.replace(PLAIN, conditions=Conditions((0.0, 600.0), loss=(0.01,)))


def prepared(trace: str, **settings: object) -> PreparedPlaybacks:
    return prepare(Experiment(trace=(trace,), policies="bba", trials="all", video="synthetic", **settings))  # type: ignore[arg-type]


def write(folder: Path, **files: RateTrace) -> str:
    folder.mkdir()
    for name, trace in files.items():
        write_trace(trace, folder / name.replace("_", "."), "csv")
    return str(folder)


def test_a_folder_of_uplinks_is_paired_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down, up = write(tmp_path / "down", a_down=PLAIN, b_down=PLAIN), write(tmp_path / "up", a_up=PLAIN, b_up=LOSSY, c_up=PLAIN)
    monkeypatch.chdir(tmp_path)
    made = prepared(down, uplink="up")
    assert [(trial.trace.name, trial.uplink and trial.uplink.name) for trial in made.trials] == [("a.down", "a.up"), ("b.down", "b.up")]
    assert made.trials[1].uplink and made.trials[1].uplink.conditions == LOSSY.conditions
    assert made.uplink and (made.uplink.source, made.experiment.uplink) == ("path", up)
    (tmp_path / "experiment.toml").write_text(made.experiment.to_toml())
    assert from_toml(tmp_path / "experiment.toml") == made.experiment


def test_a_trace_without_an_uplink_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    down, up = write(tmp_path / "down", a_down=PLAIN, z_down=PLAIN), write(tmp_path / "up", a_up=PLAIN, b_up=PLAIN)
    with pytest.raises(UserError, match=r"trace z\.down: of the 2 traces of --uplink it pairs with none, wanted one called z\.\*"):
        prepared(down, uplink=up)


@pytest.mark.parametrize("reference", ["lte", "lte/up"])
def test_mahimahis_cellular_links_pair_down_with_up(reference: str) -> None:
    entry = load_catalog()["lte"]
    if not all(find_split(entry, split) for split in entry.splits):
        pytest.skip("the set lte is not on this machine")
    made = prepared("lte", uplink=reference)
    names = ["ATT-LTE-driving-2016", "TMobile-LTE-short", "Verizon-LTE-short"]
    pairs = [(trial.trace.name, trial.uplink and trial.uplink.name) for trial in made.trials]
    assert pairs == [(f"{name}.down", f"{name}.up") for name in names]
    assert made.uplink and (made.uplink.name, made.uplink.split) == ("lte", "up")
    one = prepared("lte:Verizon-LTE-short.down", uplink="lte:TMobile-LTE-short.up")
    assert [trial.uplink and trial.uplink.name for trial in one.trials] == ["TMobile-LTE-short.up"]


def test_the_simulator_takes_a_trace_with_conditions_as_if_it_had_none(tmp_path: Path) -> None:
    plain, lossy = (prepared(write(tmp_path / name, x_csv=trace), chunks=4) for name, trace in (("plain", PLAIN), ("lossy", LOSSY)))
    work = [job(each, each.trials[0], (0, 1, 2, 3)) for each in (plain, lossy)]
    sent = [msgspec.json.decode(msgspec.json.encode(each), type=SimulationJob) for each in work]
    assert [each.trace.sha256 for each in sent] == [each.trials[0].trace.sha256 for each in (plain, lossy)]
    assert sent[1].trace.conditions == LOSSY.conditions
    assert list(simulate(sent[0])) == list(simulate(sent[1]))


@pytest.mark.parametrize(
    ("down", "up", "settings", "told"),
    [
        (PLAIN, None, {}, ""),
        (PLAIN, None, {"queue": 100_000, "aqm": "droptail", "link": "python"}, ""),
        (PLAIN, PLAIN, {}, "the uplink"),
        (LATE, None, {}, "the traces' delay"),
        (PLAIN, LOSSY, {}, "the uplink, the traces' loss"),
        (PLAIN, None, {"aqm": "codel"}, "the queue's settings"),
        (LOSSY, LATE, {"queue_packets": 10}, "the uplink, the traces' delay, the traces' loss, the queue's settings"),
    ],
)
@pytest.mark.parametrize("simulate", [True, False])
def test_what_the_simulator_leaves_out_is_said(tmp_path: Path, down, up, settings, told: str, simulate: bool) -> None:
    trace = write(tmp_path / "down", x_csv=down)
    uplink = write(tmp_path / "up", y_csv=up) if up else None
    notes = [note for note in prepared(trace, uplink=uplink, simulate=simulate, **settings).notes if "simulator" in note]
    rest = "" if simulate else ": so do the simulated twins of these trials, and their offline optimum"
    assert notes == ([f"the simulator leaves out {told}{rest}"] if told else [])


def test_what_only_an_emulation_has_is_said_to_be_left_out(tmp_path: Path) -> None:
    trace, asked = write(tmp_path / "down", x_csv=PLAIN), {"cc": "reno", "link": "kernel", "deadline_ms": 1.0}
    notes = [note for note in prepared(trace, simulate=True, **asked).notes if "simulator" in note]
    assert notes == ["the simulator leaves out the congestion control, the link's back end, the deadline"]


@pytest.mark.parametrize(("link", "relay", "told"), [("userspace", "C", False), ("userspace", "Python", True), ("python", "Python", False)])
def test_a_run_says_when_another_relay_stands_in(tmp_path: Path, link: str, relay: str, told: bool) -> None:
    asked = dataclasses.replace(prepared(write(tmp_path / "plain", x_csv=PLAIN), link=link), notes=("as ever",))
    notes = _header(asked, {"relay": relay}).notes
    assert notes[0] == "as ever" and ["C was not built" in note for note in notes[1:]] == [True] * told


def test_backbone_and_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm").mkdir()
    cards = (PolicyCard("netllm", "", "", "", f"netllm+llm={tmp_path}/llm"),)
    monkeypatch.chdir(tmp_path)
    again = from_any_folder(Experiment(policies="netllm", llm="./llm"), cards)
    assert (again.policies, again.llm) == (f"netllm+llm={tmp_path}/llm", f"{tmp_path}/llm")
    assert from_any_folder(Experiment(policies="netllm", llm="smollm2-135m"), cards).llm == "smollm2-135m"


@pytest.mark.parametrize(
    ("chunk_s", "levels", "policies", "said"),
    [
        (4.0, 6, ("netllm", "genet", "bba"), []),
        (1.0, 6, ("genet", "mine", "bba"), ["these are of 1 s, with which they may do far worse: genet"]),
        (
            4.0,
            7,
            ("pensieve+weights=pensieve-2", "genet"),
            ["6 of the video's 7 bitrates, never 0.145 Mbit/s: pensieve+weights=pensieve-2"],
        ),
        (1.0, 7, ("bola",), []),
    ],
)
def test_learned_policies_on_another_video_get_a_note(chunk_s: float, levels: int, policies: tuple[str, ...], said: list[str]) -> None:
    bitrates = (145_000, 365_000, 730_000, 1_100_000, 2_000_000, 3_000_000, 4_500_000)[7 - levels :]
    sizes = tuple(tuple(round(bps * chunk_s / 8) for bps in bitrates) for _ in range(49))
    video = Manifest("mine", chunk_s, bitrates, sizes)
    notes = list(_video_notes(video, [PolicyCard(name, "", "", "", name) for name in policies]))
    assert len(notes) == len(said) and all(end in note for end, note in zip(said, notes, strict=True))


def test_executors_links_keep_outages_shorter_than_a_second() -> None:
    busy = [0.01 * (i + 1) for i in range(100)]
    trace = OpportunityTrace("lte", (*busy, *(1.5 + each for each in busy), 3.0))
    found = compressed(trace, 10.0)
    assert found.duration_s == pytest.approx(0.3)
    assert [found.rates_bps[i] == 0 for i in range(8, 18)] == [False] * 2 + [True] * 5 + [False] * 3
    assert found.bytes_by(0.3) == pytest.approx(trace.bytes_by(3.0) / 10)


def test_a_report_of_somebodys_cluster_shows_no_option_of_links() -> None:
    spec = dataclasses.asdict(Experiment(task="cjs", cluster="tcp://a:1"))
    header = SimpleNamespace(task="cjs", mode="cluster", spec=spec, host={"awake": False})
    labels = [label for label, _ in asked(header)]  # type: ignore[arg-type]
    assert "Dask cluster" in labels and "Time scale" in labels
    assert not {"Round-trip time", "Queue", "Congestion control", "Executors in containers", "Repeats where a link fails"} & {*labels}
