"""The scheduling simulator: time, moving, endings, what may be seen; and the compiled one equal to it start by start."""

import importlib.util
import warnings
from dataclasses import fields

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy
from controllers.cjs.fair import Fair
from controllers.cjs.fifo_full import FifoFull
from controllers.cjs.srpt_cap import SrptCap
from testbed.cluster.invariants import validate
from testbed.metrics import summarise_schedule
from testbed.sim.cjs import COMPLETE, STARVED, CjsSimulator, play
from testbed.sim.cjs_compiled import CompiledCjs
from testbed.sim.cjs_env import CjsEnv
from testbed.sim.compiled import compiled, stamp
from tests.cjs_cases import Fixed, Random, job, play_out, random_workload, session, workload

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
CHAIN = ((0, 1),)
SEMANTICS = ["published", "conserving"]


class Always(CjsPolicy):
    """The same answer to everything."""

    label, colour, citation = "Always", "#000000", "nobody, nowhere"

    def __init__(self, action: CjsAction) -> None:
        self.action = action

    def decide(self, observation: CjsObservation) -> CjsAction:
        return self.action


def test_times_by_hand():
    """Two tasks of 1 s (cold: 1.5 s) on one executor, then one of 2 s; the executor is at the job after 2 s."""
    simulator = CjsSimulator(workload(job(0, (2, 1), CHAIN)), session(1), durations=Fixed())
    simulator.log = []
    play_out(simulator, FifoFull(), session(1))
    assert [(start.at_s, start.stage, start.duration_s) for start in simulator.log] == [(2.0, 0, 1.5), (3.5, 0, 1.0), (4.5, 1, 2.5)]
    found = simulator.summary
    assert (found.avg_jct_s, found.makespan_s, found.jobs, found.unfinished) == (7.0, 7.0, 1, 0)
    assert found.busy_share == pytest.approx(5.0 / 7.0)
    assert simulator.ended == COMPLETE


def test_moving_between_jobs_takes_the_delay():
    for delay_s in (0.0, 2.0, 10.0):
        jobs = workload(job(0, (1,)), job(1, (1,)))
        simulator = CjsSimulator(jobs, session(1, delay_s), durations=Fixed())
        simulator.log = []
        play_out(simulator, FifoFull(), session(1, delay_s))
        assert [start.at_s for start in simulator.log] == [delay_s, 2 * delay_s + 1.5]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_who_declines_for_ever_ends_starved(semantics):
    made, profiles = random_workload(1)
    for simulator in (CjsSimulator(made, session(), semantics, profiles=profiles), CompiledCjs(made, session(), semantics, profiles)):
        assert play_out(simulator, Always(DECLINE), session(), steps=1000)
        assert simulator.ended == STARVED
        found = simulator.summary
        assert found.unfinished == found.jobs == len(made.jobs)
        assert found.busy_share == 0.0
        with pytest.raises(ValueError, match="ended: starved"):
            simulator.step(DECLINE)


def test_a_policy_that_declines_once_starves_in_the_published_rules_only():
    """Everything comes at 0 s, so nobody ever offers the common pool again."""

    class Once(FifoFull):
        def decide(self, observation):
            self.asked = getattr(self, "asked", 0) + 1
            return DECLINE if self.asked == 2 else super().decide(observation)

    jobs = workload(job(0, (1,)), job(1, (8,)))
    ends = {}
    for semantics in SEMANTICS:
        simulator = CjsSimulator(jobs, session(1), semantics, durations=Fixed())
        play_out(simulator, Once(), session(1))
        ends[semantics] = simulator.ended
    assert ends == {"published": STARVED, "conserving": STARVED}, "nothing happens after a refusal at the last event, whatever the rules"


def test_idle_executors_are_used_by_conserving_rules():
    """A job comes while one executor is idle at the other's: published rules leave the declined ones in the common pool for good."""

    class OneEach(CjsPolicy):
        label, colour, citation = "One each", "#000000", "nobody, nowhere"

        def decide(self, observation):
            rows = np.flatnonzero(observation.schedulable & (observation.supply[observation.stage_job] < 1))
            return CjsAction(int(rows[0]), 1) if len(rows) else DECLINE

    jobs = workload(job(0, (4, 4), CHAIN), job(1, (4,), arrival_s=1.0))
    published, conserving = (CjsSimulator(jobs, session(3), semantics, durations=Fixed()) for semantics in SEMANTICS)
    for simulator in (published, conserving):
        play_out(simulator, OneEach(), session(3))
    assert published.decisions < conserving.decisions


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("seed", range(6))
def test_random_play_holds_every_invariant(semantics, seed):
    made, profiles = random_workload(seed)
    simulator, policy = CjsSimulator(made, session(5), semantics, profiles=profiles), Random()
    policy.reset(session(5), seed)
    while not simulator.ended:
        validate(simulator.engine)
        simulator.step(policy.decide(simulator.observation))
    validate(simulator.engine)
    assert simulator.ended == COMPLETE
    assert simulator.summary.unfinished == 0


def same(one: CjsObservation, other: CjsObservation) -> bool:
    """Equal, but for the last bits of times."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(CjsObservation)]
    arrays = [(a, b) for a, b in pairs if isinstance(a, np.ndarray)]
    return all(a == b for a, b in pairs if not isinstance(a, np.ndarray)) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol=1e-12, atol=1e-9) for a, b in arrays
    )


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("seed", range(12))
def test_the_compiled_simulator_starts_the_same_tasks_at_the_same_times(semantics, seed):
    made, profiles = random_workload(seed, jobs=10, interarrival_s=5.0)
    executors = 3 + 4 * seed
    plain = CjsSimulator(made, session(executors), semantics, profiles=profiles)
    plain.log = []
    fast, policy = CompiledCjs(made, session(executors), semantics, profiles, logged=True), Random(decline=6)
    policy.reset(session(executors), seed)
    while not plain.ended:
        seen = plain.observation
        assert same(seen, fast.observation)
        action = policy.decide(seen)
        plain.step(action)
        fast.step(action)
    assert plain.log == fast.log
    assert (plain.ended, plain.decisions, plain.summary) == (fast.ended, fast.decisions, fast.summary)
    assert len(plain.log) > 20


def test_many_executors_and_one():
    made, profiles = random_workload(3)
    for executors in (1, 130):
        plain, fast = CjsSimulator(made, session(executors), profiles=profiles), CompiledCjs(made, session(executors), profiles=profiles)
        assert play(plain, Fair(), session(executors), 1) == play(fast, Fair(), session(executors), 1)


@pytest.mark.parametrize("compiled_one", [False, True])
def test_an_action_that_can_not_be_meant_is_refused_and_changes_nothing(compiled_one):
    made, profiles = random_workload(4)
    simulator = CompiledCjs(made, session(), profiles=profiles) if compiled_one else CjsSimulator(made, session(), profiles=profiles)
    seen = simulator.observation
    (allowed,) = np.flatnonzero(seen.schedulable)[:1].tolist()
    for action in (CjsAction(99, 1), CjsAction(-2, 1), CjsAction(allowed, 0), CjsAction(allowed, 99)):
        with pytest.raises(ValueError, match="wanted"):
            simulator.step(action)
    for row in np.flatnonzero(~seen.schedulable).tolist():
        with pytest.raises(ValueError, match="schedulable"):
            simulator.step(CjsAction(row, 1))
    assert same(simulator.observation, seen)
    simulator.step(CjsAction(allowed, 1))


def test_only_published_semantics_show_a_duration_before_its_task_ends():
    made, profiles = random_workload(5)
    for semantics in SEMANTICS:
        simulator, policy = CjsSimulator(made, session(3), semantics, profiles=profiles), Fair()
        simulator.log = []
        policy.reset(session(3), 1)
        early = 0
        while not simulator.ended:
            seen = simulator.observation
            known_s = {(s.job, s.stage, s.duration_s) for s in simulator.log if s.at_s + s.duration_s <= simulator.now_s + 1e-9}
            for row in range(seen.stages):
                shown_s = seen.last_task_s[row]
                if shown_s != seen.mean_task_s[row]:
                    key = int(seen.job_id[seen.stage_job[row]]), int(seen.stage_id[row])
                    early += not any(k[:2] == key and abs(k[2] - shown_s) < 1e-9 for k in known_s)
            simulator.step(policy.decide(seen))
        assert (early > 0) == (semantics == "published")


def test_frozen_work_is_the_same_under_every_scheduler():
    """The duration of a task that starts with the same kind and as many executors does not depend on who scheduled it."""
    made, profiles = random_workload(6)
    logs = []
    for policy in (Fair(), SrptCap()):
        simulator = CjsSimulator(made, session(3), "conserving", profiles=profiles)
        kinds: dict[tuple, float] = {}
        draw_ms = simulator._durations.draw_ms

        def noting(*task, draw_ms=draw_ms, kinds=kinds):
            kinds[task] = draw_ms(*task)
            return kinds[task]

        simulator._durations.draw_ms = noting
        play_out(simulator, policy, session(3))
        logs.append(kinds)
    shared = set(logs[0]) & set(logs[1])
    assert len(shared) > 50
    assert all(logs[0][task] == logs[1][task] for task in shared)


def test_the_summary_by_hand():
    found = summarise_schedule([0.0, 10.0, 20.0], [5.0, 30.0, None], 40.0, 2, 50.0)
    assert found.avg_jct_s == pytest.approx((5 + 20 + 30) / 3)
    assert found.p50_jct_s == 20.0
    assert (found.makespan_s, found.jobs, found.unfinished) == (50.0, 3, 1)
    assert found.busy_share == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no job"):
        summarise_schedule([], [], 0.0, 1, 0.0)


def test_the_environment_keeps_gymnasiums_promises():
    made, profiles = random_workload(7)
    environment = CjsEnv([made], session(4), profiles=profiles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on normalised spaces
        check_env(environment, skip_render_check=True)


def test_an_action_without_sense_declines_and_is_counted():
    made, profiles = random_workload(7)
    environment = CjsEnv([made], session(4), profiles=profiles)
    environment.reset(seed=1)
    taken = environment.simulator.decisions
    info = environment.step(np.array([environment.simulator.observation.stages, 1]))[4]
    assert (info["invalid_actions"], environment.simulator.decisions) == (1, taken + 1)


@pytest.mark.parametrize("fast", [False, True])
def test_rewards_add_up_to_the_time_that_jobs_were_in_the_system(fast):
    made, profiles = random_workload(8)
    environment = CjsEnv([made], session(3), profiles=profiles, fast=fast)
    observation, info = environment.reset(seed=1)
    total, over, truncated = 0.0, False, False
    while not over:
        row = int(np.flatnonzero(observation["schedulable"])[0])
        observation, reward, over, truncated, info = environment.step((row, environment.simulator.observation.committable))
        total += reward
    assert not truncated
    assert info["ended"] == COMPLETE
    assert -total == pytest.approx(info["summary"].avg_jct_s * len(made.jobs))


def test_the_environment_truncates_what_starves():
    made, profiles = random_workload(9)
    environment = CjsEnv([made], session(3), profiles=profiles)
    environment.reset(seed=1)
    over = truncated = False
    for _ in range(1000):
        _, _, over, truncated, info = environment.step((-1, 0))
        if over or truncated:
            break
    assert (over, truncated, info["ended"]) == (False, True, STARVED)


def test_the_environment_is_registered():
    made, profiles = random_workload(7)
    environment = gymnasium.make("testbed.sim.cjs_env:netllm_testbed/Cjs-v1", workloads=[made], session=session(2), profiles=profiles)
    assert environment.reset(seed=3)[1]["workload"] == 0


def test_what_is_compiled_is_forgotten_when_its_file_or_one_of_the_folder_changes(tmp_path, monkeypatch):
    """Numba's own stamp knows only the function's file; ours must be what the cache is asked with."""

    def module(factor):
        (tmp_path / "once.py").write_text(f"FACTOR = {factor}\n\ndef times(x):\n    return FACTOR * x\n")
        spec = importlib.util.spec_from_file_location("once", tmp_path / "once.py")
        assert spec and spec.loader
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    made = compiled(module(2).times)
    assert made(2) == 4
    assert made._cache._cache_file._source_stamp == stamp(made.py_func)
    again = compiled(module(2).times)
    assert again(2) == 4 and again.stats.cache_hits, "an equal stamp: what is kept is used"
    other = compiled(module(3).times)
    assert other(2) == 6 and not other.stats.cache_hits, "a constant of its file"
    monkeypatch.setattr("testbed.sim.compiled.folder_stamp", lambda: b"another")
    anew = compiled(module(3).times)
    assert anew(2) == 6 and not anew.stats.cache_hits


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_time_in_the_system_is_that_of_the_summary(semantics):
    made, profiles = random_workload(4)
    simulator, policy = CompiledCjs(made, session(3), semantics, profiles), FifoFull()
    policy.reset(session(3), 1)
    while not simulator.ended:
        simulator.step(policy.decide(simulator.observation))
        summary = simulator.summary
        assert simulator.in_system_s == pytest.approx(summary.avg_jct_s * summary.jobs)
