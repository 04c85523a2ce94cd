"""When dash.js 5 plays, stalls and asks for the next chunk: pure logic that is handed `now`, for the wire and for the virtual clock.

One request at a time. Playback starts when the first chunk is appended, runs at rate 1 until the buffer is dry, and resumes at the
next append (no rebuffering threshold). With all lags at 0 this is the simulator of Pensieve and NetLLM, whose pause is in steps of
0.5 s too; one point of measure zero differs: at a buffer of exactly the cap they ask at once, dash.js (`level + chunk < target`) waits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """The player's constants, seconds. Defaults: dash.js 5.2.1 in headless Chromium, measured; all buffer targets set to cap + chunk."""

    chunk_s: float
    buffer_cap_s: float = 60.0
    """A request leaves only when the buffer holds less."""
    poll_s: float = 0.5
    """dash.js 5 `scheduling.defaultTimeout`."""
    start_lag_s: float = 0.012
    """From the first append to the first frame."""
    resume_lag_s: float = 0.003
    """From the append that ends a stall to the next frame."""
    tail_s: float = 0.0
    """Playback stops this long before the end of the buffer, except at the end of the video (0.11 with B-frames)."""


@dataclass(frozen=True)
class Stall:
    """Playback stood still, seconds of the caller's clock."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Account:
    """Where a playback's time went: `startup_s + played_s + rebuffer_s` is `wall_s`."""

    startup_s: float
    played_s: float
    rebuffer_s: float
    wall_s: float


class Playback:
    """One playback of `chunks` chunks; begin, then per chunk: wait until due, append. `now` never goes back."""

    def __init__(self, timing: Timing, chunks: int) -> None:
        self.timing = timing
        self.chunks = chunks
        self.appended = 0
        self._stalls: list[Stall] = []
        self._begin_s = 0.0
        self.last_s = float("-inf")
        """The latest `now` that it was told."""
        self._first_frame_s = 0.0
        self._runs_from_s = 0.0  # the playhead is at _position_s until then, and moves at rate 1 from then on
        self._position_s = 0.0

    def begin(self, now: float) -> None:
        """The first media request leaves: time counts from here."""
        self._begin_s = self._step(now)

    def append(self, now: float) -> float:
        """A chunk is in the buffer. Returns the stall it ended, or for the first chunk the start-up delay, seconds (0: neither)."""
        self._step(now)
        if not self.appended:
            self.appended = 1
            self._runs_from_s = self._first_frame_s = now + self.timing.start_lag_s
            return self._first_frame_s - self._begin_s
        dry_s, limit_s = self._dry_s(), self._limit_s()
        self.appended += 1
        if now <= dry_s:
            return 0.0
        self._position_s, self._runs_from_s = limit_s, now + self.timing.resume_lag_s
        self._stalls.append(Stall(dry_s, self._runs_from_s))
        return self._runs_from_s - dry_s

    def wait_s(self, now: float) -> float:
        """0 when the next request is due, else how long to wait before asking again."""
        return 0.0 if self.buffer_s(now) < self.timing.buffer_cap_s else self.timing.poll_s

    def buffer_s(self, now: float) -> float:
        """Media held, seconds."""
        self._step(now)
        return self.appended * self.timing.chunk_s - self._position_at(now)

    def stalls(self, now: float) -> tuple[Stall, ...]:
        """All stalls, one that still lasts included."""
        self._step(now)
        lasts = 0 < self.appended < self.chunks and now > self._dry_s()
        return (*self._stalls, Stall(self._dry_s(), now)) if lasts else tuple(self._stalls)

    def account(self, now: float) -> Account:
        """Where the time went up to `now`; up to the start of playback that the last append causes, or the end of the video, if it must."""
        stalls = self.stalls(now)
        end_s = max(now, self._runs_from_s) if self.appended else now
        if self.appended == self.chunks:
            end_s = min(end_s, self._dry_s())
        startup_s = (self._first_frame_s if self.appended else now) - self._begin_s
        rebuffer_s = sum(stall.end_s - stall.start_s for stall in stalls)
        return Account(startup_s, self._position_at(end_s), rebuffer_s, end_s - self._begin_s)

    def _limit_s(self) -> float:
        """Position at which playback runs dry with what is appended."""
        tail_s = self.timing.tail_s if self.appended < self.chunks else 0.0
        return max(self._position_s, self.appended * self.timing.chunk_s - tail_s)

    def _dry_s(self) -> float:
        """Time at which playback runs dry with what is appended."""
        return self._runs_from_s + self._limit_s() - self._position_s

    def _position_at(self, now: float) -> float:
        if not self.appended:
            return 0.0
        return min(self._position_s + max(0.0, now - self._runs_from_s), self._limit_s())

    def _step(self, now: float) -> float:
        if not now >= self.last_s:
            raise ValueError(f"time went back: now is {now} s, was {self.last_s} s")
        self.last_s = now
        return now
