"""A policy that follows a script: levels that jump, whatever the network does, so that two players fetch the very same chunks."""

from controllers.api import AbrObservation, AbrPolicy

SCRIPT = (1, 3, 0, 2, 4, 1, 0, 3, 5, 2, 0, 1, 4, 0, 2, 3, 1, 5, 0)


class Jumps(AbrPolicy):
    """Level `SCRIPT[i - 1]` for chunk i, the script over and over."""

    label = "jumps"
    colour = "#495057"
    citation = "a script"

    def decide(self, observation: AbrObservation) -> int:
        """The script's next level."""
        return SCRIPT[(observation.chunk_index - 1) % len(SCRIPT)] % observation.video.levels
