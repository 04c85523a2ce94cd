"""Reads sessions decision by decision: cached keys and values, so that a decision costs one token; a context that never grows too long."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from controllers.api import DECLINE, CjsAction, CjsObservation
from controllers.cjs.srpt_cap import SrptCap
from netllm.graph import CjsModel, Decisions, to_tensors
from netllm.tasks.cjs import TRUST_ABOVE, Array, action_features, graph_of, joined


class _Ruled(NamedTuple):
    """What the rule decides, by decision."""

    rows: torch.Tensor
    """(D,); -1: it isn't asked."""
    executors: torch.Tensor
    """(D,); the stage may take fewer."""
    bonus: torch.Tensor
    """Added to the log-probabilities of its choices, (D,)."""


class CjsReader:
    """Decides for a batch of sessions that advance together, greedily.

    Where the task has `trust`, the rule `srpt_cap` is asked, too, and its choices count so much more.

    The context holds the last `task.context` decisions at most. When it is full, the newer half of them is read anew, in one pass, with the
    new one: then each decision has read between half and all of the context, just as a window does in training.
    """

    def __init__(self, model: CjsModel) -> None:
        self._model = model
        self._rule = SrptCap()
        self._context = model.new_context()
        self._tokens: list[torch.Tensor] = []
        self._last: list[tuple[CjsObservation | None, CjsAction | None]] = []

    @torch.inference_mode()
    def decide(self, observations: Sequence[CjsObservation]) -> list[CjsAction]:
        """The likeliest stage of each session, and the likeliest number of executors for it. Reads these observations."""
        last = self._last or [(None, None)] * len(observations)
        actions = [action_features(*before, seen.now_s) for before, seen in zip(last, observations, strict=True)]
        graphs = [graph_of(seen) for seen in observations]
        seen = to_tensors(joined(graphs, actions), len(observations))
        encoded, tokens = self._model.encode(seen)
        head = self._model.head
        queries = head.queries(tokens[:, -1], None if self._model.bare else self._read(tokens))
        first = np.cumsum([0, *(len(graph.stages) for graph in graphs[:-1])])
        ruled = self._ruled(observations, first)
        candidates, log_chances = head.stage_log_chances(seen, encoded, queries)
        rows = self._likeliest(
            seen, candidates, log_chances + ruled.bonus[seen.stage_decision[candidates]] * torch.isin(candidates, ruled.rows)
        )
        chances = head.executor_log_chances(seen, encoded, queries, rows)
        places = torch.minimum(ruled.executors, seen.can_take[rows]) - 1
        chances[torch.arange(len(rows)), places] += ruled.bonus * (rows == ruled.rows)
        counts = (chances.argmax(-1) + 1).tolist()
        found = [CjsAction(row - int(at), count) for row, at, count in zip(rows.tolist(), first, counts, strict=True)]
        self._last = list(zip(observations, found, strict=True))
        return found

    def _ruled(self, observations: Sequence[CjsObservation], first: Array) -> _Ruled:
        """The decisions of the rule, and what they count; `first` is each graph's first row, (D,)."""
        trust = self._model.task.trust
        bonus = [trust * (seen.session.executors > TRUST_ABOVE) for seen in observations]
        decided = [self._rule.decide(seen) if counts else DECLINE for seen, counts in zip(observations, bonus, strict=True)]
        rows = [action.stage + int(at) if action.stage >= 0 else -1 for action, at in zip(decided, first, strict=True)]
        executors = [max(action.executors, 1) for action in decided]
        return _Ruled(torch.tensor(rows), torch.tensor(executors), torch.tensor(bonus))

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the sessions at these places of the batch only."""
        chosen = torch.tensor(places, dtype=torch.long)
        self._tokens = [tokens[chosen] for tokens in self._tokens]
        self._last = [self._last[place] for place in places]
        self._context.keep(chosen)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Outputs (B, width) of the newest tokens (B, 1, width)."""
        model, new = self._model, [tokens]
        if len(self._tokens) >= model.task.context:
            self._tokens = self._tokens[len(self._tokens) - model.task.context // 2 :] if model.task.context > 1 else []
            self._context, new = model.new_context(), [*self._tokens, tokens]
        with model.backbone.lock:
            model.switch.activate()
            hidden = self._context.extend(torch.cat(new, 1))
        self._tokens.append(tokens)
        return hidden[:, -1]

    @staticmethod
    def _likeliest(seen: Decisions, rows: torch.Tensor, log_chances: torch.Tensor) -> torch.Tensor:
        """The row with the largest log-probability of each decision, (D,); the first where several are equal."""
        decision = seen.stage_decision[rows]
        best = log_chances.new_full((len(seen.cluster),), -torch.inf).scatter_reduce(0, decision, log_chances, "amax")
        winners = torch.where(log_chances == best[decision], torch.arange(len(rows)), len(rows))
        return rows[torch.full((len(seen.cluster),), len(rows)).scatter_reduce(0, decision, winners, "amin")]
