"""Gymnasium's view of the scheduling simulator, for training.

`gymnasium.make("testbed.sim.cjs_env:netllm_testbed/Cjs-v1", workloads=..., session=...)`: importing this module is what registers the id.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsSession
from testbed.sim.cjs import STARVED, CjsSimulator, Semantics
from testbed.sim.cjs_compiled import CompiledCjs
from traces.tpch import Profiles
from traces.workload import Workload

ENV_ID = "netllm_testbed/Cjs-v1"
STAGE_FEATURES = ("unstarted", "running", "demand", "mean_task_s", "last_task_s", "job_supply", "job_age_s", "of_source_job")

_Observation = dict[str, Any]


class CjsEnv(gymnasium.Env[_Observation, np.ndarray]):
    """One workload on one cluster; the agent is asked whenever executors are on offer (docs/cjs.md says when that is).

    ## Observation: `Dict` of arrays padded to the largest number of stages that the workloads can have active
    | key | meaning | shape | range, unit |
    | --- | --- | --- | --- |
    | `stages` | float32, one row a stage that is not complete, by job and number; columns below | (most, 8) | |
    | `schedulable` | whether the stage may be chosen | (most,) | 0 or 1 |
    | `job` | row of the stage's job among active jobs; -1 in padding | (most,) | -1 .. |
    | `edges` | parent and child where neither is complete | (most, most) | 0 or 1 |
    | `committable` | executors on offer | (1,) | 0 .. executors |

    Columns of `stages`: unstarted, running, demand (tasks), mean_task_s, last_task_s (s), job_supply (executors), job_age_s (s),
    of_source_job (0 or 1). `controllers.api.CjsObservation` explains them; `env.unwrapped.simulator.observation` is one.

    ## Action: `Box` of two integers
    The stage's row (-1 declines what is left) and a number of executors, which is cut to 1 .. `committable`. A row that is not
    schedulable declines, too; `info["invalid_actions"]` counts those.

    ## Reward
    Minus the seconds that all jobs together spent in the system since the last decision; 0 between decisions at one instant. The sum
    over an episode is minus the sum of job completion times.

    ## Start
    A workload drawn from `workloads`; `options={"workload": index}` fixes it.

    ## End
    Terminated when all jobs are done. Truncated when nothing will happen any more (`info["ended"] == "starved"`): the agent declined
    executors that are never offered again, so the rewards are worth nothing. `info`: `workload`, `now_s`, `ended`, `invalid_actions`,
    at the end `summary`.

    ## Versions
    v1: first.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        workloads: Sequence[Workload],
        session: CjsSession,
        semantics: Semantics = "conserving",
        profiles: Profiles | None = None,
        fast: bool = True,
    ) -> None:
        if not workloads:
            raise ValueError("no workloads were given, wanted at least one")
        self.workloads, self.session = tuple(workloads), session
        self._semantics, self._profiles, self._fast = semantics, profiles, fast
        self._simulator: CompiledCjs | CjsSimulator | None = None
        most = max(sum(len(job.stages) for job in workload.jobs) for workload in workloads)
        self._most = most
        self.action_space = spaces.Box(np.array([-1, 0]), np.array([most - 1, session.executors]), dtype=np.int64)
        self.observation_space = spaces.Dict(
            {
                "stages": spaces.Box(-np.inf, np.inf, (most, len(STAGE_FEATURES)), np.float32),
                "schedulable": spaces.MultiBinary(most),
                "job": spaces.Box(-1, np.iinfo(np.int64).max, (most,), np.int64),
                "edges": spaces.MultiBinary((most, most)),
                "committable": spaces.Box(0, session.executors, (1,), np.int64),
            }
        )

    @property
    def simulator(self) -> CompiledCjs | CjsSimulator:
        """What plays."""
        if self._simulator is None:
            raise gymnasium.error.ResetNeeded("step was called before reset")
        return self._simulator

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[_Observation, dict[str, Any]]:
        """Begin a workload; see the class for `options`."""
        super().reset(seed=seed)
        self._number = int((options or {}).get("workload", self.np_random.integers(len(self.workloads))))
        kind = CompiledCjs if self._fast else CjsSimulator
        self._simulator = kind(self.workloads[self._number], self.session, self._semantics, profiles=self._profiles)
        self._rewarded_s, self._invalid = 0.0, 0
        return self._padded(), self._info()

    def step(self, action: np.ndarray) -> tuple[_Observation, float, bool, bool, dict[str, Any]]:
        """Take a decision."""
        self.simulator.step(self._meant(int(action[0]), int(action[1])))
        in_system_s = self._in_system_s()
        reward, self._rewarded_s = self._rewarded_s - in_system_s, in_system_s
        ended = self.simulator.ended
        return self._padded(), reward, bool(ended) and ended != STARVED, ended == STARVED, self._info()

    def _meant(self, row: int, executors: int) -> CjsAction:
        seen = self.simulator.observation
        if 0 <= row < seen.stages and seen.schedulable[row]:
            return CjsAction(row, min(max(executors, 1), seen.committable))
        self._invalid += row != DECLINE.stage
        return DECLINE

    def _in_system_s(self) -> float:
        """Of all jobs so far."""
        arrived = self.simulator.summary
        return arrived.avg_jct_s * arrived.jobs

    def _padded(self) -> _Observation:
        found: _Observation = {name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items()}  # type: ignore[attr-defined]
        found["job"][:] = -1
        if not self.simulator.ended:
            seen = self.simulator.observation
            found["stages"][: seen.stages] = features(seen)
            found["schedulable"][: seen.stages] = seen.schedulable
            found["job"][: seen.stages] = seen.stage_job
            found["edges"][seen.edges[:, 0], seen.edges[:, 1]] = 1
            found["committable"][0] = seen.committable
        return found

    def _info(self) -> dict[str, Any]:
        ended = self.simulator.ended
        info = {"workload": self._number, "now_s": self.simulator.now_s, "ended": ended, "invalid_actions": self._invalid}
        return {**info, "summary": self.simulator.summary} if ended else info


def features(seen: CjsObservation) -> np.ndarray:
    """The columns of `stages`, (S, 8)."""
    job = seen.stage_job
    columns = (seen.unstarted, seen.running, seen.demand, seen.mean_task_s, seen.last_task_s, seen.supply[job], seen.job_age_s[job])
    return np.stack([*columns, job == seen.source_job], axis=1).astype(np.float32)


gymnasium.register(id=ENV_ID, entry_point="testbed.sim.cjs_env:CjsEnv")
