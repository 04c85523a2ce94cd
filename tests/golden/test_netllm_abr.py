"""The adapter that ships: leak-free by its own account, small, and better than BBA by a margin on traces it never saw."""

import numpy as np
import pytest
import torch

from controllers.abr.bba import BBA
from controllers.api import AbrSession
from netllm.abr.suite.play import run_together
from netllm.adapter import SHIPPED, load_adapter, read_settings
from netllm.model import as_tensors
from netllm.tasks.abr import AbrReader, session_features, student_of
from players.media import load_manifest, synthetic_manifest
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.sim.abr import AbrSimulator, run_session
from testbed.stats import estimate
from traces.store import resolve
from traces.synthetic import synthetic_trace

torch.set_num_threads(1)
FOLDER = SHIPPED / "abr"


def compared(traces, session):
    """QoE per trace of the adapter and of BBA."""
    model = load_adapter(FOLDER)
    own = run_together(traces, session, student_of(model, model.task))
    bba = [summarise(run_session(trace, session, BBA(), 0), session.video) for trace in traces]
    return (np.array([each.qoe for each in summaries]) for summaries in (own, bba))


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".csv"}


def test_it_was_trained_on_train_splits_only():
    made = read_settings(FOLDER)["trained"]["experience"]
    assert [f"{each['name']}/{each['split']}" for each in made["sets"]] == made["settings"]["traces"] == ["fcc/train", "norway/train"]
    assert made["held_out"]


def test_its_card_states_results_with_intervals():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for wanted in ("sha256", "seed", "fcc/test", "norway/test", "±", "robust_mpc"):
        assert wanted in card


def test_it_beats_bba_on_synthetic_traces_of_another_seed():
    rng = np.random.default_rng(2024)
    own, bba = compared([synthetic_trace(rng) for _ in range(16)], AbrSession("golden", synthetic_manifest(), 48))
    assert own.mean() > bba.mean() + 0.05


def test_it_beats_bba_clearly_on_fcc_test():
    try:
        found = resolve("fcc/test")
    except UserError:
        found = None
    if found is None or found.source != "store":
        pytest.skip("fcc/test is not on this machine")
    own, bba = compared(found.traces[::4], AbrSession("golden", load_manifest("video1"), 48))
    assert estimate(own - bba).ci95[0] > 0
    assert own.mean() > bba.mean() + 0.15


def test_the_real_backbone_decides_from_its_cache_as_from_scratch():
    model = load_adapter(FOLDER, dtype="float32")
    sim = AbrSimulator(synthetic_trace(np.random.default_rng(1)), AbrSession("golden", synthetic_manifest(), 24))
    sim.step(0)
    reader, cached = AbrReader(model, model.task), []
    while not sim.done:
        cached.append(reader.decide([sim.observation])[0])
        sim.step(int(np.argmax(cached[-1])))
    features = session_features(model.task, sim.session, sim.history)
    with torch.inference_mode():
        full = model(as_tensors({name: values[None] for name, values in features.items()}))[0].numpy()
    np.testing.assert_allclose(np.exp(cached), np.exp(full), atol=1e-3)
