"""The Gymnasium environment is the simulator, seen from outside."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from controllers.api import AbrObservation, AbrPolicy
from testbed.metrics import summarise
from testbed.sim.abr import run_session
from testbed.sim.abr_env import ENV_ID, AbrEnv
from tests.abr_cases import session, steady, varied, video
from traces.trace import OpportunityTrace

LEVELS = [(3 * i) % 6 for i in range(47)]


class _Scripted(AbrPolicy):
    def decide(self, observation: AbrObservation) -> int:
        return LEVELS[observation.chunk_index - 1]


@pytest.mark.filterwarnings("ignore:.*maximum value is infinity")
def test_it_passes_gymnasiums_check() -> None:
    check_env(gymnasium.make(f"testbed.sim.abr_env:{ENV_ID}", traces=[varied(), steady(2.0)], video=video(), noise=0.1).unwrapped)


def test_the_mean_reward_is_the_sessions_qoe() -> None:
    env = AbrEnv([varied()], video())
    env.reset(seed=1, options={"trace": 0, "offset_s": 30.0})
    steps = [env.step(np.int64(level)) for level in LEVELS]
    chunks = run_session(varied(), session(), _Scripted(), 1, 30.0)
    assert np.mean([step[1] for step in steps]) == pytest.approx(summarise(chunks, video()).qoe, abs=1e-12)
    assert [step[2] for step in steps] == [False] * 46 + [True]
    assert not any(step[3] for step in steps)
    last = steps[-1][0]
    assert last["chunks_left"] == 0
    assert not last["next_sizes_mb"].any()
    assert last["last_level"].argmax() == LEVELS[-1]
    assert last["throughput_mbps"][-1] == pytest.approx(chunks[-1].throughput_bps / 1e6, rel=1e-6)


def test_starts_are_drawn_from_the_seed() -> None:
    env = AbrEnv([varied(), OpportunityTrace("lte", (0.5, 1.0, 1.5))], video())
    starts = [(info["trace"], info["offset_s"]) for info in (env.reset(seed=seed)[1] for seed in range(30))]
    assert starts == [(info["trace"], info["offset_s"]) for info in (env.reset(seed=seed)[1] for seed in range(30))]
    assert {name for name, _ in starts} == {"varied 1.0", "lte"}
    assert len(set(starts)) > 10
    assert env.reset(options={"trace": 1, "offset_s": 1.0})[1]["trace"] == "lte"


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="no traces were given"):
        AbrEnv([], video())
    with pytest.raises(ValueError, match="1 chunks were asked for, wanted at least 2"):
        AbrEnv([varied()], video(), chunks=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        AbrEnv([varied()], video()).step(np.int64(0))
