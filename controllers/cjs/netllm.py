"""NetLLM for cluster job scheduling: an adapted language model points at a stage and a number of executors."""

from controllers.api import CjsAction, CjsObservation, CjsPolicy, CjsSession
from testbed.errors import UserError


class NetLLM(CjsPolicy):
    """NetLLM (Wu et al., SIGCOMM 2024) with one pass a decision: a decision reads one token after the cached past. Decodes greedily.

    Differs from the paper's code: there, two passes over the whole window choose the stage, then the executors, and nothing is cached.
    Heads point at any number of stages and executors, where the paper's have 100 and 50 outputs. No `last_task_s`, which leaks in the
    published rules. There is no return to be wanted. The adapter learnt from costs that look-ahead found for candidate decisions. Never
    declines.

    | option | meaning |
    | --- | --- |
    | `adapter` | folder of an adapter made by `scripts/adapt cjs`; default: the one that ships |
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
        from netllm.graph import CjsModel

        torch.set_num_threads(threads)
        folder = adapter or SHIPPED / "cjs"
        model = load_adapter(folder, llm, dtype)
        if not isinstance(model, CjsModel):
            raise UserError(f"adapter {folder} is for task {model.task.name}, wanted cjs")
        self.model: CjsModel = model

    def reset(self, session: CjsSession, seed: int) -> None:
        """Start with an empty context."""
        from netllm.cjs.reader import CjsReader

        super().reset(session, seed)
        self._reader: CjsReader = CjsReader(self.model)

    def decide(self, observation: CjsObservation) -> CjsAction:
        """The likeliest stage, and the likeliest number of executors for it."""
        return self._reader.decide([observation])[0]
