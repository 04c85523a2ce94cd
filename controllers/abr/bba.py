"""Buffer-based adaptation: the level grows linearly with the buffer."""

from controllers.api import AbrObservation, AbrPolicy
from testbed.errors import UserError


class BBA(AbrPolicy):
    """BBA-0's linear map from buffer to rate (Huang et al., SIGCOMM 2014, section 4), as in Pensieve's `test/bb.py`.

    Up to `reservoir_s` the lowest level, from `reservoir_s + cushion_s` the highest, between them the level at that fraction of the ladder.
    Pensieve's 5 s and 10 s (NetLLM's too) are far below the paper's 90 s and 126 s, which belong to a 240 s buffer. Unlike the
    paper's algorithm 1, and like Pensieve's code, the map alone decides: nothing keeps the last level near a step.
    """

    label = "BBA"
    colour = "#1f77b4"
    citation = "Huang et al., A Buffer-Based Approach to Rate Adaptation, SIGCOMM 2014, section 4"

    def __init__(self, reservoir_s: float = 5.0, cushion_s: float = 10.0) -> None:
        if not (reservoir_s >= 0 and cushion_s > 0):
            raise UserError(f"policy bba: reservoir_s is {reservoir_s} and cushion_s {cushion_s}, wanted at least 0 and more than 0")
        self.reservoir_s, self.cushion_s = reservoir_s, cushion_s

    def decide(self, observation: AbrObservation) -> int:
        """The level at the buffer's place in the cushion."""
        return observation.video.level_at_fraction((observation.buffer_s - self.reservoir_s) / self.cushion_s)
