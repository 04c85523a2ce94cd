"""NetLLM for VP: an adapted language model reads the head's movement, and answers the whole horizon in one pass."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpPolicy, VpSession
from testbed.errors import UserError
from traces.viewports import FRONT_DEG, RATE_HZ


class NetLLM(VpPolicy):
    """NetLLM (Wu et al., SIGCOMM 2024) with a head that answers all future samples at once, as what is to be added to a small predictor's.

    Differs from the paper's code: one pass instead of 20, a token tells 2 s (not one sample), angles are told and answered relative to the
    newest sample, around the circle, and what is learnt is the metric itself, the absolute error (not the squared error of normalised
    angles that jump at 180 degrees). The yaw is told only where the front is that of Jin2022, whose viewers it learnt from. Beyond the
    horizon learnt the small predictor goes on alone, and what was added to its last sample stays.

    | option | meaning |
    | --- | --- |
    | `adapter` | folder of an adapter made by `scripts/adapt vp`; default: the one that ships |
    | `llm` | backbone: `smollm2-135m` or the folder of a Hugging Face causal language model; default: the adapter's own |
    | `dtype` | `bfloat16`, or `float32` throughout; default: the quicker one here, few tokens with weights of 4 bits |
    | `threads` | CPU threads, for the whole process |
    | `vit` | folder of a ViT, for an adapter that was trained with frames |
    """

    label = "NetLLM"
    colour = "#c2185b"
    citation = "Wu et al., NetLLM: Adapting Large Language Models for Networking, SIGCOMM 2024"

    def __init__(self, adapter: str = "", llm: str = "", dtype: str = "", threads: int = 1, vit: str = "") -> None:
        import torch  # takes seconds: only who uses this policy pays

        from netllm.adapter import SHIPPED, load_adapter
        from netllm.images import image_reader
        from netllm.tasks.vp import VpTask

        torch.set_num_threads(threads)
        folder = adapter or SHIPPED / "vp"
        self._model = load_adapter(folder, llm, dtype)
        if not isinstance(self._model.task, VpTask):
            raise UserError(f"adapter {folder} is for task {self._model.task.name}, wanted vp")
        self._task = self._model.task
        self._images = image_reader(vit, self._task.image_features)

    def reset(self, session: VpSession, seed: int) -> None:
        """Start `session`; refuses a rate that it was not trained for."""
        super().reset(session, seed)
        if session.rate_hz != RATE_HZ:
            raise UserError(f"policy netllm: the session has {session.rate_hz:g} samples a second, wanted the {RATE_HZ} it was trained for")

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[VpObservation]) -> np.ndarray:
        """(N, horizon, 3)"""
        from netllm.tasks.vp import alike, features, predict_turns_deg

        front = self.session.front_deg == FRONT_DEG
        answer_deg = np.empty((len(observations), self.session.horizon, 3))
        for rows in alike([min(len(each.history_deg), self._task.longest) for each in observations]).values():
            history_deg = np.stack([observations[row].history_deg[-self._task.longest :] for row in rows])
            images = self._images([observations[row].frame for row in rows])
            told = features(self._task, history_deg, front, images, self.session.horizon)
            answer_deg[rows] = history_deg[:, -1:] + predict_turns_deg(self._model, told)
        return answer_deg
