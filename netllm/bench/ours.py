"""`python -m netllm.bench.ours`: what a decision and a training decision cost with this testbed's own language model.

Deciding is what `controllers/abr/netllm.py` does, features included; training is an optimiser step of `scripts/adapt` with its defaults.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch

from netllm.abr.experience import Episode
from netllm.abr.lessons import loss_of, prepare, stack
from netllm.adapter import load_adapter, new_model, save_adapter
from netllm.backbone import EMBEDDED, prepare_embedded
from netllm.bench.worker import columns, measured, observations, probe, recorded, serve
from netllm.lora import LoraSettings
from netllm.model import TaskModel
from netllm.tasks.abr import AbrTask, student_of
from netllm.training import OptimiserSettings, make_optimiser, train_step
from testbed.cache import cache_folder


class Ours:
    """The contender; `load` first."""

    def variants(self) -> dict[str, Any]:
        """Ways to make tokens of a step, the default first; one nameless way where the task has no choice."""
        hint = get_type_hints(AbrTask).get("tokens")
        known = list(get_args(hint))
        default = getattr(AbrTask(), "tokens", "")
        return {"tokens": sorted(known, key=lambda name: name != default) or [default]}

    def export(self, llm: str, folder: str) -> dict[str, Any]:
        """The backbone in `folder` as transformers 4 reads it (same weights), and where made things are kept."""
        source = prepare_embedded() if llm == EMBEDDED else Path(llm).resolve()
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config |= config.pop("rope_parameters", {})
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (Path(folder) / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
        return {"cache": str(cache_folder())}

    def load(self, llm: str, dtype: str, rank: int, sessions: str, tokens: str = "") -> dict[str, Any]:
        """As by `load_adapter`; training starts with a new adapter."""
        way: dict[str, Any] = {"tokens": tokens} if tokens else {}
        self._task = AbrTask(**way)
        self._how = llm, dtype, self._task, LoraSettings(rank=rank)
        self._session, self._recorded = recorded(sessions)
        with tempfile.TemporaryDirectory() as folder:
            fresh = new_model(*self._how, adapter_name="fresh")
            save_adapter(fresh, Path(folder), {})
            fresh.switch.remove()
            self._deciding: TaskModel | None = load_adapter(folder, llm, dtype)
        self._optimiser: torch.optim.Optimizer | None = None
        output = _probed(self._deciding)
        return {
            "tokens": self._deciding.step_tokens,
            "trained": sum(parameter.numel() for parameter in self._deciding.adapt_parameters()),
            "probe": output,
            "versions": {"torch": torch.__version__},
        }

    def decide(self, session: int, threads: int) -> dict[str, Any]:
        """Greedily, in a session of its own."""
        assert self._deciding is not None
        torch.set_num_threads(threads)
        decide = student_of(self._deciding, self._task)
        chunks = self._recorded[session % len(self._recorded)]
        return columns([measured(partial(decide, [known])) for known in observations(self._session, chunks)])

    def train(self, first: int, threads: int) -> dict[str, Any]:
        """One optimiser step on a batch as `scripts/adapt` takes; where a step has more tokens, on fewer sessions: as many tokens."""
        torch.set_num_threads(threads)
        settings = OptimiserSettings()
        settings = replace(settings, batch=-(-settings.batch // len(self._task.groups)))
        optimiser = self._start_training(settings) if self._optimiser is None else self._optimiser
        chosen = [self._pool[(first + i) % len(self._pool)] for i in range(settings.batch * settings.accumulation)]
        batches = [stack(chosen[i : i + settings.batch]) for i in range(0, len(chosen), settings.batch)]
        used = measured(lambda: train_step(self._training, optimiser, settings, batches, loss_of))
        decisions = int(sum(batch["weight"].sum() for batch in batches))
        return used.over(decisions) | {"decisions": decisions, "at_once": decisions // settings.accumulation}

    def _start_training(self, settings: OptimiserSettings) -> torch.optim.Optimizer:
        """A new adapter instead of the one that decided; returns its optimiser."""
        if self._deciding is not None:
            self._deciding.switch.remove()
            self._deciding = None
        self._training = new_model(*self._how).train()
        self._optimiser = optimiser = make_optimiser(self._training, settings)
        self._pool = prepare(self._task, [self._episode(chunks) for chunks in self._recorded])
        train_step(self._training, optimiser, settings, [stack(self._pool[:2])], loss_of)
        return optimiser

    def _episode(self, chunks: Any) -> Episode:
        """What was done is what should have been done: the labels cost the same whatever they are."""
        labels = np.eye(self._session.video.levels)[[chunk.level for chunk in chunks[1:]]]
        return Episode(self._session, chunks, labels, "bba", "bench", "", 0.0)


@torch.inference_mode()
def _probed(model: TaskModel) -> list[float]:
    """The backbone's output at the probe's last place; LoRA starts as nothing, so it is the bare backbone's."""
    backbone = model.backbone
    embeddings = torch.tensor([probe(backbone.width)], dtype=backbone.dtype)  # (1, tokens, width)
    with backbone.lock:
        model.switch.activate()
        hidden: torch.Tensor = backbone.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    return hidden[0, -1].float().tolist()


if __name__ == "__main__":
    serve(Ours())
