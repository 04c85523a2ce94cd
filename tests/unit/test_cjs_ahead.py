"""Look-ahead: the compiled rule is the rule, costs are what comes to pass, and looking changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from controllers.api import CjsAction
from controllers.cjs.srpt_cap import NUMBERS, SrptCap
from testbed.sim.cjs_ahead import LookAhead
from testbed.sim.cjs_compiled import CompiledCjs
from tests.cjs_cases import Random, random_workload, session
from traces.tpch import Profiles

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
SEMANTICS = ["published", "conserving"]


def without_spread(profiles: Profiles) -> Profiles:
    """One duration of each kind, whatever the level: nothing is left to chance."""
    recorded = profiles.recorded.copy()
    recorded[:] = recorded[:, :1]
    recorded[..., 1] = 1
    return replace(profiles, recorded=recorded, ordered_ms=profiles.durations_ms)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("executors", [2, 7, 50])
def test_the_compiled_rule_decides_as_the_rule(executors, semantics):
    """On states that a random policy leads to."""
    rule, wanderer = SrptCap(), Random(decline=9)
    for seed in range(4):
        made, profiles = random_workload(seed, jobs=14, interarrival_s=3.0)
        ahead, simulator = LookAhead(NUMBERS, profiles), CompiledCjs(made, session(executors), semantics, profiles)
        wanderer.reset(session(executors), seed)
        while not simulator.ended:
            seen = simulator.observation
            wanted = rule.decide(seen)
            assert ahead.rule(simulator) == (wanted.stage, wanted.executors)
            simulator.step(wanderer.decide(seen))


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_costs_are_what_comes_to_pass(semantics):
    """All jobs are here and durations are certain: each candidate's cost is the time that jobs then really spend."""
    made, profiles = random_workload(3, jobs=6, interarrival_s=1e-3)
    profiles, playing = without_spread(profiles), session(5)
    ahead, tried = LookAhead(NUMBERS, profiles), 0
    for before in range(0, 24, 3):
        first = played(made, profiles, playing, semantics, ahead, before)
        if first.ended:
            break
        found, here, now_s = ahead.candidates(first), first.observation.job_id, first.now_s
        for stage, executors, cost_s in zip(found.stage, found.executors, found.cost_s, strict=True):
            other = played(made, profiles, playing, semantics, ahead, before)
            other.step(CjsAction(int(stage), int(executors)))
            while not other.ended:
                other.step(CjsAction(*ahead.rule(other)))
            done_s = other._board.job_reals[here, 1] / 1000
            assert cost_s == pytest.approx(float((done_s - now_s).sum()))
            tried += 1
    assert tried > 20


def played(made, profiles, playing, semantics, ahead, decisions):
    """After some decisions of the rule, when all jobs have come."""
    simulator = CompiledCjs(made, playing, semantics, profiles)
    while not simulator.ended and (simulator.now_s < 0.1 or decisions > 0):
        decisions -= simulator.now_s >= 0.1
        simulator.step(CjsAction(*ahead.rule(simulator)))
    return simulator


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_looking_changes_nothing(semantics):
    made, profiles = random_workload(5, jobs=8, interarrival_s=2.0)
    ahead, ends = LookAhead(NUMBERS, profiles), []
    for looks in (False, True):
        simulator = CompiledCjs(made, session(6), semantics, profiles, logged=True)
        while not simulator.ended:
            if looks:
                ahead.candidates(simulator)
            simulator.step(CjsAction(*ahead.rule(simulator)))
        ends.append((simulator.log, simulator.summary))
    assert ends[0] == ends[1]


def test_candidates_can_be_meant_and_the_first_is_the_rules():
    made, profiles = random_workload(2, jobs=12, interarrival_s=2.0)
    ahead, simulator = LookAhead(NUMBERS, profiles), CompiledCjs(made, session(9), "published", profiles)
    several = 0
    while not simulator.ended:
        seen, found = simulator.observation, ahead.candidates(simulator)
        stage, executors = ahead.rule(simulator)
        assert (found.stage[0], found.executors[0]) == (stage, min(executors, seen.demand[stage]))
        assert seen.schedulable[found.stage].all()
        assert (found.executors >= 1).all()
        assert (found.executors <= np.minimum(seen.demand[found.stage], seen.committable)).all()
        assert len(set(zip(found.stage, found.executors, strict=True))) == len(found.stage)
        several += len(found.stage) > 3
        simulator.step(CjsAction(stage, executors))
    assert several > 5


def test_a_rule_of_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="the rule has 3 numbers, wanted 17"):
        LookAhead(NUMBERS[:3], random_workload(1)[1])
