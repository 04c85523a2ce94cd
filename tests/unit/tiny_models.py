"""Tiny language models with random weights, written as Hugging Face folders, and sessions to feed them."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from controllers.api import AbrSession, Chunk
from netllm.adapter import new_model
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.abr import AbrTask
from players.media import synthetic_manifest
from testbed.sim.abr import AbrSimulator
from traces.synthetic import synthetic_trace

ROPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROPE, max_position_embeddings=512, initializer_range=0.2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**ROPE, max_position_embeddings=512, initializer_range=0.2, sliding_window=None)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=512, vocab_size=64, initializer_range=0.2)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            hidden_size=40,
            word_embed_proj_dim=16,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=512,
            init_std=0.2,
        )
    ),
}


def save_tiny(folder: Path, kind: str = "llama") -> Path:
    """A random model of that architecture in `folder`."""
    torch.manual_seed(3)
    MODELS[kind]().save_pretrained(folder)
    return folder


def sixteen_levels(folder: Path) -> Path:
    """A random Llama in `folder` whose matrices have 16 levels a group of 32, as published in 4 bits; wide enough for that."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**(ROPE | {"hidden_size": 64, "intermediate_size": 96}), max_position_embeddings=512))
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(on_levels(module.weight.shape, 0.2))
    model.save_pretrained(folder)
    return folder


def on_levels(shape: tuple[int, ...], spread: float) -> torch.Tensor:
    """A random matrix of 16 levels a group, (outputs, inputs)."""
    outputs, inputs = shape
    levels = torch.randint(0, 16, (outputs, inputs // 32, 32))
    levels[..., 0], levels[..., 1] = 0, 15
    scale = spread * torch.rand(outputs, inputs // 32, 1) / 4
    return (levels * scale - 8 * scale + spread * torch.randn(scale.shape) / 10).view(outputs, inputs)


def lively(
    llm: Path, seed: int = 0, dtype: str = "float32", task: AbrTask | None = None, name: str = "", lora: LoraSettings | None = None
) -> TaskModel:
    """An ABR model whose LoRA and head are not at their zero start, so that everything has an effect."""
    torch.manual_seed(seed)
    model = new_model(str(llm), dtype, task or AbrTask(hidden=16), lora or LoraSettings(rank=4), name)
    for parameter in model.switch.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.head.linear.weight, std=0.5)
    return model.eval()


def a_session(chunks: int = 48) -> AbrSession:
    return AbrSession("tiny", synthetic_manifest(), chunks)


def played(seed: int, chunks: int = 48) -> tuple[AbrSession, tuple[Chunk, ...]]:
    """A session at random levels on a synthetic trace."""
    rng = np.random.default_rng(seed)
    sim = AbrSimulator(synthetic_trace(rng), a_session(chunks))
    while not sim.done:
        sim.step(int(rng.integers(6)))
    return sim.session, sim.history
