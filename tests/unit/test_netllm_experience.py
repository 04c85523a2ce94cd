"""Experience: leak-free, labelled everywhere, the same for the same seed, and readable without a pickle."""

from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest

from controllers.abr.scenario_mpc import ScenarioMPC, plan_values
from controllers.api import AbrObservation, AbrSession
from controllers.weights import SHIPPED, read_story
from netllm.abr.experience import CollectSettings, collect, jobs, play, read, read_header, sources_of, validation_jobs
from netllm.abr.lessons import prepare
from netllm.abr.teaching import LEAST, Teachers, story_of
from netllm.tasks.abr import AbrTask
from players.media import synthetic_manifest
from testbed.errors import UserError
from testbed.metrics import qoe_lin, summarise
from testbed.sim.abr import AbrSimulator, run_session
from testbed.units import mbps_from_bps
from tests.unit.tiny_models import a_session, played
from traces.catalog import load_catalog
from traces.store import find_split, resolve
from traces.synthetic import synthetic_trace
from traces.trace import RateTrace
from traces.training import group_of, validation


def write_trace(path, seed, mbps=1.0):
    rng = np.random.default_rng(seed)
    path.write_text("".join(f"{t}\t{rng.uniform(0.5, 1.5) * mbps:.6f}\n" for t in range(0, 325, 5)))


@pytest.fixture
def own(tmp_path):
    """Settings that need no catalogued data."""
    folder = tmp_path / "traces"
    folder.mkdir()
    for number in range(8):
        write_trace(folder / f"mine_{number}", number)
    return CollectSettings(
        teachers=("scenario_mpc",),
        sessions=10,
        traces=(str(folder),),
        videos=("synthetic",),
        validation_videos=("synthetic",),
        chunks=12,
        held_out=0.25,
    )


def needs(reference):
    try:
        if resolve(reference).source == "store":
            return
    except UserError:
        pass
    pytest.skip(f"{reference} is not on this machine")


def test_the_same_seed_gives_the_same_file_and_another_seed_another(own, tmp_path):
    one, two = (pl.read_parquet(collect(tmp_path / name, own)) for name in ("one", "two"))
    assert one.equals(two)
    assert not one.equals(pl.read_parquet(collect(tmp_path / "three", replace(own, seed=2))))


def test_a_file_read_back_is_what_was_played(own, tmp_path):
    played_now = play(jobs(own, sources_of(own)), own.teachers)
    for then, now in zip(read(collect(tmp_path / "x", own)), played_now, strict=True):
        assert (then.session, then.chunks, then.behaviour, then.trace, then.trace_sha256) == (
            now.session,
            now.chunks,
            now.behaviour,
            now.trace,
            now.trace_sha256,
        )
        np.testing.assert_array_equal(then.labels, now.labels)


def test_every_decision_of_every_whole_session_has_a_label(own, tmp_path):
    episodes = read(collect(tmp_path / "x", replace(own, sub_ladders=0.5, scaled_ladders=0.5, sessions=20)))
    assert {episode.behaviour for episode in episodes} == {"teacher", "noisy", "bba", "robust_mpc", "random"}
    assert any(episode.session.video.levels < 6 for episode in episodes)
    for episode in episodes:
        assert [chunk.index for chunk in episode.chunks] == list(range(12))
        assert episode.labels.shape == (11, episode.session.video.levels)
        np.testing.assert_allclose(episode.labels.sum(axis=1), 1)
    for each, episode in zip(prepare(AbrTask(), episodes), episodes, strict=True):
        np.testing.assert_allclose(each["label"].sum(axis=1), 1, rtol=1e-6)
        assert not each["label"][~each["allowed"]].any()
        assert each["allowed"].sum() == 11 * episode.session.video.levels


def test_the_header_says_how_it_was_made(own, tmp_path):
    facts = read_header(collect(tmp_path / "x", own))
    assert facts["settings"]["seed"] == own.seed
    assert facts["sets"][0]["sha256"] == resolve(own.traces[0]).sha256
    assert len(facts["held_out"]) == 2
    assert facts["teachers"] == ["scenario_mpc"]


def test_held_out_traces_are_never_trained_on(own):
    sources = sources_of(own)
    held_out = {trace.name for trace in sources.held_out}
    assert len(held_out) == 2 and len(sources.train) == 6
    for job in jobs(replace(own, sessions=60, synthetic=0.0), sources):
        assert job.trace.name.split(" x")[0] not in held_out


def test_another_seed_holds_out_and_validates_on_the_same_traces(own):
    """Else a student of seed 2 would be chosen on units that its teachers, held apart by seed 1, have learnt from."""
    one, two = (sources_of(replace(own, seed=seed)) for seed in (1, 2))
    assert one == two and jobs(own, one) != jobs(replace(own, seed=2), two)
    assert validation_jobs(own, one, count=3) == validation_jobs(replace(own, seed=2), two, count=3)


def test_shipped_teachers_never_learnt_from_what_adapters_validate_on():
    needs("fcc/train"), needs("norway/train")
    held_out = sources_of(CollectSettings(seed=3)).held_out_groups
    for weights in sorted(SHIPPED.glob("*.safetensors")):
        assert read_story(weights)["held_out"] == held_out, weights.name


@pytest.mark.parametrize("reference", ["fcc/test", "norway/test", "fcc/valid", "fcc"])
def test_splits_that_are_not_for_training_are_refused(own, reference):
    needs(reference)
    with pytest.raises(UserError, match=r"is not for training, wanted a split named train"):
        sources_of(replace(own, traces=(reference,)))


def test_own_traces_that_share_a_run_with_a_test_split_are_refused(own, tmp_path):
    needs("fcc/test")
    trace = resolve("fcc/test").traces[3]
    rows = [f"{t}\t{mbps_from_bps(rate)}\n" for t, rate in zip(trace.edges_s[1:], trace.rates_bps, strict=True)]
    folder = tmp_path / "stolen"
    folder.mkdir()
    (folder / "innocent").write_text("0\t1\n" + "".join(rows[20:60]))
    with pytest.raises(UserError, match=r"of fcc/test, wanted traces unknown to tests and to what policies are chosen on"):
        sources_of(replace(own, traces=(str(folder),)))


@pytest.mark.parametrize("split", ["lte/down", "fcc/valid"])
def test_traces_that_policies_are_chosen_or_measured_on_are_refused_as_files_too(own, split):
    needs(split)
    folder = find_split(load_catalog()[split.partition("/")[0]], load_catalog()[split.partition("/")[0]].split(split.partition("/")[2]))
    with pytest.raises(UserError, match=f"of {split}, wanted traces unknown to tests and to what policies are chosen on"):
        sources_of(replace(own, traces=(str(folder),)))


def test_something_is_held_out_of_few_traces_and_nothing_is_called_so_that_is_learnt_from(own, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(2):
        write_trace(folder / f"few_{number}", number)
    few = replace(own, traces=(str(folder),), held_out=0.15)
    assert (len(sources_of(few).train), len(sources_of(few).held_out)) == (1, 1)
    none = sources_of(replace(few, held_out=0.0))
    assert len(none.train) == 2 and "held_out" not in {each.family for each in validation(none, 2)}
    assert "held_out" in {each.family for each in validation(sources_of(few), 2)}


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_damaged_split_is_refused_not_skipped(own, tmp_path, monkeypatch, split):
    folder = tmp_path / "data" / load_catalog()["fcc"].folder / split
    folder.mkdir(parents=True)
    write_trace(folder / "trace_1_http---damaged", 99)
    monkeypatch.setenv("NETLLM_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"fcc/{split} in .* has 1 files with sha256 .*, wanted"):
        validation_jobs(own, sources_of(own))


def test_units_and_logs_stay_together():
    needs("fcc/train"), needs("norway/train")
    sources = sources_of(CollectSettings())
    train, held_out = ({group_of(trace) for trace in each} for each in (sources.train, sources.held_out))
    assert train and held_out and not train & held_out
    assert {group.partition(":")[0] for group in held_out} == {"unit", "log"}


def test_validation_sessions_are_on_held_out_and_synthetic_traces_only(own):
    sources = sources_of(own)
    names = {job.trace.name for job in validation_jobs(own, sources, count=5)}
    allowed = {trace.name for trace in sources.held_out}
    assert all(name in allowed or name.startswith("synthetic:") or _valid(name) for name in names)
    assert all(job.trace.mean_rate_bps > 0.59e6 for job in validation_jobs(own, sources, count=5))


def _valid(name):
    return any(trace.name == name for trace in resolve("fcc/valid").traces)


@pytest.mark.parametrize("content", [b"", b"not parquet", None])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content) if content is not None else pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(UserError, match="is no experience file"):
        read(path)


def test_a_killed_collection_leaves_no_half_file(own, tmp_path, monkeypatch):
    monkeypatch.setattr(pl.DataFrame, "write_parquet", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        collect(tmp_path / "out" / "x.parquet", own)
    assert list((tmp_path / "out").iterdir()) == []


def test_plan_values_equal_a_plain_search():
    video = synthetic_manifest()
    session, history = played(5)
    observation = AbrObservation(session, history[:9], 7.3)
    sizes = mbps_from_bps(8) * np.array(video.sizes_bytes[9:12], dtype=np.float32)
    values = plan_values(observation, sizes, np.array([0.7, 2.9], dtype=np.float32)).reshape(2, 6, 6, 6)
    for scenario, rate_mbps in enumerate((0.7, 2.9)):
        for plan in product(range(6), repeat=3):
            buffer_s, previous, total = 7.3, history[8].level, 0.0
            for chunk, level in enumerate(plan):
                download_s = float(sizes[chunk][level]) / rate_mbps
                stall_s = max(download_s - buffer_s, 0)
                total += qoe_lin(video.bitrates_bps[level], stall_s, video.bitrates_bps[previous])
                buffer_s, previous = min(max(buffer_s - download_s, 0) + 4, session.buffer_cap_s), level
            assert values[scenario][plan] == pytest.approx(total, rel=1e-4, abs=1e-3)


def test_the_scenario_mpc_labels_its_own_choice_highest_and_beats_bba():
    from controllers.abr.bba import BBA

    rng = np.random.default_rng(3)
    traces = [synthetic_trace(rng) for _ in range(12)]
    teacher, bba = (
        np.mean([summarise(run_session(trace, a_session(30), policy, 0), a_session().video).qoe for trace in traces])
        for policy in (ScenarioMPC(), BBA())
    )
    assert teacher > bba + 0.05
    session, history = played(5)
    policy = started(session)
    for chunk in (1, 10, 47):
        observation = AbrObservation(session, history[:chunk], 6.0)
        assert np.argmax(policy.probabilities(observation)) == policy.decide(observation)


def started(session, **options):
    policy = ScenarioMPC(**options)
    policy.reset(session, 0)
    return policy


def test_the_scenario_mpc_plays_it_safe_when_it_cannot_know():
    session = AbrSession("x", synthetic_manifest(), 48)
    sim = AbrSimulator(RateTrace("slow", (0.0, 1000.0), (0.35e6,)), session)
    sim.step(0)
    assert started(session).decide(sim.observation) == 0


def test_the_scenario_mpc_refuses_options_without_sense():
    with pytest.raises(UserError, match="temperature 0, wanted at least 1, above 0, above 0"):
        ScenarioMPC(temperature=0)


STAY = """
import numpy as np
from controllers.api import AbrPolicy

class Stay(AbrPolicy):
    def __init__(self, sharpness: float = 0.9):
        self.sharpness = sharpness

    def decide(self, observation):
        return observation.last_level

    def probabilities(self, observation):
        chances = np.full(observation.video.levels, (1 - self.sharpness) / (observation.video.levels - 1))
        chances[observation.last_level] = self.sharpness
        return chances
"""


def test_any_policy_plays_and_teaches(own, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(STAY)
    settings = replace(own, behaviours=(str(mine), "bba", "random"), teachers=(f"{mine}+sharpness=0.75",), sessions=3)
    stay, bba, walk = play(jobs(settings, sources_of(settings)), settings.teachers)
    assert {chunk.level for chunk in stay.chunks} == {0}
    assert max(chunk.level for chunk in bba.chunks) > 0 and max(chunk.level for chunk in walk.chunks) > 0
    for episode in (stay, bba, walk):
        levels = [chunk.level for chunk in episode.chunks]
        np.testing.assert_allclose(episode.labels[np.arange(11), levels[:-1]], 0.75)
        np.testing.assert_allclose(episode.labels.sum(axis=1), 1)


def test_several_teachers_speak_as_their_mean_in_logs(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(STAY)
    session, history = played(3)
    observation = AbrObservation(session, history[:10], 9.0)
    voice = Teachers([f"{mine}+sharpness=0.5", f"{mine}+sharpness=0.8", "fixed+level=2"])
    voice.reset(session, 0)
    expected = np.cbrt(np.array([0.1 * 0.04 * LEAST] * 6))
    expected[history[9].level] = np.cbrt(0.5 * 0.8 * (LEAST if history[9].level != 2 else 1))
    if history[9].level != 2:
        expected[2] = np.cbrt(0.1 * 0.04)
    np.testing.assert_allclose(voice.probabilities(observation), expected / expected.sum(), rtol=1e-9)
    alone = Teachers(["fixed+level=2"])
    alone.reset(session, 0)
    assert alone.probabilities(observation).tolist() == [0, 0, 1, 0, 0, 0]


def test_a_student_is_relabelled_as_if_its_teacher_had_watched(own):
    settings = replace(own, sessions=4)
    batch = jobs(settings, sources_of(settings), behaviours=("greedy",))
    watched = play(batch, settings.teachers, lambda observations: [int(each.buffer_s > 8) for each in observations])
    for job, episode in zip(batch, watched, strict=True):
        policy, sim = started(job.session), AbrSimulator(job.trace, job.session, job.offset_s, job.noise, np.random.default_rng(job.seed))
        sim.step(0)
        for chunk, label in zip(episode.chunks[1:], episode.labels, strict=True):
            np.testing.assert_array_equal(label, policy.probabilities(sim.observation))
            assert chunk.level == int(sim.observation.buffer_s > 8)
            sim.step(chunk.level)
        assert sim.history == episode.chunks


def test_a_student_that_is_missing_and_a_policy_that_is_unknown_are_one_sentence(own):
    for name, message in (("student", "needs a student"), ("bbq", "policy 'bbq' is unknown")):
        with pytest.raises(UserError, match=message):
            play(jobs(replace(own, behaviours=(name,), sessions=1), sources_of(own)), own.teachers)


def test_a_teacher_tells_the_videos_its_weights_were_trained_on(tmp_path):
    told = story_of("pensieve+weights=pensieve-2")
    assert told["weights"] == "pensieve-2.safetensors" and len(told["sha256"]) == 64
    assert "video2" not in told["videos"] and "video1" in told["videos"]
    assert story_of("bba") == {}
    other = tmp_path / "mine.pt"
    other.write_bytes(b"weights in a form of their own")
    assert story_of(f"mine.py+weights={other}") == {}
