"""The backbone: any causal model from a folder, sizes from its configuration, and one clear sentence when it can't be had."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from netllm import backbone as module
from netllm.adapter import load_adapter, save_adapter
from netllm.attention import NAME
from netllm.backbone import EMBEDDED, find_gguf, load_backbone, prepare_embedded
from netllm.context import band
from netllm.lora import LoraSettings, Switch, target_modules
from testbed.errors import UserError
from testbed.host import bf16_units
from tests.unit.tiny_models import MODELS, ROPE, lively, save_tiny

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "kind, width, targets", [("llama", 32, ("q_proj", "v_proj")), ("gpt2", 24, ("c_attn",)), ("opt", 16, ("q_proj", "v_proj"))]
)
def test_sizes_and_adapted_layers_come_from_the_model(tmp_path, kind, width, targets):
    backbone = load_backbone(str(save_tiny(tmp_path, kind)), "float32")
    assert (backbone.width, backbone.max_tokens) == (width, 512)
    assert backbone.embedding_rms == pytest.approx(0.2, rel=0.1)
    assert target_modules(backbone) == targets
    with torch.inference_mode():
        assert backbone.model(inputs_embeds=torch.zeros(2, 3, width)).last_hidden_state.shape == (2, 3, width)


def test_layers_are_discovered_where_peft_has_no_table(tmp_path, monkeypatch):
    backbone = load_backbone(str(save_tiny(tmp_path)), "float32")
    monkeypatch.setattr("netllm.lora.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    assert target_modules(backbone) == ("k_proj", "o_proj", "q_proj", "v_proj")
    switch = Switch(backbone, LoraSettings(rank=2), "discovered")
    assert target_modules(backbone) == ("k_proj", "o_proj", "q_proj", "v_proj"), "an adapter's own layers were taken for the model's"
    switch.remove()


def test_the_backbone_is_loaded_once_and_frozen(tmp_path):
    folder = str(save_tiny(tmp_path))
    backbone = load_backbone(folder, "float32")
    assert load_backbone(folder, "float32") is backbone
    assert load_backbone(folder, "bfloat16").model.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training


SPECIAL = {
    "gemma2": lambda: Gemma2Config(**ROPE, head_dim=16, attn_logit_softcapping=1.0, max_position_embeddings=512, initializer_range=0.2),
    "gpt_oss": lambda: GptOssConfig(
        **ROPE, head_dim=8, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=512, initializer_range=0.2
    ),
}
"""Soft caps on scores, and sinks: what plain attention leaves out."""


@pytest.mark.parametrize("reach", [0, 3])
@pytest.mark.parametrize("kind", [*MODELS, *SPECIAL])
def test_attention_is_what_the_model_came_with(tmp_path, kind, reach):
    if kind in SPECIAL:
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(SPECIAL[kind]()).save_pretrained(tmp_path)
    else:
        save_tiny(tmp_path, kind)
    ours = load_backbone(str(tmp_path), "float32")
    assert (ours.model.config._attn_implementation == NAME) == (kind in MODELS)
    theirs = AutoModel.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = {"inputs_embeds": torch.randn(3, 20, ours.width), "use_cache": False, **band(20, 20, reach, 1, torch.float32)}
    with torch.inference_mode():
        found, wanted = (model(**inputs).last_hidden_state for model in (ours.model, theirs))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_every_tiny_architecture_is_tested_somewhere():
    assert set(MODELS) == {"llama", "mistral", "gpt2", "opt"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "absent", "no such folder"),
        (lambda folder: folder, "no config.json"),
        (lambda folder: _config_only(folder), "can't be loaded"),
        (lambda folder: _truncated(folder), "can't be loaded"),
        (lambda folder: _encoder_decoder(folder), "encoder-decoder"),
        (lambda folder: _pickled(folder), "can't be loaded"),
    ],
)
def test_a_bad_model_is_one_sentence(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(str(make(tmp_path)), "float32")
    assert "\n" not in str(caught.value)
    assert "wanted" in str(caught.value)


def _config_only(folder):
    LlamaConfig(**ROPE).save_pretrained(folder)
    return folder


def _truncated(folder):
    weights = save_tiny(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return folder


def _encoder_decoder(folder):
    T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)).save_pretrained(folder)
    return folder


def _pickled(folder):
    model = LlamaModel(LlamaConfig(**ROPE))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_who_names_no_dtype_gets_the_quicker_one(tmp_path):
    folder = save_tiny(tmp_path)
    model = lively(folder, name="saved")
    save_adapter(model, tmp_path / "adapter", {})
    wanted = torch.bfloat16 if bf16_units() else torch.float32
    assert load_adapter(tmp_path / "adapter") is not load_adapter(tmp_path / "adapter", dtype="float32"), "one of them is exact"
    assert load_adapter(tmp_path / "adapter").backbone.dtype == load_backbone(str(folder)).dtype == wanted


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dtype 'int3' is unknown, wanted one of bfloat16, float32"):
        load_backbone(str(tmp_path), "int3")


def test_a_model_that_needs_a_download_is_refused_offline():
    with pytest.raises(UserError, match="wanted smollm2-135m or a folder"):
        load_backbone("someone/some-model", "float32")


@pytest.fixture
def fake_gguf(tmp_path, monkeypatch):
    """A packaged model that converts in no time."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 100)
    monkeypatch.setattr(module, "find_gguf", lambda: gguf)
    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module.AutoModel, "from_pretrained", lambda *args, **kwargs: LlamaModel(LlamaConfig(**ROPE)))
    return gguf


def test_the_embedded_model_is_converted_once(fake_gguf, monkeypatch):
    folder = prepare_embedded()
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == ROPE["hidden_size"]
    monkeypatch.setattr(module, "_convert", lambda *args: pytest.fail("converted twice"))
    assert prepare_embedded() == folder
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}, "a user's controller must read what root converted"
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(fake_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "save_file", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        prepare_embedded()
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_cache_is_one_sentence(fake_gguf, monkeypatch):
    monkeypatch.setattr(
        module.tempfile, "TemporaryDirectory", lambda **kwargs: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match=r"can't be written \(Permission denied\), wanted a writable \$NETLLM_CACHE"):
        prepare_embedded()


def test_another_version_of_the_package_is_converted_anew(fake_gguf):
    first = prepare_embedded()
    fake_gguf.write_bytes(b"GGUF" * 101)
    assert prepare_embedded() != first


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(module, "EMBEDDED_PACKAGE", "no-such-package")
    with pytest.raises(UserError, match=r"package no-such-package is not installed, wanted it for the language model smollm2-135m"):
        find_gguf()


def test_the_embedded_model_is_what_we_think():
    backbone = load_backbone(EMBEDDED)
    config = backbone.model.config
    assert (config.model_type, backbone.width, config.num_hidden_layers, backbone.max_tokens) == ("llama", 576, 30, 8192)
    assert backbone.embedding_rms == pytest.approx(0.1356, abs=1e-3)
