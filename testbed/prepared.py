"""`Prepared`: an experiment with everything it names found; and its trials as work for the simulator twin."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from players.config import OriginConfig, PlayerConfig
from players.dash.messages import DashConfig
from testbed.policycards import PolicyCard
from testbed.pressure import Strain
from testbed.records import AnyTrialRow, Row
from testbed.spec import Experiment
from testbed.verdict import PathFacts
from traces.store import TraceSet
from traces.trace import Trace


@dataclass(frozen=True)
class Prepared(ABC):
    """An experiment whose every part was found: nothing in it can be the user's mistake any more. What is the task's own is here too."""

    experiment: Experiment
    policies: tuple[PolicyCard, ...]
    traces: tuple[TraceSet, ...]
    trials: tuple[Any, ...]
    """Each has a `trial_id`, a `group` that it shares with those it is compared with, a `policy` and a `name` of what it plays."""
    notes: tuple[str, ...]

    metric: ClassVar[str]
    unit: ClassVar[str]
    closing: ClassVar[type]
    """The row that ends a simulated trial."""
    step: ClassVar[type]
    """The row of which a trial has `steps`."""
    twinned: ClassVar[bool] = True
    """Whether a trial played in real time is simulated, too."""

    @property
    def references(self) -> dict[str, str]:
        """Name of a policy in tables to what loads it."""
        return {card.name: card.reference for card in self.policies}

    @property
    def cells(self) -> int:
        """What each policy meets, seeds not counted."""
        return len({trial.group for trial in self.trials}) // len(self.experiment.seeds)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Of each trial: what its progress is told in."""

    @property
    @abstractmethod
    def links(self) -> tuple[Trace, ...]:
        """All traces of the trials' links, for the figures."""

    @abstractmethod
    def job(self, trial: Any) -> Any:
        """A trial as work for the simulator twin."""

    @abstractmethod
    def row(self, trial: Any, rows: Sequence[Row], path: PathFacts, attempt: int, strain: Strain) -> AnyTrialRow:
        """A trial that is over, judged."""


@dataclass(frozen=True)
class PreparedInLanes(Prepared):
    """Of what plays in lanes: a player in each, with an origin of its own."""

    @property
    @abstractmethod
    def player(self) -> str:
        """Module of the player's process."""

    @property
    @abstractmethod
    def largest_bytes(self) -> int:
        """The most that a player asks for at once."""

    @abstractmethod
    def origin_config(self, host: str, port: int, start_socket: str) -> OriginConfig:
        """What a lane's origin serves."""

    @abstractmethod
    def player_config(self, trial: Any, origin_url: str, controller_url: str) -> PlayerConfig:
        """What the player of a trial is told."""

    def handed(self, trial: Any, config: PlayerConfig, kept: Callable[[], Path], picture: Path | None) -> PlayerConfig | DashConfig:
        """`config`, or what holds it for a player that needs more; `kept` gives a folder for what it showed, its `picture` goes there."""
        return config


def unread_note(experiment: Experiment) -> tuple[str, ...]:
    """A sentence on options that were given for nothing, if there are any."""
    return (f"the simulator leaves out {', '.join(experiment.unread)}",) if experiment.unread else ()


def from_anywhere(reference: str, found: TraceSet) -> str:
    """The reference as it works from any folder, for `experiment.toml`."""
    return str(Path(reference).expanduser().resolve()) if found.source == "path" else reference
