"""`python -m netllm.bench.published`: what a decision and a training decision cost in NetLLM's published ABR code.

Runs where NetLLM's pinned packages are installed, and measures a checkout of https://github.com/duowuyms/NetLLM as it is: model, LoRA,
policy, data set and trainer are its own, put together as its `run_plm.py` does; only the sizes of the language model are another's.
bfloat16 is no option of that code: here the frozen weights are converted and what enters and leaves the language model is cast.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from controllers.api import AbrObservation, AbrSession, Chunk
from netllm.bench.worker import Used, columns, cpu_s, measured, observations, probe, recorded, serve
from testbed.metrics import chunk_qoe
from testbed.units import kilobytes_from_bytes, ms_from_s

FOLDER = "adaptive_bitrate_streaming"
WINDOW, FEATURES, SCALE = 20, 256, 1000
"""Steps of context, width of the state's features, divisor of returns: defaults of `run_plm.py`."""
ACCUMULATION, RATE, DECAY, WARM_UP = 32, 1e-4, 1e-4, 2000
"""Windows an optimiser step, learning rate, weight decay, steps of warm-up: defaults of `run_plm.py`."""
WINDOWS = 2
"""Windows that are measured at once."""
PAST = 6
"""Chunks in a state (S_LEN)."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Published:
    """The contender; `load` first."""

    def load(self, llm: str, dtype: str, rank: int, sessions: str, checkout: str) -> dict[str, Any]:
        """As `run_plm.py` makes it."""
        sys.path.insert(0, f"{checkout}/{FOLDER}")
        self._session, self._recorded = recorded(sessions)
        self._states = [states(self._session, chunks) for chunks in self._recorded]
        data = self._data_set(range(len(self._recorded)))
        policy = importlib.import_module("plm_special.models.rl_policy").OfflineRLPolicy
        encoder = importlib.import_module("plm_special.models.state_encoder").EncoderNetwork(embed_dim=FEATURES)
        plm = self._language_model(llm, dtype, rank)
        self._policy = policy(
            state_feature_dim=FEATURES,
            bitrate_levels=self._session.video.levels,
            state_encoder=encoder,
            plm=plm,
            plm_embed_size=plm.config.hidden_size,
            max_length=WINDOW,
            max_ep_len=data.exp_dataset_info["max_timestep"] + 1,
            device="cpu",
            device_out="cpu",
        )
        self._returns = np.split(np.array(data.returns), len(self._recorded))
        self._optimiser = torch.optim.AdamW(self._policy.parameters(), lr=RATE, weight_decay=DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda steps: min((steps + 1) / WARM_UP, 1))
        return {
            "tokens": 2 + len(self._policy.state_encoder(torch.zeros(1, 1, PAST, PAST))),
            "trained": sum(parameter.numel() for parameter in self._policy.parameters() if parameter.requires_grad),
            "probe": self._probed(),
            "versions": {name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "peft")},
        }

    def _language_model(self, llm: str, dtype: str, rank: int) -> Any:
        """With LoRA: peft's model around its own."""
        model = importlib.import_module("plm_special.models.llama").LlamaModel
        adapt = importlib.import_module("plm_special.models.low_rank").peft_model
        if dtype == "float32":  # what it does when nothing is said
            return adapt(model.from_pretrained(llm), "llama", rank=rank)
        plm = adapt(model.from_pretrained(llm, torch_dtype=DTYPES[dtype]), "llama", rank=rank)
        for name, parameter in plm.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if "lora_" in name else DTYPES[dtype])
        plm.register_forward_pre_hook(
            lambda _, inputs, named: (inputs, {**named, "inputs_embeds": named["inputs_embeds"].to(DTYPES[dtype])}), with_kwargs=True
        )
        plm.register_forward_hook(_in_float32)
        return plm

    @torch.no_grad()
    def _probed(self) -> list[float]:
        embeddings = torch.tensor([probe(self._policy.plm_embed_size)])
        self._policy.eval()
        hidden: torch.Tensor = self._policy.plm(inputs_embeds=embeddings)["last_hidden_state"]
        return hidden[0, -1].tolist()

    @torch.no_grad()
    def decide(self, session: int, threads: int) -> dict[str, Any]:
        """`sample`, with an empty context at first, and dropout off."""
        torch.set_num_threads(threads)
        self._policy.eval()
        self._policy.clear_dq()
        number = session % len(self._recorded)
        rows = zip(torch.from_numpy(self._states[number]), self._returns[number], strict=True)
        return columns([measured(partial(self._sample, state, wanted, step)) for step, (state, wanted) in enumerate(rows)])

    def _sample(self, state: torch.Tensor, wanted: float, step: int) -> object:
        return self._policy.sample(state[None, None], wanted, step)

    def train(self, first: int, threads: int) -> dict[str, Any]:
        """An epoch of its trainer over two windows. It steps once, at the epoch's end: a window bears a 32nd of that step."""
        torch.set_num_threads(threads)
        self._policy.train()
        if not self._optimiser.state:
            self._epoch(first)()
        spent_s: list[float] = []
        begin = self._optimiser.register_step_pre_hook(lambda *_: spent_s.append(-cpu_s()))
        end = self._optimiser.register_step_post_hook(lambda *_: spent_s.append(cpu_s()))
        used = measured(self._epoch(first))
        begin.remove()
        end.remove()
        return shared(used, sum(spent_s), WINDOWS) | {"decisions": WINDOW, "at_once": WINDOW}

    def _epoch(self, first: int) -> Callable[[], object]:
        """Ready to run, on the windows from session `first` on."""
        count = -(-WINDOWS * WINDOW // len(self._states[0]))
        data = self._data_set([(first + i) % len(self._recorded) for i in range(count)], WINDOWS * WINDOW)
        trainer = importlib.import_module("plm_special.trainer").Trainer(
            SimpleNamespace(),
            model=self._policy,
            optimizer=self._optimiser,
            exp_dataset=data,
            loss_fn=torch.nn.CrossEntropyLoss(),
            device="cpu",
            lr_scheduler=self._schedule,
            grad_accum_steps=ACCUMULATION,
        )
        return trainer.train_epoch

    def _data_set(self, sessions: Sequence[int], steps: int | None = None) -> Any:
        """Its pool of (state, action, reward, last), as its `generate_exp_pool.py` fills it, cut into windows."""
        pool = importlib.import_module("plm_special.data.exp_pool").ExperiencePool()
        for number in sessions:
            chunks = self._recorded[number]
            qoe = chunk_qoe(chunks, self._session.video)
            for i, state in enumerate(self._states[number]):
                if steps is None or len(pool) < steps:
                    pool.add(state=state, action=chunks[i + 1].level, reward=qoe[i + 1], done=i + 2 == len(chunks))
        return importlib.import_module("plm_special.data.dataset").ExperienceDataset(pool, scale=SCALE, max_length=WINDOW)


def shared(used: Used, step_cpu_s: float, windows: int) -> dict[str, float]:
    """Cost of one decision of an epoch of `windows` windows and one optimiser step, of which each window shall bear 1 / 32."""
    ratio = ((used.cpu_s - step_cpu_s) / windows + step_cpu_s / ACCUMULATION) / (used.cpu_s / windows)
    return {name: ratio * value for name, value in used.over(windows * WINDOW).items()}


def states(session: AbrSession, chunks: Sequence[Chunk]) -> np.ndarray:
    """Its state before each chunk but the first, (chunks - 1, 6, 6), as in its `evaluate.py` and with its units."""
    found, state = [], np.zeros((PAST, PAST), dtype=np.float32)
    for known in observations(session, chunks):
        state = np.roll(state, -1, axis=1)
        state[:, -1] = _column(known)
        sizes = np.array(known.next_sizes_bytes, dtype=float)
        state[4, : len(sizes)] = kilobytes_from_bytes(kilobytes_from_bytes(sizes))  # megabytes
        found.append(state)
    return np.stack(found)


def _column(known: AbrObservation) -> list[float]:
    """Bitrate over the highest, buffer in 10 s, throughput in kB/ms, download time in 10 s, 0 for the sizes, share of chunks left."""
    last, bitrates_bps = known.history[-1], known.video.bitrates_bps
    rate = kilobytes_from_bytes(last.size_bytes) / ms_from_s(last.download_s)
    left = known.chunks_left / known.session.chunks
    return [bitrates_bps[last.level] / bitrates_bps[-1], known.buffer_s / 10, rate, last.download_s / 10, 0.0, left]


def _in_float32(_module: object, _inputs: object, output: Any) -> Any:
    output["last_hidden_state"] = output["last_hidden_state"].float()
    return output


if __name__ == "__main__":
    serve(Published())
