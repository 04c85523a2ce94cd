"""Scheduling at the decision service: an observation arrives as it was, nonsense is named, bad answers and lost sessions are survived."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy, CjsSession
from controllers.client import DecisionFailed
from controllers.client_cjs import SchedulingClient
from controllers.dialects import DIALECTS
from controllers.protocol import Refusal
from controllers.protocol_cjs import OpenCjs, decode_answer, decode_decide, decode_open, observation, question
from controllers.server import application
from controllers.sessions import Sessions
from testbed.sim.cjs import CjsSimulator
from tests.cjs_cases import Fixed, job, session, workload
from tests.unit.loopback import listening

SESSION = session(4)
JOBS = workload(job(0, (3, 2, 4), ((0, 1), (0, 2))), job(1, (5,)))


def seen() -> CjsObservation:
    simulator = CjsSimulator(JOBS, SESSION, "conserving", Fixed())
    for _ in range(3):
        simulator.step(CjsAction(int(np.flatnonzero(simulator.observation.schedulable)[0]), 1))
    return simulator.observation


SEEN = seen()
ASKED: dict[str, Any] = msgspec.to_builtins(question(SEEN, 1.0))


def test_an_observation_arrives_as_it_was():
    arrived = observation(SESSION, decode_decide(msgspec.json.encode(question(SEEN, 1.0))))
    for field in fields(CjsObservation):
        here, there = getattr(SEEN, field.name), getattr(arrived, field.name)
        if isinstance(here, np.ndarray):
            np.testing.assert_array_equal(here, there)
            assert here.dtype == there.dtype and here.shape == there.shape
        else:
            assert here == there


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 9}, "version is 9"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"now_s": -1.0}, "now_s is -1.0"),
        ({"source_job": 7}, "source_job is 7"),
        ({"supply": [1]}, "supply is 1, wanted 2"),
        ({"job_first": [0, 3, 2]}, "job_first is"),
        ({"stage_job": [5] * SEEN.stages}, "stage_job is"),
        ({"stage_job": ASKED["stage_job"][::-1]}, r"stage_job is \[1, 0, 0, 0\], wanted the row of the job that job_first says"),
        ({"edges": [[0, 99]]}, "edges is"),
        ({"edges": [[0, 1], [2, 0]]}, r"edges is \(2, 0\), wanted rows of a stage and a later one of the same job"),
        ({"edges": [[1, 1]]}, r"edges is \(1, 1\)"),
        ({"edges": [[2, 3]]}, r"edges is \(2, 3\)"),
        ({"edges": [[-1, 0]]}, r"edges is \(-1, 0\)"),
        ({"job_id": [0, 2**70]}, f"job_id is {2**70}, wanted 0 to 1000000000"),
        ({"supply": [-1, 0]}, "supply is -1, wanted 0"),
        ({"running": [-1] * SEEN.stages}, "running is -1, wanted 0"),
        ({"demand": [-(2**63)] * SEEN.stages}, "demand is -9223372036854775808, wanted -1000000000 to 1000000000"),
        ({"mean_task_s": [-1.0] * SEEN.stages}, "mean_task_s is -1.0"),
        ({"schedulable": [False] * SEEN.stages}, "schedulable is 'none'"),
        ({"unstarted": ["x"] * SEEN.stages}, "Expected `int`"),
    ],
)
def test_a_question_without_sense_is_refused_by_its_first_bad_field(change, told):
    with pytest.raises(Refusal, match=told):
        decode_decide(msgspec.json.encode(ASKED | change))


def test_openings_and_answers_without_sense_are_refused():
    good = msgspec.to_builtins(OpenCjs(session=SESSION, policy="fair", seed=1))
    assert decode_open(msgspec.json.encode(good)).session == SESSION
    for change in ({"executors": 0}, {"moving_delay_s": -1.0}, {"session_id": "a b"}):
        with pytest.raises(Refusal, match=next(iter(change))):
            decode_open(msgspec.json.encode(good | {"session": good["session"] | change}))
    with pytest.raises(Refusal, match="committable"):
        observation(CjsSession("s", 1), decode_decide(msgspec.json.encode(ASKED | {"committable": 2})))
    for body in (b'{"stage":99,"executors":1,"policy_s":0}', b'{"stage":0,"executors":1,"policy_s":-1}', b"nonsense"):
        with pytest.raises(Refusal) as raised:
            decode_answer(body, SEEN)
        assert raised.value.code == "invalid"


class Numb(CjsPolicy):
    """Answers what it is made with."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def decide(self, observation: CjsObservation) -> CjsAction:
        return self.answer(observation) if callable(self.answer) else self.answer  # type: ignore[return-value]


@contextlib.asynccontextmanager
async def asking(answer: object) -> AsyncIterator[SchedulingClient]:
    sessions = Sessions(9, 100.0, DIALECTS["cjs"])

    def factory(reference: str) -> Callable[[], CjsPolicy]:
        return lambda: Numb(answer)

    await sessions.preload("numb", factory)
    async with listening(application(sessions)) as url:
        client = SchedulingClient(url, SESSION, "numb", 1)
        try:
            yield client
        finally:
            await client.close(0.3)
    sessions.shutdown()


async def test_a_decision_makes_its_way_and_a_session_that_was_never_opened_is():
    row = int(np.flatnonzero(SEEN.schedulable)[0])
    async with asking(CjsAction(row, 1)) as client:
        answer = await client.decide(SEEN, 5.0)
        assert (answer.stage, answer.executors) == (row, 1)
        assert answer.policy_s >= 0
    async with asking(DECLINE) as client:
        assert (await client.decide(SEEN, 5.0)).stage == -1


@pytest.mark.parametrize("answer", [None, 3, CjsAction(0, 0), CjsAction(99, 1), CjsAction(0, 99)])
async def test_an_answer_that_can_not_be_meant_is_invalid(answer):
    async with asking(answer) as client:
        with pytest.raises(DecisionFailed) as raised:
            await client.decide(SEEN, 5.0)
        assert raised.value.reason == "invalid"


async def test_a_policy_that_raises_is_an_error_and_told():
    def fail(seen: CjsObservation) -> CjsAction:
        raise RuntimeError("no idea")

    async with asking(fail) as client:
        with pytest.raises(DecisionFailed, match="no idea") as raised:
            await client.decide(SEEN, 5.0)
        assert raised.value.reason == "error"
