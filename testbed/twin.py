"""Runs trials in the simulator twin, in a process of its own: `python -m testbed.twin` reads jobs from stdin and writes rows to stdout.

After the rows of a job it writes `Finished`. An empty line is a sign of life: one once the job's policy has started, and then now and then.

The process that builds the network is root and must not load a user's policy or torch; this one runs as the user and may.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import BinaryIO

import msgspec

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk, Manifest
from controllers.loader import PolicyFactory, load, parse_reference, raised
from controllers.protocol import Refusal
from controllers.stdio import Fault, claim_stdout, take_stdin
from testbed.cache import cache_folder
from testbed.clock import now_s
from testbed.errors import UserError
from testbed.metrics import qoe_lin
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, Row, StallRow
from testbed.sim.abr import AbrSimulator, level_number, run_session
from testbed.twin_cjs import ScheduleJob, simulate_schedule
from testbed.twin_vp import ViewerJob, simulate_viewer
from traces.trace import OpportunityTrace, RateTrace, Trace


class SimulationJob(msgspec.Struct, frozen=True, kw_only=True, tag="abr", tag_field="task"):
    """One trial to simulate. Exactly one of the traces is given."""

    trial_id: str
    policy: str
    session: AbrSession
    seed: int
    offset_s: float
    levels: tuple[int, ...] = ()
    """When given, these levels (of all chunks) are played and `policy` is not asked."""
    optimum_grid_s: float | None = None
    """When given, the levels of the offline optimum are played, found with cells of so much trace time, and `policy` is not asked."""
    rate_trace: RateTrace | None = None
    opportunity_trace: OpportunityTrace | None = None

    @property
    def who(self) -> str:
        """What chooses the levels, for sentences on what befell it."""
        return "policy" if self.optimum_grid_s is None else "the search"

    @property
    def asks(self) -> bool:
        """Whether somebody chooses: levels that are given can't hang."""
        return not self.levels

    def ended_early(self, reason: str) -> PlaybackEndRow:
        """The only row of a trial that came to nothing."""
        return ended_early(self.trial_id, reason)

    @property
    def trace(self) -> Trace:
        """The trace, whichever kind it is."""
        trace = self.rate_trace or self.opportunity_trace
        if trace is None:
            raise ValueError(f"simulation job {self.trial_id} has no trace")
        return trace


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished", tag_field="event"):
    """All rows of a job were written."""

    trial_id: str


SIGN_OF_LIFE_S = 1.0
"""At least this long between two of them."""


class _Timed(AbrPolicy):
    """A policy whose decisions are timed, and told to `alive`."""

    def __init__(self, policy: AbrPolicy, alive: Callable[[], None]) -> None:
        self.policy, self.alive = policy, alive
        self.decisions: list[tuple[int, float]] = []  # (level, seconds)

    def reset(self, session: AbrSession, seed: int) -> None:
        self.policy.reset(session, seed)
        self.alive()

    def decide(self, observation: AbrObservation) -> int:
        started_s = now_s()
        level = level_number(self.policy.decide(observation), observation.video.levels)
        self.decisions.append((level, now_s() - started_s))
        self.alive()
        return level


@cache
def _factory(reference: str, task: str = "abr") -> PolicyFactory:
    """A policy's file is imported once, as in the decision service: its trials share what it keeps in its module (a model in memory)."""
    return load(parse_reference(reference, task), task)


AnyJob = SimulationJob | ScheduleJob | ViewerJob


def simulate(job: AnyJob, alive: Callable[[], None] = lambda: None) -> Iterator[Row]:
    """The rows of one simulated trial, as a player or driver would have written them.

    `alive` is called once the policy has started, and after each decision.
    """
    if isinstance(job, ScheduleJob):
        yield from simulate_schedule(job, _factory(job.policy, "cjs"), alive)
        return
    if isinstance(job, ViewerJob):
        yield from simulate_viewer(job, _factory(job.policy, "vp"), alive)
        return
    if levels := job.levels or _optimal_levels(job, alive):
        simulator = AbrSimulator(job.trace, job.session, job.offset_s)
        yield from chunk_rows(job.trial_id, job.session.video, [simulator.step(level) for level in levels])
        return
    policy = _Timed(_factory(job.policy)(), alive)
    chunks = run_session(job.trace, job.session, policy, job.seed, job.offset_s)
    rows = chunk_rows(job.trial_id, job.session.video, chunks)
    yield from rows
    for row in rows[1:]:
        if row.rebuffer_s > 0:
            yield StallRow(trial_id=job.trial_id, start_s=row.end_s - row.rebuffer_s, end_s=row.end_s)
    for row, (level, seconds) in zip(rows[1:], policy.decisions, strict=True):
        yield DecisionRow(
            trial_id=job.trial_id,
            chunk_index=row.index,
            at_s=row.request_s,
            level=level,
            latency_s=seconds,
            policy_s=seconds,
            source="policy",
            reason="",
        )
    wall_s = rows[-1].end_s
    rebuffer_s = sum(row.rebuffer_s for row in rows[1:])
    yield PlaybackEndRow(
        trial_id=job.trial_id,
        end_reason="complete",
        startup_s=rows[0].rebuffer_s,
        played_s=wall_s - rows[0].rebuffer_s - rebuffer_s,
        rebuffer_s=rebuffer_s,
        wall_s=wall_s,
    )


def _optimal_levels(job: SimulationJob, alive: Callable[[], None]) -> tuple[int, ...]:
    """Of the offline optimum; none when it isn't asked for."""
    if job.optimum_grid_s is None:
        return ()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))  # the user may own neither this checkout nor a home
    from testbed.sim.kept import kept_optimum  # compiled code, which other jobs don't need

    return kept_optimum(job.trace, job.session, job.offset_s, job.optimum_grid_s, alive).levels


def _guarded(job: AnyJob, alive: Callable[[], None]) -> Iterator[Row]:
    """A policy that raises ends its own trial, not the experiment."""
    try:
        yield from simulate(job, alive)
    except UserError:
        raise
    except Refusal as refusal:
        yield job.ended_early(refusal.message.removeprefix("the "))
    except (Exception, SystemExit) as error:  # whatever a user's policy may raise
        yield job.ended_early(f"{job.who} {raised(error)}")


def ended_early(trial_id: str, reason: str) -> PlaybackEndRow:
    """The only row of a trial that came to nothing."""
    return PlaybackEndRow(trial_id=trial_id, end_reason=reason, startup_s=0.0, played_s=0.0, rebuffer_s=0.0, wall_s=0.0)


def chunk_rows(trial_id: str, video: Manifest, chunks: Sequence[Chunk]) -> list[ChunkRow]:
    """Chunks as rows; times count from the first request, as in an emulated trial."""
    rows: list[ChunkRow] = []
    request_s = 0.0
    previous_bps = video.bitrates_bps[chunks[0].level]
    for chunk in chunks:
        bitrate_bps = video.bitrates_bps[chunk.level]
        end_s = request_s + chunk.download_s
        rows.append(
            ChunkRow(
                trial_id=trial_id,
                index=chunk.index,
                level=chunk.level,
                bitrate_bps=bitrate_bps,
                size_bytes=chunk.size_bytes,
                request_s=request_s,
                first_byte_s=request_s,
                end_s=end_s,
                download_s=chunk.download_s,
                rebuffer_s=chunk.rebuffer_s,
                buffer_s=chunk.buffer_s,
                waited_s=chunk.waited_s,
                qoe=qoe_lin(bitrate_bps, chunk.rebuffer_s, previous_bps),
            )
        )
        request_s = end_s + chunk.waited_s
        previous_bps = bitrate_bps
    return rows


def main() -> int:
    """Read a JSON list of jobs, write a JSON line for each row. A policy that can't be loaded: a `Fault`, exit code 2."""
    writer = _Writer(claim_stdout())
    try:
        for job in msgspec.json.decode(take_stdin(), type=list[AnyJob]):
            writer.write(*_guarded(job, writer.alive), Finished(trial_id=job.trial_id))
            writer.begin()
    except UserError as error:
        writer.write(Fault(sentence=" ".join(str(error).split())))
        return 2
    return 0


class _Writer:
    """Messages as lines."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._alive_s = out, -math.inf

    def begin(self) -> None:
        """A job begins: its first sign of life is sent at once."""
        self._alive_s = -math.inf

    def write(self, *messages: Row | Finished | Fault) -> None:
        """Send them now."""
        self._out.write(b"".join(msgspec.json.encode(message) + b"\n" for message in messages))
        self._out.flush()

    def alive(self) -> None:
        """Send a sign of life, unless one was sent just now."""
        if now_s() - self._alive_s >= SIGN_OF_LIFE_S:
            self._alive_s = now_s()
            self._out.write(b"\n")
            self._out.flush()


if __name__ == "__main__":
    sys.exit(main())
