"""NetLLM for ABR: an adapted language model chooses the level, with the whole session in its context."""

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from testbed.errors import UserError


class NetLLM(AbrPolicy):
    """NetLLM (Wu et al., SIGCOMM 2024) with cached keys and values: a decision reads only its new tokens. Decodes greedily.

    Differs from the paper's code: a session never sees another one's tokens, all of the session is in the context (not 20 steps), the most
    probable level is taken (not a sampled one), and the adapter learnt from teachers' answers to every state of its training sessions.

    | option | meaning |
    | --- | --- |
    | `adapter` | folder of an adapter made by `scripts/adapt`; default: the one that ships |
    | `llm` | backbone: `smollm2-135m` or the folder of a Hugging Face causal language model; default: the adapter's own |
    | `dtype` | `bfloat16`, or `float32` throughout; default: the quicker one here, few tokens with weights of 4 bits |
    | `threads` | CPU threads, for the whole process; more than one suffers badly when other processes want the same cores |
    """

    label = "NetLLM"
    colour = "#c2185b"
    citation = "Wu et al., NetLLM: Adapting Large Language Models for Networking, SIGCOMM 2024"

    def __init__(self, adapter: str = "", llm: str = "", dtype: str = "", threads: int = 1) -> None:
        import torch  # takes seconds: only who uses this policy pays

        from netllm.adapter import SHIPPED, load_adapter
        from netllm.tasks.abr import AbrTask

        torch.set_num_threads(threads)
        folder = adapter or SHIPPED / "abr"
        self._model = load_adapter(folder, llm, dtype)
        if not isinstance(self._model.task, AbrTask):
            raise UserError(f"adapter {folder} is for task {self._model.task.name}, wanted abr")
        self._task = self._model.task

    def reset(self, session: AbrSession, seed: int) -> None:
        """Start with an empty context."""
        from netllm.tasks.abr import AbrReader, check_session

        super().reset(session, seed)
        check_session(self._model, session)
        self._reader: AbrReader = AbrReader(self._model, self._task)

    def decide(self, observation: AbrObservation) -> int:
        """The most probable level. Chunks that were decided elsewhere since the last call are read first."""
        from netllm.tasks.abr import choose

        return choose(self._reader.decide([observation])[0], observation, self._task)
