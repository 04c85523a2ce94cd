"""What an adapter may be trained without: a token per modality or one, a shorter context, no return, no LoRA, no pre-training."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from controllers.abr.netllm import NetLLM
from netllm.adapter import load_adapter, new_model, read_settings, save_adapter
from netllm.backbone import load_backbone
from netllm.lora import LoraSettings
from netllm.model import as_tensors
from netllm.tasks.abr import AbrReader, AbrTask, session_features
from testbed.errors import UserError
from testbed.sim.abr import run_session
from tests.unit.test_netllm_context import observed, read, recomputed
from tests.unit.tiny_models import MODELS, a_session, lively, played, save_tiny
from traces.synthetic import synthetic_trace

torch.set_num_threads(1)
LAYERS = 2
"""Of the tiny models."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llm"))


def small(**settings):
    return AbrTask(hidden=16, **settings)


@pytest.mark.parametrize("tokens, context_steps, return_token", list(product(["fused", "separate"], [0, 1, 5], [True, False])))
def test_one_pass_and_step_by_step_decide_the_same(folder, tokens, context_steps, return_token):
    model = lively(folder, task=small(tokens=tokens, context_steps=context_steps, return_token=return_token), name="any")
    session = played(1, chunks=24)
    full = recomputed(model, session)
    assert full.std(axis=1).max() > 0.1
    np.testing.assert_allclose(read(model, session), full, atol=2e-4)
    late = AbrReader(model, model.task).decide([observed(*session, 20)])  # all that was decided elsewhere is read at once
    np.testing.assert_allclose(late[0], full[0, 19], atol=2e-4)
    model.switch.remove()


@pytest.mark.parametrize("kind", MODELS)
def test_a_short_context_is_the_same_in_every_architecture(tmp_path, kind):
    model = lively(save_tiny(tmp_path, kind), task=small(context_steps=3, tokens="separate"))
    np.testing.assert_allclose(read(model, played(2, 16)), recomputed(model, played(2, 16)), atol=2e-4)


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@pytest.mark.parametrize("context_steps", [1, 2, 4])
def test_a_step_beyond_the_window_has_no_influence(folder, tokens, context_steps):
    model = lively(folder, task=small(tokens=tokens, context_steps=context_steps), name="window")
    features = {name: values[None].copy() for name, values in session_features(model.task, *played(3, 24)).items()}
    changed = {name: values.copy() for name, values in features.items()}
    changed["scalars"][:, 5] += 1.0
    with torch.inference_mode():
        moved = (model(as_tensors(features)) - model(as_tensors(changed))).abs().amax(-1)[0].numpy()  # (T,)
    reach = LAYERS * (context_steps - 1)
    assert not moved[:5].any() and not moved[5 + reach + 1 :].any()
    assert (moved[5 : 5 + reach + 1] > 1e-5).all()
    model.switch.remove()


def test_without_a_window_every_later_decision_is_influenced(folder):
    model = lively(folder, name="whole")
    features = {name: values[None].copy() for name, values in session_features(model.task, *played(3, 24)).items()}
    changed = {name: values.copy() for name, values in features.items()}
    changed["scalars"][:, 5] += 1.0
    with torch.inference_mode():
        moved = (model(as_tensors(features)) - model(as_tensors(changed))).abs().amax(-1)[0]
    assert not moved[:5].any() and (moved[5:] > 0).all()
    model.switch.remove()


@pytest.mark.parametrize("tokens, count", [("fused", 1), ("separate", 5)])
def test_a_step_takes_as_many_tokens_as_it_has_groups(folder, tokens, count):
    assert len(small(tokens=tokens).groups) == count
    assert len(small(tokens=tokens, return_token=False).groups) == max(count - 1, 1)


def test_the_return_is_told_or_not(folder):
    session = played(4, 16)
    for told in (True, False):
        model = lively(folder, task=small(return_token=told), name=f"return{told}")
        features = {name: values[None] for name, values in session_features(model.task, *session).items()}
        with torch.inference_mode():
            plain, other = (model(as_tensors(each)) for each in (features, features | {"return": features["return"] + 1}))
        assert torch.equal(plain, other) != told
        model.switch.remove()


def test_without_lora_the_backbone_computes_as_it_came(folder, tmp_path):
    backbone = load_backbone(str(folder), "float32")
    with_lora = lively(folder, name="beside")
    model = new_model(str(folder), "float32", small(), LoraSettings(rank=0), "none")
    torch.nn.init.normal_(model.head.linear.weight, std=0.5)
    assert list(model.switch.parameters()) == []
    x = torch.randn(1, 5, backbone.width)
    with torch.inference_mode():
        with_lora.switch.activate()
        other = backbone.model(inputs_embeds=x).last_hidden_state
        model.switch.activate()
        plain = backbone.model(inputs_embeds=x).last_hidden_state
        with_lora.switch.remove()
        torch.testing.assert_close(backbone.model(inputs_embeds=x).last_hidden_state, plain)
    assert (plain - other).abs().max() > 0.1
    np.testing.assert_allclose(read(model, played(5)), recomputed(model, played(5)), atol=2e-4)
    save_adapter(model, tmp_path / "adapter", {})
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["modules.safetensors", "netllm.json"]
    loaded = load_adapter(tmp_path / "adapter", str(folder), "float32")
    np.testing.assert_allclose(recomputed(loaded, played(5)), recomputed(model, played(5)), atol=1e-6)


def test_a_random_backbone_has_the_trained_ones_sizes_and_scale_and_is_always_the_same(folder):
    trained, drawn = load_backbone(str(folder), "float32"), load_backbone(f"{folder}:random", "float32")
    again = load_backbone(f"{folder}:random", "bfloat16")
    assert (drawn.width, drawn.max_tokens, drawn.embedding_rms) == (trained.width, trained.max_tokens, trained.embedding_rms)
    theirs = {name: parameter for name, parameter in trained.model.named_parameters() if parameter.dim() > 1 and "layers" in name}
    ours, coarse = dict(drawn.model.named_parameters()), dict(again.model.named_parameters())
    compared = [name for name in theirs if name in ours]
    assert len(compared) >= 2 * 5
    for name in compared:
        rms, wanted = (each[name].pow(2).mean().sqrt().item() for each in (ours, theirs))
        assert rms == pytest.approx(wanted, rel=0.15), name
        assert np.corrcoef(ours[name].flatten(), theirs[name].flatten())[0, 1] < 0.2, name
        torch.testing.assert_close(coarse[name].float(), ours[name], rtol=0.02, atol=1e-3)


def test_all_options_are_kept_in_the_adapter_and_the_policy_uses_them(folder, tmp_path):
    task = small(tokens="separate", context_steps=4, return_token=False)
    model = lively(f"{folder}:random", task=task, name="kept")
    save_adapter(model, tmp_path / "adapter", {})
    facts = read_settings(tmp_path / "adapter")
    assert facts["settings"] | {"tokens": "separate", "context_steps": 4, "return_token": False} == facts["settings"]
    assert facts["backbone"]["name"].endswith(":random") and facts["backbone"]["seed"]
    assert load_adapter(tmp_path / "adapter", dtype="float32").task == task
    session, trace = a_session(12), synthetic_trace(np.random.default_rng(1))
    policy = NetLLM(adapter=str(tmp_path / "adapter"), dtype="float32")
    levels = [chunk.level for chunk in run_session(trace, session, policy, 0)]
    history = run_session(trace, session, NetLLM(adapter=str(tmp_path / "adapter"), dtype="float32"), 0)
    assert [int(each) for each in recomputed(model, (session, history))[0].argmax(-1)] == levels[1:]


def test_a_random_backbone_that_is_gone_is_named(folder, tmp_path):
    model = lively(f"{folder}:random", name="gone")
    save_adapter(model, tmp_path / "adapter", {})
    text = (tmp_path / "adapter" / "netllm.json").read_text().replace(str(folder), "/no/such")
    (tmp_path / "adapter" / "netllm.json").write_text(text)
    with pytest.raises(UserError, match="its language model /no/such:random is not here"):
        load_adapter(tmp_path / "adapter")


def test_a_task_keeps_its_settings_apart():
    assert replace(AbrTask(), tokens="separate").groups != AbrTask().groups
