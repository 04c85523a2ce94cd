"""Cached keys and values: decisions equal those of full recomputation, whoever else is decided for, and cost the same at every chunk."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from controllers.api import AbrObservation
from netllm.model import as_tensors
from netllm.tasks.abr import AbrReader, session_features
from tests.unit.tiny_models import MODELS, lively, played, save_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return lively(save_tiny(tmp_path_factory.mktemp(request.param), request.param), name=request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return lively(save_tiny(tmp_path_factory.mktemp("llama")), name="llama")


def observed(session, history, chunk):
    before = history[chunk - 1]
    return AbrObservation(session, history[:chunk], before.buffer_s - before.waited_s)


def recomputed(model, *sessions):
    """Log-probabilities (B, T, levels) from one pass over the whole sessions."""
    parts = [session_features(model.task, session, history) for session, history in sessions]
    with torch.inference_mode():
        return model(as_tensors({name: np.stack([part[name] for part in parts]) for name in parts[0]})).numpy()


def read(model, *sessions):
    """The same, decision by decision with one cached context for all."""
    reader = AbrReader(model, model.task)
    rows = [reader.decide([observed(*each, chunk) for each in sessions]) for chunk in range(1, len(sessions[0][1]))]
    return np.stack(rows, axis=1)


def test_cached_decisions_equal_full_recomputation_over_a_whole_session(model):
    session = played(1)
    cached, full = read(model, session), recomputed(model, session)
    assert full.shape == (1, 47, 6)
    assert full.std(axis=1).max() > 0.1, "the model answers the same at every step: the comparison would prove nothing"
    np.testing.assert_allclose(cached, full, atol=2e-4)


@pytest.mark.parametrize("count", [2, 5])
def test_a_batch_decides_as_each_session_alone(llama, count):
    sessions = [played(seed) for seed in range(count)]
    together = read(llama, *sessions)
    np.testing.assert_allclose(together, recomputed(llama, *sessions), atol=2e-4)
    for row, session in zip(together, sessions, strict=True):
        np.testing.assert_allclose(row, read(llama, session)[0], atol=2e-4)


def test_padding_at_the_end_changes_no_decision(llama):
    from netllm.abr.experience import Episode
    from netllm.abr.lessons import prepare, stack

    sessions = [played(1, chunks=48), played(2, chunks=20), played(3, chunks=2)]
    episodes = [Episode(s, h, np.full((len(h) - 1, 6), 1 / 6), "x", "x", "x", 0.0) for s, h in sessions]
    batch = stack(prepare(llama.task, episodes))
    with torch.inference_mode():
        rows = llama(as_tensors(batch)).numpy()
    for row, session, weight in zip(rows, sessions, batch["weight"], strict=True):
        length = len(session[1]) - 1
        assert weight.sum() == length
        np.testing.assert_allclose(row[:length], recomputed(llama, session)[0], atol=2e-4)


@pytest.mark.parametrize("restart", [2, 17, 47])
def test_a_context_rebuilt_from_the_history_decides_the_same(model, restart):
    session, history = played(4)
    fresh = AbrReader(model, model.task).decide([observed(session, history, restart)])
    np.testing.assert_allclose(fresh[0], recomputed(model, (session, history))[0, restart - 1], atol=2e-4)


def test_chunks_decided_elsewhere_are_read_before_the_next_decision(llama):
    session, history = played(5)
    expected = recomputed(llama, (session, history))[0]
    reader = AbrReader(llama, llama.task)
    for chunk in (1, 2, 6, 7, 7, 30, 47):  # gaps are local fallbacks; the second 7 is a question asked twice
        np.testing.assert_allclose(reader.decide([observed(session, history, chunk)])[0], expected[chunk - 1], atol=2e-4)


def test_a_different_history_is_noticed(llama):
    one, other = played(6), played(7)
    reader = AbrReader(llama, llama.task)
    reader.decide([observed(*one, 20)])
    np.testing.assert_allclose(reader.decide([observed(*other, 21)])[0], recomputed(llama, other)[0, 20], atol=2e-4)


def test_interleaved_sessions_never_mix(llama):
    sessions = [played(seed) for seed in (8, 9)]
    readers = [AbrReader(llama, llama.task) for _ in sessions]
    expected = [recomputed(llama, each)[0] for each in sessions]
    for chunk in range(1, 30):
        for reader, session, rows in zip(readers, sessions, expected, strict=True):
            np.testing.assert_allclose(reader.decide([observed(*session, chunk)])[0], rows[chunk - 1], atol=2e-4)


def test_a_decision_feeds_only_its_new_tokens(llama, monkeypatch):
    session, history = played(10)
    fed = []
    forward = llama.backbone.model.forward

    def counting(*args, **kwargs):
        fed.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama.backbone.model, "forward", counting)
    read(llama, (session, history))
    assert fed == [llama.step_tokens] * 47
    assert llama.step_tokens == 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-4), ("bfloat16", 0.15)])
def test_merged_matrices_give_the_same_probabilities(tmp_path, kind, dtype, tolerance):
    model = lively(save_tiny(tmp_path, kind), dtype=dtype, name="merged")
    session = played(13, 24)
    state = {name: matrix.clone() for name, matrix in model.switch.state().items()}
    apart = recomputed(model, session), read(model, session)
    model.switch.merge()
    together = recomputed(model, session), read(model, session)
    for before, after in zip(apart, together, strict=True):
        np.testing.assert_allclose(np.exp(after), np.exp(before), atol=tolerance)
        assert np.abs(np.exp(after) - np.exp(before)).mean() < 0.1 * tolerance
    assert all(torch.equal(matrix, state[name]) for name, matrix in model.switch.state().items())
    model.switch.load({name: torch.zeros_like(matrix) for name, matrix in state.items()})
    assert np.abs(recomputed(model, session) - together[0]).max() > 0.05, "it still computes with what was merged"


def test_one_merges_and_the_other_learns_on(tmp_path):
    folder = save_tiny(tmp_path)
    decides, learns = lively(folder, seed=1, name="decides"), lively(folder, seed=2, name="learns")
    session = played(14, 16)
    features = as_tensors({name: values[None] for name, values in session_features(learns.task, *session).items()})
    before = recomputed(learns, session)
    decides.switch.merge()
    np.testing.assert_array_equal(recomputed(learns, session), before)
    learns.train()(features)[..., 0].sum().backward()
    assert all(matrix.grad is not None and matrix.grad.abs().max() > 0 for matrix in learns.switch.parameters())


def test_what_is_merged_still_learns(tmp_path):
    """A merged weight has no gradient: who learns computes with the matrices."""
    model, session = lively(save_tiny(tmp_path), name="learns merged"), played(17, 8)
    model.switch.merge()
    features = as_tensors({name: values[None] for name, values in session_features(model.task, *session).items()})
    model.train()(features)[..., 0].sum().backward()
    assert all(matrix.grad is not None and matrix.grad.abs().max() > 0 for matrix in model.switch.parameters())


def test_a_reading_that_was_cut_short_is_made_again(llama):
    session = played(18, 6)
    expected, reader = read(llama, session)[0], AbrReader(llama, llama.task)
    np.testing.assert_allclose(reader.decide([observed(*session, 1)])[0], expected[0], atol=2e-4)

    def interrupted(*_):
        raise KeyboardInterrupt

    hook = llama.backbone.model.layers[1].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.decide([observed(*session, 2)])
    hook.remove()
    np.testing.assert_allclose(reader.decide([observed(*session, 3)])[0], expected[2], atol=2e-4)


def test_a_single_row_leaves_the_process_its_kernels(llama):
    used = torch.backends.mkldnn.enabled
    read(llama, played(15, 4))
    assert torch.backends.mkldnn.enabled == used
    with pytest.raises(RuntimeError), torch.inference_mode():
        llama.new_context().extend(torch.zeros(1, 1, llama.backbone.width + 1))
    assert torch.backends.mkldnn.enabled == used


def test_two_adapters_on_one_backbone_are_switched_per_request(tmp_path):
    folder = save_tiny(tmp_path)
    one, two = lively(folder, seed=1, name="one"), lively(folder, seed=2, name="two")
    assert one.backbone is two.backbone
    session = played(11)
    expected = [recomputed(each, session) for each in (one, two)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    readers = [AbrReader(each, each.task) for each in (one, two)]
    for chunk in range(1, 20):
        for reader, rows in zip(readers, expected, strict=True):
            np.testing.assert_allclose(reader.decide([observed(*session, chunk)]), rows[:, chunk - 1], atol=2e-4)
    two.switch.remove()
    np.testing.assert_allclose(recomputed(one, session), expected[0], atol=1e-6)


def test_two_threads_with_two_adapters_never_disturb_each_other(tmp_path):
    folder = save_tiny(tmp_path)
    models = [lively(folder, seed=seed, name=f"thread{seed}") for seed in (1, 2)]
    session = played(11)
    expected = [recomputed(each, session) for each in models]
    with ThreadPoolExecutor(2) as pool:
        for found, rows in zip(pool.map(lambda model: [read(model, session) for _ in range(3)], models), expected, strict=True):
            for each in found:
                np.testing.assert_allclose(each, rows, atol=2e-4)


def test_bfloat16_decides_nearly_as_float32(tmp_path):
    folder = save_tiny(tmp_path)
    session = played(12)
    exact, coarse = (recomputed(lively(folder, dtype=dtype, name=dtype), session) for dtype in ("float32", "bfloat16"))
    assert np.abs(np.exp(exact) - np.exp(coarse)).mean() < 0.02
    assert np.mean(exact.argmax(-1) == coarse.argmax(-1)) > 0.9


def test_a_context_longer_than_the_positions_known_is_refused(llama):
    from netllm.context import Context

    context = Context(llama.backbone)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"513 tokens are more than the 512"):
        context.extend(torch.zeros(1, 513, llama.backbone.width))
