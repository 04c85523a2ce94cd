"""Gymnasium's view of the ABR simulator, for training.

`gymnasium.make("testbed.sim.abr_env:netllm_testbed/Abr-v1", traces=..., video=...)`: importing this module is what registers the id.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from controllers.api import AbrSession, Manifest
from testbed.metrics import qoe_lin
from testbed.sim.abr import AbrSimulator
from testbed.units import mbps_from_bps
from traces.trace import RateTrace, Trace

ENV_ID = "netllm_testbed/Abr-v1"

HISTORY = 8
"""Chunks of history in an observation (Pensieve, SIGCOMM 2017, section 4.2: k = 8)."""

BYTES_PER_MEGABYTE = 1e6

_Observation = dict[str, np.ndarray]


class AbrEnv(gymnasium.Env[_Observation, np.int64]):
    """One playback of `chunks` chunks of a video over a trace; the agent chooses the level of each chunk but the first.

    ## Observation: `Dict` of float32 arrays (newest last; zeros where there is no history yet)
    | key | meaning | shape | range, unit |
    | --- | --- | --- | --- |
    | `throughput_mbps` | size over download time of the last chunks | (8,) | 0 .. inf, Mbit/s |
    | `download_s` | their download times, round trip included | (8,) | 0 .. inf, s |
    | `buffer_s` | media in the buffer now | (1,) | 0 .. 60, s |
    | `last_level` | one-hot level of the last chunk | (levels,) | 0 or 1 |
    | `next_sizes_mb` | size of the next chunk at each level; zeros after the last | (levels,) | 0 .. inf, megabyte |
    | `chunks_left` | chunks still to fetch | (1,) | 0 .. chunks |

    ## Action: `Discrete(levels)`
    The level of the next chunk, 0 lowest.

    ## Reward
    `qoe_lin` of the chunk that the action downloaded: Mbit/s - 4.3 x stall s - |change in Mbit/s|. Chunk 0, which nobody chose, is not
    rewarded, so the mean reward of an episode is the session's QoE as reported everywhere in this project.

    ## Start
    A trace drawn from `traces`, at an offset drawn from the times of its samples (Pensieve's random start); chunk 0 comes at level 0.
    `options={"trace": index, "offset_s": seconds}` fixes either. `noise` is Pensieve's 0.1 in training, 0 (default) in testing.

    ## End
    Terminated after the last chunk; never truncated. `info`: `trace`, `offset_s`, `index`, `rebuffer_s`, `waited_s`, `trace_s`.

    ## Versions
    v1: first.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, traces: Sequence[Trace], video: Manifest, chunks: int = 48, noise: float = 0.0) -> None:
        if not traces:
            raise ValueError("no traces were given, wanted at least one")
        if chunks < 2:
            raise ValueError(f"{chunks} chunks were asked for, wanted at least 2: the first is not chosen")
        self.traces = tuple(traces)
        self.session = AbrSession("environment", video, chunks)
        self._noise = noise
        self._simulator: AbrSimulator | None = None
        self.action_space = spaces.Discrete(video.levels)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "throughput_mbps": _box(HISTORY),
                "download_s": _box(HISTORY),
                "buffer_s": _box(1, self.session.buffer_cap_s),
                "last_level": _box(video.levels, 1.0),
                "next_sizes_mb": _box(video.levels),
                "chunks_left": _box(1, float(chunks)),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[_Observation, dict[str, Any]]:
        """Begin a session; see the class for `options`."""
        super().reset(seed=seed)
        options = options or {}
        number = options.get("trace", int(self.np_random.integers(len(self.traces))))
        self._trace = self.traces[number]
        self._offset_s = float(options.get("offset_s", self._random_offset_s()))
        self._simulator = AbrSimulator(self._trace, self.session, self._offset_s, self._noise, self.np_random)
        self._simulator.step(self.session.first_level)
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[_Observation, float, bool, bool, dict[str, Any]]:
        """Download the next chunk at level `action`."""
        if self._simulator is None:
            raise gymnasium.error.ResetNeeded("step was called before reset")
        bitrates_bps = self.session.video.bitrates_bps
        last = self._simulator.history[-1]
        chunk = self._simulator.step(int(action))
        reward = qoe_lin(bitrates_bps[chunk.level], chunk.rebuffer_s, bitrates_bps[last.level])
        return self._observation(), reward, self._simulator.done, False, self._info()

    def _random_offset_s(self) -> float:
        times_s = self._trace.edges_s[:-1] if isinstance(self._trace, RateTrace) else self._trace.times_s
        return times_s[int(self.np_random.integers(len(times_s)))]

    def _observation(self) -> _Observation:
        assert self._simulator is not None
        history, video = self._simulator.history, self.session.video
        sizes_bytes = (0,) * video.levels if self._simulator.done else video.sizes_bytes[len(history)]
        return {
            "throughput_mbps": _recent([mbps_from_bps(chunk.throughput_bps) for chunk in history[-HISTORY:]]),
            "download_s": _recent([chunk.download_s for chunk in history[-HISTORY:]]),
            "buffer_s": np.array([self._simulator.buffer_s], dtype=np.float32),
            "last_level": np.eye(video.levels, dtype=np.float32)[history[-1].level],
            "next_sizes_mb": np.asarray(sizes_bytes, dtype=np.float32) / np.float32(BYTES_PER_MEGABYTE),
            "chunks_left": np.array([self.session.chunks - len(history)], dtype=np.float32),
        }

    def _info(self) -> dict[str, Any]:
        assert self._simulator is not None
        last = self._simulator.history[-1]
        return {
            "trace": self._trace.name,
            "offset_s": self._offset_s,
            "index": last.index,
            "rebuffer_s": last.rebuffer_s,
            "waited_s": last.waited_s,
            "trace_s": self._simulator.trace_s,
        }


def _box(size: int, high: float = np.inf) -> spaces.Box:
    return spaces.Box(0.0, high, (size,), np.float32)


def _recent(values: list[float]) -> np.ndarray:
    padded = np.zeros(HISTORY, dtype=np.float32)  # (HISTORY,)
    padded[HISTORY - len(values) :] = values
    return padded


gymnasium.register(id=ENV_ID, entry_point="testbed.sim.abr_env:AbrEnv")
