"""The pass of a few tokens: equal to transformers', whatever came before, and in 4 bits as near to float32 as bfloat16 is."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from netllm.adapter import SHIPPED, load_adapter
from netllm.backbone import load_backbone
from netllm.context import FEW_ROWS
from netllm.decoder import ARCHITECTURES, suits
from netllm.lora import LoraSettings
from netllm.past import new_past
from netllm.quantised import GROUP, VECTORISED, pack
from netllm.tasks.abr import AbrTask
from tests.unit.test_netllm_context import observed, read, recomputed
from tests.unit.tiny_models import MODELS, lively, on_levels, played, save_tiny, sixteen_levels

torch.set_num_threads(1)
needs_kernel = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in VECTORISED, reason="PyTorch has no quick kernel for 4 bits on this processor"
)
EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def published_in_4_bits(tmp_path_factory):
    return sixteen_levels(tmp_path_factory.mktemp("levels"))


def no_pass(model, monkeypatch):
    """Let transformers' pass fail."""

    def forbidden(*_, **__):
        raise AssertionError("transformers' pass was used")

    monkeypatch.setattr(model.backbone.model, "forward", forbidden)


@pytest.mark.parametrize("targets", [(), EVERYWHERE])
@pytest.mark.parametrize("task", [AbrTask(hidden=16), AbrTask(hidden=16, context_steps=5), AbrTask(hidden=16, context_steps=1)])
def test_decides_as_one_pass_over_the_whole_session(tiny, monkeypatch, targets, task):
    model, session = lively(tiny, task=task, lora=LoraSettings(rank=4, targets=targets), name=f"{len(targets)}-{task}"), played(1)
    expected = recomputed(model, session)
    model.merge()
    no_pass(model, monkeypatch)
    np.testing.assert_allclose(read(model, session), expected, atol=2e-4)


@pytest.mark.parametrize("reach", [0, 4])
def test_separate_tokens_look_back_as_far(tiny, reach):
    """Several tokens a step: the limit is one of steps, and more tokens than a few go through transformers' pass."""
    model, session = lively(tiny, task=AbrTask(hidden=16, tokens="separate", context_steps=reach), name=f"separate {reach}"), played(2)
    expected = recomputed(model, session)
    model.merge()
    np.testing.assert_allclose(read(model, session), expected, atol=2e-4)
    context = model.new_context()
    with torch.inference_mode():
        model.switch.activate()
        tokens = torch.randn(1, 3 * model.step_tokens, model.backbone.width)
        one_by_one = torch.cat([context.extend(token) for token in tokens.split(1, 1)], 1)
        np.testing.assert_allclose(one_by_one, model.new_context().extend(tokens), atol=2e-4)


@pytest.mark.parametrize("pattern", [(1, 1, 5, 1, 1, 9, 1), (7, 1, 1, 1), (3, 2, 1, 40, 1, 2)])
def test_both_passes_share_one_past(tiny, pattern):
    model = lively(tiny, name=f"shared {pattern}")
    model.merge()
    tokens = torch.randn(1, sum(pattern), model.backbone.width)
    with torch.inference_mode():
        model.switch.activate()
        context = model.new_context()
        parts = torch.cat([context.extend(part) for part in tokens.split(list(pattern), 1)], 1)
        np.testing.assert_allclose(parts, model.new_context().extend(tokens), atol=2e-4)


@pytest.mark.parametrize("targets", [(), EVERYWHERE])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_4_bits_are_as_near_to_float32_as_bfloat16(published_in_4_bits, monkeypatch, targets, dtype):
    lora, session = LoraSettings(rank=4, targets=targets), played(3)
    exact_model, coarse_model = (
        lively(published_in_4_bits, dtype=each, lora=lora, name=f"{each} {len(targets)} {dtype}") for each in ("float32", "bfloat16")
    )
    exact, coarse = (np.exp(recomputed(each, session)) for each in (exact_model, coarse_model))
    model = exact_model if dtype == "float32" else coarse_model
    model.merge()
    no_pass(model, monkeypatch)
    packed = np.exp(read(model, session))
    assert not np.array_equal(packed, coarse)
    assert exact.std(axis=1).max() > 0.05
    assert np.abs(packed - exact).mean() < max(1.5 * np.abs(coarse - exact).mean(), 0.005)
    assert np.mean(packed.argmax(-1) == exact.argmax(-1)) > 0.9


def test_exact_decisions_read_no_4_bits(published_in_4_bits, monkeypatch):
    model, session = lively(published_in_4_bits, name="by name"), played(3)
    wanted = recomputed(model, session)
    model.merge(exact=True)
    no_pass(model, monkeypatch)
    np.testing.assert_allclose(read(model, session), wanted, atol=2e-4)


@needs_kernel
def test_adapters_share_the_packed_weights(published_in_4_bits):
    models = [lively(published_in_4_bits, seed=seed, dtype="bfloat16", name=f"share {seed}") for seed in (1, 2)]
    for model in models:
        model.merge()
    one, other = (model._decoder._layers[0].gate_up._packed for model in models)
    assert one is other and one is not None
    session = played(4, 16)
    answers = [np.exp(read(model, session)) for model in models]
    assert np.abs(answers[0] - answers[1]).max() > 0.1
    np.testing.assert_array_equal(np.exp(read(models[0], session)), answers[0])


@pytest.mark.parametrize("count", [2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("reach", [0, 4])
def test_a_batch_decides_as_each_session_alone(tiny, monkeypatch, count, reach):
    """More sessions than a few go through transformers' pass."""
    model = lively(tiny, task=AbrTask(hidden=16, context_steps=reach), name=f"batch {count} {reach}")
    sessions = [played(seed, 20) for seed in range(count)]
    expected = recomputed(model, *sessions)
    model.merge()
    if count <= FEW_ROWS:
        no_pass(model, monkeypatch)
    np.testing.assert_allclose(read(model, *sessions), expected, atol=2e-4)


@pytest.mark.parametrize("before", [1, 5])
def test_sessions_that_end_are_forgotten(tiny, before):
    model = lively(tiny, name=f"kept {before}")
    model.merge()
    tokens = torch.randn(4, before + 3, model.backbone.width)
    with torch.inference_mode():
        model.switch.activate()
        context, alone = model.new_context(), model.new_context()
        context.extend(tokens[:, :before])
        context.keep(torch.tensor([1, 3]))
        for place in range(before, before + 3):
            found = context.extend(tokens[[1, 3], place : place + 1])
        np.testing.assert_allclose(found[1], alone.extend(tokens[3:])[0, -1:], atol=2e-4)


def test_other_matrices_are_computed_with(tiny):
    """What was merged is no more when others are loaded."""
    model, session = lively(tiny, name="loaded"), played(9, 12)
    model.merge()
    before = read(model, session)
    model.switch.load({name: torch.zeros_like(matrix) for name, matrix in model.switch.state().items()})
    np.testing.assert_allclose(read(model, session), recomputed(model, session), atol=2e-4)
    assert np.abs(read(model, session) - before).max() > 0.05
    model.merge()
    np.testing.assert_allclose(read(model, session), recomputed(model, session), atol=2e-4)


@needs_kernel
def test_the_embedded_backbone_was_published_in_4_bits():
    """Its matrices have 16 levels: as the kernel multiplies them, in bfloat16 steps, they are off by 0.4 to 0.5 % of a weight."""
    layers = load_backbone().model.layers
    for layer in (layers[0], layers[15], layers[29]):
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            weight = getattr(linear, "base_layer", linear).weight
            packed = pack(weight)
            assert packed is not None
            found = packed(torch.eye(weight.shape[1], dtype=torch.bfloat16)).T.float()
            assert (found - weight.float()).pow(2).mean().sqrt() < 0.005 * weight.float().pow(2).mean().sqrt()


def test_the_adapter_that_ships_decides_as_in_float32():
    model, exact = (load_adapter(SHIPPED / "abr", dtype=dtype) for dtype in ("bfloat16", "float32"))
    for seed in (20, 21):
        session = played(seed)
        wanted, found = np.exp(recomputed(exact, session)), np.exp(read(model, session))
        assert np.abs(found - wanted).mean() < 0.005
        assert np.mean(found.argmax(-1) == wanted.argmax(-1)) >= 0.97


@pytest.mark.parametrize("kind", MODELS)
def test_other_architectures_decide_as_before(tmp_path, kind):
    model, session = lively(save_tiny(tmp_path, kind), name="other"), played(7, 16)
    expected = recomputed(model, session)
    model.merge()
    assert suits(model.backbone.model) == (model._decoder is not None) == (kind in ARCHITECTURES)
    np.testing.assert_allclose(read(model, session), expected, atol=2e-4)


@pytest.mark.parametrize("more", [{"mlp_bias": True}, {"attention_bias": True}, {"sliding_window": 8}, {"hidden_act": "gelu"}])
def test_what_llama_does_not_have_goes_through_transformers(tiny, monkeypatch, more):
    model = lively(tiny, name=f"more {more}").backbone.model
    assert suits(model)
    for name, value in more.items():
        monkeypatch.setattr(model.config, name, value, raising=False)
    assert not suits(model)


def test_an_interrupted_decision_is_made_again(tiny, monkeypatch):
    model, session = lively(tiny, name="interrupted"), played(8, 6)
    model.merge()
    expected = read(model, session)[0]
    from netllm.tasks.abr import AbrReader

    reader = AbrReader(model, model.task)
    np.testing.assert_allclose(reader.decide([observed(*session, 1)])[0], expected[0], atol=2e-4)
    layer = model._decoder._layers[1]

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(layer, "down", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.decide([observed(*session, 2)])
    monkeypatch.undo()
    np.testing.assert_allclose(reader.decide([observed(*session, 3)])[0], expected[2], atol=2e-4)


@needs_kernel
@pytest.mark.parametrize("shape", [(16, 32), (64, 96), (576, 1536)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_weights_multiply_as_they_are(shape, rows, dtype):
    torch.manual_seed(1)
    weight = on_levels(shape, 0.3).bfloat16().to(dtype)
    x = torch.randn(rows, shape[1]).to(dtype)
    exact = x.float() @ weight.float().T
    packed = pack(weight)
    assert packed is not None
    assert packed(x).dtype == dtype
    assert (packed(x).float() - exact).pow(2).mean().sqrt() < 0.006 * exact.pow(2).mean().sqrt()


@needs_kernel
def test_a_constant_group_is_packed():
    weight = torch.full((16, GROUP), 0.5, dtype=torch.bfloat16)
    weight[3] = 0
    packed = pack(weight)
    assert packed is not None
    np.testing.assert_allclose(packed(torch.ones(1, GROUP, dtype=torch.bfloat16)).float()[0], weight.float().sum(1), rtol=0.01)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(64, 64).bfloat16(),
        torch.randn(64, 64),
        on_levels((24, 64), 0.3).bfloat16(),
        on_levels((64, 64), 0.3).bfloat16()[:, :48],
    ],
    ids=["more levels", "more levels in float32", "rows", "columns"],
)
def test_other_weights_stay_as_they_are(weight):
    assert pack(weight) is None


@needs_kernel
def test_a_processor_without_the_kernel_keeps_its_weights(monkeypatch):
    weight = on_levels((64, 64), 0.3).bfloat16()
    assert pack(weight) is not None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert pack(weight) is None


def test_the_past_is_what_transformers_would_hold():
    torch.manual_seed(2)
    ours, theirs = new_past(), DynamicCache()
    batch = 3
    for new in (2, 1, 1, 9, 1, 30, 1):
        for layer in range(2):
            states = torch.randn(batch, 2, new, 8), torch.randn(batch, 2, new, 8)
            for mine, wanted in zip(ours.update(*states, layer), theirs.update(*states, layer), strict=True):
                torch.testing.assert_close(mine, wanted, rtol=0, atol=0)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if new == 9:
            batch = 2
            for each in (ours, theirs):
                each.batch_select_indices(torch.tensor([2, 0]))
