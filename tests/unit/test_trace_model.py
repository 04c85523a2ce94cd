"""The FCC stand-in: reproducible, bounded, refitted to the same file, as good as its docstring says. And the synthetic families."""

import dataclasses

import msgspec
import numpy as np
import pytest

from traces import fit_fcc_model, model
from traces.fit_fcc_model import five_second_samples, segments_of, unit_weights, weighted_quantiles
from traces.model import MODEL_FILE, draw, load_model, to_json
from traces.store import list_sets, resolve
from traces.synthetic import FAMILIES, FLOOR_MBPS, step_rates, synthetic_trace
from traces.trace import RateTrace


@pytest.fixture
def fcc():
    if not next(each for each in list_sets() if each.name == "fcc").present:
        pytest.skip("fcc is not on this machine: scripts/fetch_data fcc")
    return {split: resolve(f"fcc/{split}") for split in ("train", "valid", "test")}


def test_a_seed_gives_the_same_traces_and_more_of_them_begin_with_these():
    assert draw(5, 3) == draw(9, 3)[:5]
    assert not {t.sha256 for t in draw(50, 3)} & {t.sha256 for t in draw(50, 4)}


def test_the_stream_is_the_same_on_every_machine():
    """PCG64's raw words are promised by NumPy; were any other source of chance used, this would move some day."""
    first = draw(1, 0)[0]
    assert [round(rate) for rate in first.rates_bps[:3]] == FIRST_RATES_BPS


FIRST_RATES_BPS = [1507109, 1572656, 1565561]


@pytest.mark.parametrize("duration_s", [320.0, 5.0, 3.0, 12.5])
def test_durations_are_met_and_means_stay_within_limits(duration_s):
    low, high = load_model().mean_limits_mbps
    for trace in draw(100, 1, duration_s):
        assert trace.duration_s == duration_s and trace.source == "model" and trace.name.startswith("fcc-model-1-")
        assert low - 1e-9 <= trace.mean_rate_bps / 1e6 <= high + 1e-9
        assert min(trace.rates_bps) > 0


def test_the_file_is_small_and_its_probabilities_add_up():
    assert MODEL_FILE.stat().st_size < 30_000 and MODEL_FILE.read_bytes() == to_json(load_model())
    fitted = load_model()
    assert sum(shape.weight for shape in fitted.classes) == pytest.approx(1, abs=1e-4)
    for shape in fitted.classes:
        assert sum(shape.initial) == pytest.approx(1, abs=1e-3)
        assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in shape.transition)
        assert all(list(points) == sorted(points) for points in (shape.cv_quantiles, *shape.z_quantiles))
    assert fitted.fitted_on == "fcc/train"


def test_the_docstring_shows_the_validation_of_the_file():
    for line in fit_fcc_model.table_text(load_model().validation).splitlines():
        assert line in model.__doc__


def test_the_model_is_nearer_to_train_than_the_other_real_sets_are():
    scores = load_model().validation
    for feature in ("rate", "mean", "cv", "lag_5s", "lag_20s"):
        assert scores["KS model-train"][feature] < min(scores["KS train-valid"][feature], scores["KS train-test"][feature])


def test_fitting_again_gives_the_same_file(fcc, tmp_path, capsys):
    assert fit_fcc_model.main(["--out", str(tmp_path / "model.json")]) == 0
    assert (tmp_path / "model.json").read_bytes() == MODEL_FILE.read_bytes()
    assert "46 segments of 9 units" in capsys.readouterr().out


def test_the_test_split_does_not_move_a_parameter(fcc):
    fitted = fit_fcc_model.fit(fcc["train"])
    assert msgspec.structs.replace(load_model(), validation={}) == fitted
    other = dataclasses.replace(fcc["train"], traces=fcc["train"].traces[:-3])
    assert fit_fcc_model.fit(other).classes != fitted.classes


def test_fitting_without_the_data_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("traces.store.data_roots", lambda root=None: (tmp_path,))
    assert fit_fcc_model.main(["--out", str(tmp_path / "model.json")]) == 2
    assert "modelled, not measured" in capsys.readouterr().err and not (tmp_path / "model.json").exists()


def test_upsampled_files_give_their_five_second_samples():
    samples = [1.0, 3.0, 2.0]
    rows = np.repeat(samples, 5)[1:]  # row 0's rate is never used
    upsampled = RateTrace("trace_7_http---a", tuple(range(len(rows) + 1)), tuple(rows * 1e6))
    assert five_second_samples(upsampled).tolist() == samples
    held = RateTrace("trace_7_http---a", (0.0, 5.0, 10.0), (1e6, 3e6))
    assert five_second_samples(held).tolist() == [1.0, 3.0]


def test_segments_are_cut_and_units_weigh_the_same():
    long = RateTrace("trace_1_http---a", tuple(np.arange(141) * 5.0), tuple(np.arange(1, 141) * 1e5))
    short = RateTrace("trace_2_http---a", tuple(np.arange(21) * 5.0), tuple(np.arange(1, 21) * 1e5))
    segments = segments_of([long, short])
    assert [(s.unit, len(s.mbps)) for s in segments] == [("1", 64), ("1", 64), ("1", 12), ("2", 20)]
    assert unit_weights(segments).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert abs(segments[0].z.mean()) < 1e-9 and segments[0].z.std() == pytest.approx(1)


def test_weighted_quantiles():
    assert weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), np.array([0.0, 0.5, 1.0])).tolist() == [1.0, 2.0, 3.0]


REAL = (
    RateTrace("steps", tuple(np.arange(101) * 5.0), tuple(np.tile([1e6, 2e6, 0.0, 4e6], 25))),
    RateTrace("brief", (0.0, 3.0), (1e6,)),
)


@pytest.mark.parametrize("real", [(), REAL], ids=["alone", "with real traces"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_seeded_wide_and_usable(family, real):
    rng = np.random.default_rng(1)
    drawn = [synthetic_trace(rng, real, family) for _ in range(200)]
    assert drawn[0] == synthetic_trace(np.random.default_rng(1), real, family)
    assert all(t.duration_s == 320 and len(t.rates_bps) == 64 and t.name == f"synthetic:{family}" for t in drawn)
    means = np.array([t.mean_rate_bps / 1e6 for t in drawn])
    assert 0.39 < means.min() < 0.6 and 5.5 < means.max() < 8.9 and 1.2 < np.median(means) < 2.6
    assert min(min(t.rates_bps) for t in drawn) >= FLOOR_MBPS * 1e6
    assert np.mean([np.std(t.rates_bps) > 0 for t in drawn]) > 0.5


def test_without_a_family_all_of_them_come():
    rng = np.random.default_rng(2)
    assert {synthetic_trace(rng, REAL).name for _ in range(100)} == {f"synthetic:{family}" for family in FAMILIES}


def test_other_lengths_and_steps():
    trace = synthetic_trace(np.random.default_rng(3), REAL, duration_s=60, step_s=1.0)
    assert trace.duration_s == 60 and len(trace.rates_bps) == 60


def test_step_rates_keep_bytes():
    trace = RateTrace("t", (0.0, 2.0, 7.0, 10.0), (1e6, 2e6, 3e6))
    assert step_rates(trace).tolist() == pytest.approx([(2 * 1 + 3 * 2) / 5 * 1e6, (2 * 2 + 3 * 3) / 5 * 1e6])
    assert step_rates(REAL[1]).tolist() == pytest.approx([1e6])
