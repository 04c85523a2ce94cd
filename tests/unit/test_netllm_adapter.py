"""Adapters on disk: PEFT's format, equal decisions after loading, no pickle, and one sentence for whatever is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from netllm import adapter
from netllm.adapter import load_adapter, new_model, save_adapter
from netllm.lora import LoraSettings
from netllm.model import as_tensors
from netllm.tasks.abr import AbrTask, session_features
from testbed.errors import UserError
from tests.unit.tiny_models import MODELS, a_session, lively, played, save_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of the language model, folder of an adapter for it, the decisions it makes)."""
    llm, folder = save_tiny(tmp_path_factory.mktemp("llm")), tmp_path_factory.mktemp("adapter")
    model = lively(llm, name="original")
    save_adapter(model, folder, {"trained": {"seed": 1}})
    return llm, folder, decisions(model)


def decisions(model):
    features = session_features(model.task, *played(1))
    with torch.inference_mode():
        return model(as_tensors({name: values[None] for name, values in features.items()})).numpy()


def test_a_loaded_adapter_decides_as_the_saved_one(saved):
    llm, folder, expected = saved
    loaded = load_adapter(folder, str(llm), "float32")
    np.testing.assert_allclose(decisions(loaded), expected, atol=5e-5)  # merged matrices are rounded
    assert load_adapter(folder, str(llm), "float32") is loaded, "all sessions of a process share one model"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_an_adapter_that_was_changed_meanwhile_is_loaded_anew_and_the_earlier_one_leaves_the_backbone(saved, tmp_path):
    """As in a notebook: adapt, test, adapt again into the same folder, test."""
    llm, folder = str(saved[0]), shutil.copytree(saved[1], tmp_path / "adapter")
    earlier = [load_adapter(folder, llm, "float32"), load_adapter(folder, llm)]  # one for each type
    names = {model.switch.name for model in earlier}
    changed = lively(saved[0], seed=7, name="changed meanwhile")
    save_adapter(changed, folder, {})
    found = load_adapter(folder, llm, "float32")
    assert found is not earlier[0] and load_adapter(folder, llm, "float32") is found
    np.testing.assert_allclose(decisions(found), decisions(changed), atol=5e-5)
    assert not any(names & model.backbone.active.known for model in earlier)
    edit("netllm.json", lambda c: c["settings"].update(target_qoe=3.0))(folder)  # settings alone, as scripts/adapt cjs-trust does
    assert load_adapter(folder, llm, "float32").task.target_qoe == 3.0
    changed.switch.remove()


def test_only_safetensors_and_text_are_written(saved):
    names = {path.name for path in saved[1].iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "modules.safetensors", "netllm.json"} <= names
    assert {name.rpartition(".")[2] for name in names} <= {"json", "safetensors", "md"}


@pytest.mark.parametrize("kind", MODELS)
def test_peft_itself_reads_the_lora_part(tmp_path, kind):
    llm, folder = save_tiny(tmp_path / "llm", kind), tmp_path / "adapter"
    save_adapter(lively(llm, name="for peft"), folder, {"trained": {"seed": 1}})
    ours = load_adapter(folder, str(llm), "float32")
    base = AutoModel.from_pretrained(llm, dtype=torch.float32)
    x = torch.randn(1, 7, ours.backbone.width)
    with torch.inference_mode():
        plain = base(inputs_embeds=x).last_hidden_state
        theirs = PeftModel.from_pretrained(base, folder)(inputs_embeds=x).last_hidden_state
        ours.switch.activate()
        result = ours.backbone.model(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(result, theirs, atol=1e-5, rtol=0)
    assert (plain - theirs).abs().max() > 0.1


def test_half_precision_on_disk_changes_little(saved, tmp_path):
    llm = saved[0]
    model = lively(llm, name="halved")
    expected = decisions(model)
    save_adapter(model, tmp_path, {}, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert np.abs(np.exp(decisions(load_adapter(tmp_path, str(llm), "float32"))) - np.exp(expected)).max() < 0.1


def test_a_backbone_of_another_width_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match=r"is for a language model of width 32, but .* has 24"):
        load_adapter(saved[1], str(save_tiny(tmp_path, "gpt2")), "float32")


def edit(name, change):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


DAMAGES = {
    "no settings": (lambda folder: (folder / "netllm.json").unlink(), r"netllm.json: can't be read"),
    "not json": (lambda folder: (folder / "netllm.json").write_text("{"), r"netllm.json: can't be read"),
    "future format": (edit("netllm.json", lambda c: c.update(format=99)), r"has format 99 .* wanted format 2"),
    "unknown task": (edit("netllm.json", lambda c: c.update(task="chess")), r"task 'chess', wanted .* abr"),
    "unknown setting": (edit("netllm.json", lambda c: c["settings"].update(colour=3)), r"settings don't fit task abr"),
    "other sizes": (edit("netllm.json", lambda c: c["settings"].update(hidden=8)), r"modules.safetensors: can't be used"),
    "no lora settings": (lambda folder: (folder / "adapter_config.json").unlink(), r"adapter_config.json: can't be read"),
    "other rank": (edit("adapter_config.json", lambda c: c.update(r=2)), r"adapter_model.safetensors: can't be used .*wanted \(2, 32\)"),
    "truncated": (lambda folder: (folder / "modules.safetensors").write_bytes(b"\0" * 40), r"modules.safetensors: can't be used"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"adapter_model.safetensors: can't be used"),
    "another's head": (lambda folder: flip_last_bit(folder / "modules.safetensors"), r"modules.safetensors: can't be used \(its sha256 is"),
    "another's matrices": (lambda folder: flip_last_bit(folder / "adapter_model.safetensors"), r"adapter_model.safetensors: .*its sha256"),
    "pickled weights": (lambda folder: pickled(folder), r"adapter_model.safetensors: can't be used"),
}


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def pickled(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_adapter_is_one_sentence(saved, tmp_path, damage, message):
    llm, folder, expected = saved
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(broken)
    with pytest.raises(UserError, match=message) as caught:
        load_adapter(broken, str(llm), "float32")
    assert "\n" not in str(caught.value)
    np.testing.assert_allclose(decisions(load_adapter(folder, str(llm), "float32")), expected, atol=5e-5)  # the backbone was left usable


def test_a_backbone_that_is_gone_must_be_named(saved, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(saved[1], folder)
    edit("netllm.json", lambda c: c["backbone"].update(name="/no/such/model"))(folder)
    with pytest.raises(UserError, match=r"its language model /no/such/model is not here, wanted its folder as llm=PATH"):
        load_adapter(folder)


def test_the_policy_decides_valid_levels_and_forgets_between_sessions(saved):
    from controllers.abr.netllm import NetLLM
    from testbed.sim.abr import run_session
    from traces.synthetic import synthetic_trace

    llm, folder, _ = saved
    policy = NetLLM(adapter=str(folder), llm=str(llm), dtype="float32")
    traces = [synthetic_trace(np.random.default_rng(seed)) for seed in (1, 2)]
    first, second = (run_session(trace, a_session(20), policy, 0) for trace in traces)
    again = run_session(traces[0], a_session(20), NetLLM(adapter=str(folder), llm=str(llm), dtype="float32"), 0)
    assert first == again == run_session(traces[0], a_session(20), policy, 0)
    assert first != second


def test_a_session_too_long_for_the_context_is_refused_at_its_start(saved):
    from controllers.abr.netllm import NetLLM
    from controllers.api import AbrSession, Manifest

    video = a_session().video
    endless = Manifest("endless", video.chunk_s, video.bitrates_bps, video.sizes_bytes * 20)
    with pytest.raises(UserError, match=r"the session has 600 chunks, wanted at most the 512 that fit the context"):
        NetLLM(adapter=str(saved[1]), llm=str(saved[0]), dtype="float32").reset(AbrSession("x", endless, 600), 0)


def test_importing_the_policy_or_the_package_loads_no_torch():
    code = "import sys, netllm, controllers.abr.netllm; netllm.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_an_adapter_is_one_whether_or_not_its_backbone_is_named(saved):
    llm, folder, _ = saved
    model = load_adapter(folder, str(llm), "float32")
    assert load_adapter(folder, model.backbone.name, "float32") is model


def test_a_load_that_was_interrupted_can_be_repeated(saved, tmp_path, monkeypatch):
    llm, folder, expected = saved
    again = Path(shutil.copytree(folder, tmp_path / "again"))

    def interrupted(model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("netllm.adapter._warm_up", interrupted)
        load_adapter(again, str(llm), "float32")
    np.testing.assert_allclose(decisions(load_adapter(again, str(llm), "float32")), expected, atol=5e-5)


def test_an_adapter_that_was_removed_decides_nothing(saved, tmp_path):
    llm, folder, _ = saved
    gone = load_adapter(shutil.copytree(folder, tmp_path / "gone"), str(llm), "float32")
    gone.switch.remove()
    with pytest.raises(RuntimeError, match="was taken off the backbone"):
        decisions(gone)


@pytest.mark.parametrize("at", range(5))
def test_an_interrupt_at_any_rename_leaves_one_model_or_one_sentence(saved, tmp_path, monkeypatch, at):
    llm, _, old = saved
    folder = shutil.copytree(saved[1], tmp_path / "adapter")
    model = lively(llm, seed=9, name=f"newer {at}")
    new, renamed = decisions(model), []

    def replace(source, target):
        if len(renamed) == at:
            raise KeyboardInterrupt
        renamed.append(Path(target).name)
        source.rename(target)

    with monkeypatch.context() as patched:
        patched.setattr(adapter.os, "replace", replace)
        if at < 4:
            with pytest.raises(KeyboardInterrupt):
                save_adapter(model, folder, {})
        else:
            save_adapter(model, folder, {})
    assert not list(folder.glob(".*")), "nothing is left beside"
    if at in (2, 3):
        with pytest.raises(UserError, match=r"adapter_model.safetensors: can't be used \(its sha256 is"):
            load_adapter(folder, str(llm), "float32")
        save_adapter(model, folder, {})  # as a run does that is taken up again
    np.testing.assert_allclose(decisions(load_adapter(folder, str(llm), "float32")), old if at < 2 else new, atol=5e-5)
    model.switch.remove()


def test_an_adapter_without_hashes_is_loaded(saved, tmp_path):
    """Those that were saved before hashes were."""
    folder = shutil.copytree(saved[1], tmp_path / "adapter")
    edit("netllm.json", lambda c: c.pop("sha256"))(folder)
    np.testing.assert_allclose(decisions(load_adapter(folder, str(saved[0]), "float32")), saved[2], atol=5e-5)


@pytest.mark.parametrize(
    "task, lora, message",
    [
        (AbrTask(hidden=-1), LoraSettings(rank=2), "negative dimension"),
        (AbrTask(), LoraSettings(rank=-1), "negative dimension"),
    ],
)
def test_a_model_that_could_not_be_made_leaves_its_name_free(saved, task, lora, message):
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            new_model(str(saved[0]), "float32", task, lora, "never made")
    new_model(str(saved[0]), "float32", AbrTask(), LoraSettings(rank=2), "never made").switch.remove()
