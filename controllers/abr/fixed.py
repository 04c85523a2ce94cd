"""The same level for every chunk: a yardstick, and the simplest policy there can be."""

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from testbed.errors import UserError


class Fixed(AbrPolicy):
    """Always `level` (0 lowest). Chunk 0 still has the session's first level."""

    label = "Fixed"
    colour = "#7f7f7f"
    citation = "constant bitrate, no adaptation"

    def __init__(self, level: int = 0) -> None:
        self.level = level

    def reset(self, session: AbrSession, seed: int) -> None:
        """Start a session; raises `UserError` when its ladder has no such level."""
        super().reset(session, seed)
        if not 0 <= self.level < session.video.levels:
            raise UserError(f"policy fixed: level is {self.level}, wanted 0 to {session.video.levels - 1} of video {session.video.name}")

    def decide(self, observation: AbrObservation) -> int:
        """The level given."""
        return self.level
