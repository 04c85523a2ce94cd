"""The cluster driver's side of the decision service. Apart from the player's, which does without numpy and starts faster."""

from controllers.api import CjsObservation, CjsSession
from controllers.client import Client, DecisionFailed
from controllers.protocol import Refusal
from controllers.protocol_cjs import AnswerCjs, OpenCjs, decode_answer, question


class SchedulingClient(Client):
    """One workload's session."""

    def __init__(self, url: str, session: CjsSession, policy: str, seed: int) -> None:
        super().__init__(url, session.session_id, OpenCjs(session=session, policy=policy, seed=seed))

    async def decide(self, observation: CjsObservation, deadline_s: float) -> AnswerCjs:
        """The action, or `DecisionFailed`."""
        body = await self.ask(question(observation, deadline_s), deadline_s)
        try:
            return decode_answer(body, observation)
        except Refusal as refusal:
            raise DecisionFailed("invalid", refusal.message) from None
