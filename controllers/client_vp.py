"""The headset player's side of the decision service."""

from collections.abc import Sequence

from controllers.api import VpSession
from controllers.client import Client, DecisionFailed
from controllers.protocol import Refusal
from controllers.protocol_vp import Angles, AnswerVp, DecideVp, OpenVp, decode_answer


class ViewportClient(Client):
    """One viewing's session."""

    def __init__(self, url: str, session: VpSession, policy: str, seed: int) -> None:
        super().__init__(url, session.session_id, OpenVp(session=session, policy=policy, seed=seed))
        self._session = session

    async def decide(self, times_s: Sequence[float], history_deg: Sequence[Angles], deadline_s: float) -> AnswerVp:
        """The predicted samples, or `DecisionFailed`."""
        question = DecideVp(deadline_s=deadline_s, times_s=list(times_s), history_deg=list(history_deg))
        body = await self.ask(question, deadline_s)
        try:
            return decode_answer(body, self._session)
        except Refusal as refusal:
            raise DecisionFailed("invalid", refusal.message) from None
