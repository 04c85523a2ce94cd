"""An adapter on disk: LoRA in PEFT's format, encoders and head beside it in safetensors, settings in JSON, a model card. No pickle.

| file | content |
| --- | --- |
| `adapter_config.json`, `adapter_model.safetensors` | the LoRA matrices, readable by peft too; none at rank 0 |
| `modules.safetensors` | encoders, step embedding, norm and head |
| `netllm.json` | the task and its settings, the backbone, versions, hashes of both weight files |
| `README.md` | the model card |
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from controllers.loader import RANDOM
from netllm.backbone import DEFAULT_DTYPE, RANDOM_SEED, READABLE, is_here, load_backbone
from netllm.graph import CjsModel
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.abr import AbrTask
from netllm.tasks.cjs import CjsTask
from netllm.tasks.vp import VpTask
from testbed.errors import UserError

FORMAT = 2
"""2: one token per group of modalities, the action enters with the next step."""
SHIPPED = Path(__file__).with_name("adapters")
"""Adapters that come with the code, one folder per task."""
SETTINGS, LORA_SETTINGS, LORA, MODULES = "netllm.json", "adapter_config.json", "adapter_model.safetensors", "modules.safetensors"
AnyTask = AbrTask | CjsTask | VpTask
TASKS: dict[str, type[AnyTask]] = {"abr": AbrTask, "cjs": CjsTask, "vp": VpTask}


def save_adapter(model: TaskModel, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write `model`'s adapter, encoders and head; `facts` (data, seed, versions, ...) go into the settings.

    All is written beside and then renamed, last the settings, which hold the hashes of the weights: what a kill leaves is one model's, or
    it is refused when it is loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        _write(model, Path(scratch), facts, dtype)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: (file.name == SETTINGS, file.name)):
            os.replace(file, folder / file.name)
    if not model.switch.settings.rank:
        for name in (LORA, LORA_SETTINGS):
            (folder / name).unlink(missing_ok=True)


def _write(model: TaskModel, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype) -> None:
    modules = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(modules, folder / MODULES, metadata={"format": "pt"})
    (folder / MODULES).chmod(READABLE)
    if model.switch.settings.rank:
        _write_lora(model, folder, dtype)
    name = model.backbone.name
    settings = {
        "format": FORMAT,
        "task": model.task.name,
        "settings": asdict(model.task),
        "backbone": {"name": name, "width": model.backbone.width} | ({"seed": RANDOM_SEED} if name.endswith(RANDOM) else {}),
        "lora_rank": model.switch.settings.rank,
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (LORA, MODULES) if (folder / name).is_file()},
        **facts,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _write_lora(model: TaskModel, folder: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in model.switch.state().items()}, folder / LORA, metadata={"format": "pt"})
    (folder / LORA).chmod(READABLE)
    config = model.switch.config
    config.base_model_name_or_path = model.backbone.name
    config.save_pretrained(str(folder))


def load_adapter(folder: str | Path, llm: str = "", dtype: str = "") -> TaskModel:
    """The model of the adapter in `folder` on backbone `llm` (default: the one it was trained with), ready to decide in `dtype`.

    By default that is the quicker type here. Few tokens at once are read with weights of 4 bits where the backbone was published so, but
    not where float32 is named: then all is computed in it.

    The same object for the same arguments: all sessions of a process share it. Where the adapter was changed meanwhile, a new one; the
    earlier one decides no more. Raises `UserError` for a bad folder or a backbone that doesn't fit.
    """
    with _LOADING:
        path = Path(folder).expanduser().resolve()
        trained_with = read_settings(path)["backbone"]["name"]
        if not llm and not is_here(trained_with):
            raise UserError(f"adapter {path}: its language model {trained_with} is not here, wanted its folder as llm=PATH")
        key = path, llm or trained_with, dtype or DEFAULT_DTYPE, dtype == "float32"
        sha256 = hashlib.sha256((path / SETTINGS).read_bytes()).hexdigest()
        _forget_others(path, sha256)
        if key not in _LOADED:
            _LOADED[key] = sha256, _load(*key, sha256)
        return _LOADED[key][1]


_LOADING = threading.Lock()
_LOADED: dict[tuple[Path, str, str, bool], tuple[str, TaskModel]] = {}
"""Models of this process, each with the sha256 of the settings that it was loaded with: these hold the hashes of the weights."""


def _forget_others(folder: Path, sha256: str) -> None:
    """Take off their backbones the models of `folder` that had other settings or weights."""
    for key, (known, model) in list(_LOADED.items()):
        if key[0] == folder and known != sha256:
            model.switch.remove()
            del _LOADED[key]


def _load(folder: Path, llm: str, dtype: str, exact: bool, sha256: str) -> TaskModel:
    settings = read_settings(folder)
    trained_with = settings["backbone"]
    backbone = load_backbone(llm, dtype)
    if backbone.width != trained_with["width"]:
        raise UserError(
            f"adapter {folder} is for a language model of width {trained_with['width']}, but {backbone.name} has {backbone.width}"
        )
    name = f"{settings['task']}:{abs(hash((folder, exact, sha256))):x}"
    model = new_model(backbone.name, dtype, _task(folder, settings), _lora_settings(folder, settings), name)
    try:
        _fill(model, folder, settings.get("sha256", {}))
        model.requires_grad_(False).eval()
        model.merge(exact)
        _warm_up(model)
    except BaseException:  # Ctrl-C, too: half an adapter on the shared backbone would bar its next load
        model.switch.remove()
        raise
    return model


@torch.inference_mode()
def _warm_up(model: TaskModel) -> None:
    """Two readings that nobody waits for: the first ones choose kernels and take several times as long."""
    context = model.new_context()
    with model.backbone.lock:
        model.switch.activate()
        for _ in range(2):
            context.extend(torch.zeros(1, model.step_tokens, model.backbone.width, dtype=model.backbone.dtype))


def new_model(llm: str, dtype: str, task: AnyTask, lora: LoraSettings, adapter_name: str = "") -> TaskModel:
    """An untrained model for `task` on the shared backbone."""
    backbone = load_backbone(llm, dtype)
    if isinstance(task, CjsTask):
        return CjsModel(backbone, task, lora, adapter_name or None)
    return TaskModel(backbone, task, lora, adapter_name or None)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of `netllm.json`, checked as far as loading needs it."""
    path = folder / SETTINGS
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seen = settings["format"], settings["task"], settings["settings"], settings["backbone"]["name"], int(settings["backbone"]["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error!r}), wanted the settings of an adapter made by scripts/adapt") from error
    if seen[0] != FORMAT or seen[1] not in TASKS:
        raise UserError(f"{path}: has format {seen[0]!r} and task {seen[1]!r}, wanted format {FORMAT} and a task of {', '.join(TASKS)}")
    return settings


def _task(folder: Path, settings: dict[str, Any]) -> AnyTask:
    try:
        told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["settings"].items()}
        return TASKS[settings["task"]](**told)
    except TypeError as error:
        raise UserError(f"{folder / SETTINGS}: settings don't fit task {settings['task']} ({error})") from error


def _lora_settings(folder: Path, settings: dict[str, Any]) -> LoraSettings:
    path = folder / LORA_SETTINGS
    if settings.get("lora_rank") == 0:
        return LoraSettings(rank=0)
    try:
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        return LoraSettings(rank=config.r, alpha=config.lora_alpha, targets=tuple(sorted(config.target_modules or ())))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}), wanted PEFT's configuration of a LoRA adapter") from error


def _fill(model: TaskModel, folder: Path, sha256: Mapping[str, str]) -> None:
    """Set the weights. What fails is named by file."""
    part = LORA
    try:
        model.switch.load(_read_weights(folder / LORA, sha256) if model.switch.settings.rank else {})
        part = MODULES
        model.load_state_dict(_read_weights(folder / MODULES, sha256))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / part}: can't be used ({reason}), wanted the weights that {SETTINGS} and {LORA_SETTINGS} describe"
        ) from error


def _read_weights(path: Path, sha256: Mapping[str, str]) -> dict[str, torch.Tensor]:
    content = path.read_bytes()
    seen, wanted = hashlib.sha256(content).hexdigest(), sha256.get(path.name)
    if wanted not in (None, seen):
        raise ValueError(f"its sha256 is {seen}, not {wanted}")
    return {name: tensor.float() for name, tensor in load(content).items()}
