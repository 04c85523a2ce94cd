"""The contract: what a policy is told (Observation), what it answers (Action), and what a Policy is.

The same policy object runs in the simulator, behind the headless player and behind the browser. Units stand in names; all is SI.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from testbed.units import bits_from_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


@dataclass(frozen=True)
class Manifest:
    """A video: the one truth of its chunk sizes. `sizes_bytes[chunk][level]`; levels are ordered by bitrate, lowest first."""

    name: str
    chunk_s: float
    bitrates_bps: tuple[int, ...]
    sizes_bytes: tuple[tuple[int, ...], ...]

    @property
    def levels(self) -> int:
        """Number of levels in the ladder."""
        return len(self.bitrates_bps)

    @property
    def sha256(self) -> str:
        """Of all but the name."""
        return hashlib.sha256(repr((self.chunk_s, self.bitrates_bps, self.sizes_bytes)).encode()).hexdigest()

    def level_at_fraction(self, fraction: float) -> int:
        """The level at `fraction` of the ladder (0 lowest, 1 highest), rounded down."""
        return int((self.levels - 1) * min(max(fraction, 0.0), 1.0))

    def highest_level_below(self, rate_bps: float) -> int:
        """The highest level whose nominal bitrate is at most `rate_bps`; level 0 when none is."""
        return max((i for i, bitrate in enumerate(self.bitrates_bps) if bitrate <= rate_bps), default=0)


@dataclass(frozen=True)
class AbrSession:
    """What stays the same during one playback: the first `chunks` chunks are played, of which chunk 0 has `first_level`, undecided."""

    session_id: str
    video: Manifest
    chunks: int
    buffer_cap_s: float = 60.0
    rtt_s: float = 0.08
    first_level: int = 0


@dataclass(frozen=True)
class Chunk:
    """One downloaded chunk, as the player saw it.

    `download_s` runs from sending the request to the last byte (it holds the round trip); `rebuffer_s` is the stall meanwhile (for
    chunk 0 the start-up delay); `buffer_s` is the media held right after the chunk was added, `waited_s` the pause that the buffer cap
    imposed after that, before the next request.
    """

    index: int
    level: int
    size_bytes: int
    download_s: float
    rebuffer_s: float
    buffer_s: float
    waited_s: float = 0.0

    @property
    def throughput_bps(self) -> float:
        """Size over download time, the round trip included (as in Pensieve)."""
        return bits_from_bytes(self.size_bytes) / self.download_s


@dataclass(frozen=True)
class AbrObservation:
    """What is known when the level of the next chunk is due.

    | field | meaning | range, unit |
    | --- | --- | --- |
    | session | the playback's constants, video included | |
    | history | every chunk downloaded so far, oldest first | 1 .. chunks-1 |
    | buffer_s | media in the buffer now | 0 .. about 64 s |
    """

    session: AbrSession
    history: tuple[Chunk, ...]
    buffer_s: float

    @property
    def video(self) -> Manifest:
        """The manifest of the video being played."""
        return self.session.video

    @property
    def chunk_index(self) -> int:
        """Index of the chunk whose level is asked for."""
        return len(self.history)

    @property
    def chunks_left(self) -> int:
        """Chunks still to be fetched, this one included."""
        return self.session.chunks - self.chunk_index

    @property
    def last_level(self) -> int:
        """Level of the chunk downloaded last."""
        return self.history[-1].level

    @property
    def next_sizes_bytes(self) -> tuple[int, ...]:
        """Size of the next chunk at each level."""
        return self.video.sizes_bytes[self.chunk_index]


class AbrPolicy(ABC):
    """An adaptive-bitrate algorithm. One file in `controllers/abr/` named like the policy, or any file given to `--policies`.

    `__init__` takes the policy's options as keyword arguments with defaults (`--policies fixed+level=3`); `reset` starts a session; all
    randomness comes from `self.rng`.
    """

    label: ClassVar[str] = ""
    """Name in tables and figures."""
    colour: ClassVar[str] = "#777777"
    """In every figure: #rrggbb."""
    citation: ClassVar[str] = ""
    """Paper, section or equation."""

    session: AbrSession
    rng: "np.random.Generator"

    def reset(self, session: AbrSession, seed: int) -> None:
        """Forget everything and start `session`. Overriding methods call this one."""
        import numpy as np  # here: players and origins read this file too, and importing numpy is a third of their start

        self.session = session
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def decide(self, observation: AbrObservation) -> int:
        """The level (0 lowest) of chunk `observation.chunk_index`."""

    def probabilities(self, observation: AbrObservation) -> "np.ndarray":
        """How likely each level is to be chosen, (levels,); here all on that of `decide`. What a student of the policy learns from."""
        import numpy as np

        chosen = np.zeros(observation.video.levels)
        chosen[self.decide(observation)] = 1.0
        return chosen


@dataclass(frozen=True)
class VpSession:
    """What stays the same while one viewer watches one 360-degree video: `horizon` samples are to be predicted at each decision."""

    session_id: str
    horizon: int
    rate_hz: float = 5.0
    """Samples of head movement a second, of history and prediction alike."""
    front_deg: float | None = None
    """The yaw at which viewers of this video look ahead; None: not known."""


@dataclass(frozen=True, eq=False, slots=True)
class VpObservation:
    """What is known of a viewer's head when the next viewports are asked for: the last H samples, oldest first.

    | field | meaning | shape; range, unit |
    | --- | --- | --- |
    | session | the viewing's constants | |
    | times_s | when the head was sampled, rising; the distance is that of `session.rate_hz`, but some may be missing | (H,); s |
    | history_deg | roll, pitch, yaw (`traces/viewports.py`) | (H, 3); -180 .. 180, -90 .. 90, -180 .. 180 degrees |
    | frame | the equirectangular frame on screen at the newest sample; None where the user has no frames | (rows, columns, 3); 0 .. 255 |

    H is 1 or more: a viewing has little history at its beginning. Arrays are not to be changed.
    """

    session: VpSession
    times_s: "np.ndarray"
    history_deg: "np.ndarray"
    frame: "np.ndarray | None" = None


class VpPolicy(ABC):
    """A predictor of viewports. One file in `controllers/vp/` named like the policy, or any file given to `--policies`.

    The answer is the next `session.horizon` samples, `1 / session.rate_hz` seconds apart, the first one that long after the newest of the
    history: finite degrees, (horizon, 3), roll, pitch, yaw. Whole turns more or less mean the same. `__init__` takes the policy's options
    as keyword arguments with defaults; all randomness comes from `self.rng`.
    """

    label: ClassVar[str] = ""
    """Name in tables and figures."""
    colour: ClassVar[str] = "#777777"
    """In every figure: #rrggbb."""
    citation: ClassVar[str] = ""
    """Paper, section or equation."""

    session: VpSession
    rng: "np.random.Generator"

    def reset(self, session: VpSession, seed: int) -> None:
        """Forget everything and start `session`. Overriding methods call this one."""
        import numpy as np

        self.session = session
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def decide(self, observation: VpObservation) -> "np.ndarray":
        """Where the viewer will look, (horizon, 3)."""

    def decide_all(self, observations: "Sequence[VpObservation]") -> "np.ndarray":
        """`decide` of several moments of this session, in order of time, (N, horizon, 3). For a model that is faster on many at once."""
        import numpy as np

        return np.stack([self.decide(each) for each in observations])


@dataclass(frozen=True)
class CjsSession:
    """What stays the same while a cluster schedules one workload."""

    session_id: str
    executors: int
    moving_delay_s: float = 2.0
    """For an executor to go to another job."""


@dataclass(frozen=True, slots=True)
class CjsObservation:
    """What is known when executors are on offer: J active jobs in order of arrival, S stages that are not complete (by job, then number).

    | field | meaning | shape; range, unit |
    | --- | --- | --- |
    | session | the cluster's constants | |
    | now_s | time since the session began | 0 .. s |
    | committable | executors on offer | 1 .. executors |
    | source_job | row of the job that they are at; -1: they come from the common pool or a job that is done | -1 .. J-1 |
    | job_id | number of the job, in order of arrival over the session | (J,); 0 .. |
    | job_age_s | time since it arrived | (J,); 0 .. s |
    | job_first | row of the job's first stage; the last entry is S | (J+1,); 0 .. S |
    | supply | executors at the job, moving to it, or committed to it from elsewhere | (J,); 0 .. |
    | stage_id | number of the stage within its job | (S,); 0 .. |
    | stage_job | row of its job | (S,); 0 .. J-1 |
    | unstarted | tasks that have not started | (S,); 0 .. |
    | running | tasks that run now | (S,); 0 .. executors |
    | demand | unstarted, less executors that move, are committed or wait for the stage | (S,); may be negative |
    | mean_task_s | mean duration of its tasks in the profile, known before it runs | (S,); s |
    | last_task_s | duration of its task that completed last, `mean_task_s` until one has | (S,); s |
    | runnable | whether all its parents are complete | (S,); bool |
    | schedulable | whether it may be chosen now | (S,); bool, at least one |
    | edges | rows of parent and child, where neither is complete | (E, 2) |

    Nothing of this looks into the future, but for one field in the published simulator: there `last_task_s` is the duration of the task
    that STARTED last, which no real cluster can know (and `supply` may stay too high: docs/cjs.md). Arrays are not to be changed.
    """

    session: CjsSession
    now_s: float
    committable: int
    source_job: int
    job_id: "np.ndarray"
    job_age_s: "np.ndarray"
    job_first: "np.ndarray"
    supply: "np.ndarray"
    stage_id: "np.ndarray"
    stage_job: "np.ndarray"
    unstarted: "np.ndarray"
    running: "np.ndarray"
    demand: "np.ndarray"
    mean_task_s: "np.ndarray"
    last_task_s: "np.ndarray"
    runnable: "np.ndarray"
    schedulable: "np.ndarray"
    edges: "np.ndarray"

    @property
    def jobs(self) -> int:
        """Active jobs, J."""
        return len(self.job_id)

    @property
    def stages(self) -> int:
        """Stages that are not complete, S."""
        return len(self.stage_id)

    @property
    def commit_caps(self) -> "np.ndarray":
        """How many executors each job may be given now, (J,): those on offer, but up to the cluster's size; the source job all of them."""
        import numpy as np

        caps: np.ndarray = np.clip(self.session.executors - self.supply, 0, self.committable)
        if self.source_job >= 0:
            caps[self.source_job] = self.committable
        return caps


@dataclass(frozen=True, slots=True)
class CjsAction:
    """Give `executors` of those on offer to the stage in row `stage`. What the stage can't use stays on offer.

    With `stage` -1 all that are left are declined: they stay idle at their job, or go to the common pool.
    """

    stage: int
    executors: int = 0


DECLINE = CjsAction(-1)


class CjsPolicy(ABC):
    """A scheduler. One file in `controllers/cjs/` named like the policy, or any file given to `--policies`.

    It is asked again at the same instant until all executors on offer are given or declined, or no stage can be chosen. `__init__` takes
    the policy's options as keyword arguments with defaults; all randomness comes from `self.rng`.
    """

    label: ClassVar[str] = ""
    """Name in tables and figures."""
    colour: ClassVar[str] = "#777777"
    """In every figure: #rrggbb."""
    citation: ClassVar[str] = ""
    """Paper, section or equation."""

    session: CjsSession
    rng: "np.random.Generator"

    def reset(self, session: CjsSession, seed: int) -> None:
        """Forget everything and start `session`. Overriding methods call this one."""
        import numpy as np

        self.session = session
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def decide(self, observation: CjsObservation) -> CjsAction:
        """Which schedulable stage gets how many of the executors on offer (1 to `committable`), or `DECLINE`."""
