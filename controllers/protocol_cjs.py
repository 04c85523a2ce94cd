"""What the cluster's driver and the decision service say to each other about scheduling; paths and failures are `controllers.protocol`'s.

A `DecideCjs` holds the whole observation, so a session that the service lost goes on after a second `OpenCjs` (with a policy that starts
afresh: its random draws begin anew).
"""

from dataclasses import fields
from itertools import pairwise

import msgspec
import numpy as np

from controllers.api import CjsAction, CjsObservation, CjsSession
from controllers.protocol import VERSION, Refusal, check, check_asking, check_opening, check_policy_s, check_s, check_session_id, decode
from testbed.cluster.observe import checked, fits
from testbed.errors import AnswerError

MAX_EXECUTORS = 10_000
MAX_COUNT = 10**9
"""Of tasks, executors or jobs."""
_INTEGERS = ("job_id", "job_first", "supply", "stage_id", "stage_job", "unstarted", "running", "demand")
_REALS = ("job_age_s", "mean_task_s", "last_task_s")
_FLAGS = ("runnable", "schedulable")
_JOB_ROWS = ("job_id", "job_age_s", "supply")
_STAGE_ROWS = ("stage_id", "stage_job", "unstarted", "running", "demand", "mean_task_s", "last_task_s", "runnable", "schedulable")


class OpenCjs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start a session."""

    version: int = VERSION
    session: CjsSession
    policy: str
    """One of the references that the service preloaded."""
    seed: int


class DecideCjs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which stage gets how many executors? All but the first two fields are those of `CjsObservation`."""

    version: int = VERSION
    deadline_s: float
    """How long the driver waits; a decision that has not begun by then is not begun."""
    now_s: float
    committable: int
    source_job: int
    job_id: list[int]
    job_age_s: list[float]
    job_first: list[int]
    supply: list[int]
    stage_id: list[int]
    stage_job: list[int]
    unstarted: list[int]
    running: list[int]
    demand: list[int]
    mean_task_s: list[float]
    last_task_s: list[float]
    runnable: list[bool]
    schedulable: list[bool]
    edges: list[tuple[int, int]]


class AnswerCjs(msgspec.Struct, frozen=True, kw_only=True):
    """The action, by row of the observation (-1: none), and how long the policy computed."""

    stage: int
    executors: int
    policy_s: float


def question(observation: CjsObservation, deadline_s: float) -> DecideCjs:
    """The message that asks about `observation`."""
    seen = {field.name: getattr(observation, field.name) for field in fields(observation) if field.name != "session"}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in seen.items()}
    return DecideCjs(deadline_s=deadline_s, **plain)


def decode_open(body: bytes) -> OpenCjs:
    """A checked `OpenCjs`; `Refusal` names the first field that is wrong."""
    message = decode(body, OpenCjs)
    check_opening(message.version, message.policy, message.seed)
    session = message.session
    check_session_id(session.session_id)
    check("session.executors", session.executors, 1 <= session.executors <= MAX_EXECUTORS, f"1 to {MAX_EXECUTORS}")
    check_s("session.moving_delay_s", session.moving_delay_s)
    return message


def decode_decide(body: bytes) -> DecideCjs:
    """A checked `DecideCjs`: lengths agree, numbers are in range, stages lie by job, and edges lead to later stages of the same job."""
    message = decode(body, DecideCjs)
    check_asking(message.version, message.deadline_s)
    check_s("now_s", message.now_s)
    jobs, stages = len(message.job_id), len(message.stage_id)
    for names, rows in ((_JOB_ROWS, jobs), (_STAGE_ROWS, stages)):
        for name in names:
            check(name, len(getattr(message, name)), len(getattr(message, name)) == rows, f"{rows} entries")
    check("source_job", message.source_job, -1 <= message.source_job < jobs, f"-1 to {jobs - 1}")
    firsts = message.job_first
    rising = len(firsts) == jobs + 1 and firsts[0] == 0 and firsts[-1] == stages and firsts == sorted(firsts)
    check("job_first", firsts[:20], rising, f"{jobs + 1} rising rows from 0 to {stages}")
    by_job = [row for row, (first, end) in enumerate(pairwise(firsts)) for _ in range(first, end)]
    check("stage_job", message.stage_job[:20], message.stage_job == by_job, "the row of the job that job_first says")
    for parent, child in message.edges:
        down = 0 <= parent < child < stages and by_job[parent] == by_job[child]
        check("edges", (parent, child), down, f"rows of a stage and a later one of the same job, from 0 to {stages - 1}")
    for name in _INTEGERS:
        least = -MAX_COUNT if name == "demand" else 0
        values = getattr(message, name)
        for value in (min(values, default=0), max(values, default=0)):
            check(name, value, least <= value <= MAX_COUNT, f"{least} to {MAX_COUNT}")
    for name in _REALS:
        for value in getattr(message, name):
            check_s(name, value)
    check("schedulable", "none", any(message.schedulable), "at least one")
    return message


def observation(session: CjsSession, message: DecideCjs) -> CjsObservation:
    """What the policy is told; `Refusal` when more executors are on offer than the session has."""
    check("committable", message.committable, 1 <= message.committable <= session.executors, f"1 to {session.executors}")
    kinds = dict.fromkeys(_INTEGERS, np.int64) | dict.fromkeys(_REALS, np.float64) | dict.fromkeys(_FLAGS, np.bool_)
    return CjsObservation(
        session=session,
        now_s=message.now_s,
        committable=message.committable,
        source_job=message.source_job,
        edges=np.array(message.edges, np.int64).reshape(-1, 2),
        **{name: np.array(getattr(message, name), kind) for name, kind in kinds.items()},
    )


def answer(decided: object, seen: CjsObservation, policy_s: float) -> AnswerCjs:
    """What the policy decided, if it is an action that can be meant; else `Refusal`."""
    try:
        action = checked(decided, seen)
    except AnswerError as error:
        raise Refusal("invalid", f"the policy {error}") from None
    return AnswerCjs(stage=action.stage, executors=action.executors, policy_s=policy_s)


def decode_answer(body: bytes, seen: CjsObservation) -> AnswerCjs:
    """A checked `AnswerCjs`; `Refusal("invalid")` when it is garbage or can't be meant."""
    try:
        message = decode(body, AnswerCjs)
        check("stage", message.stage, fits(CjsAction(message.stage, message.executors), seen), "-1, or a schedulable row with executors")
        check_policy_s(message.policy_s)
    except Refusal as refusal:
        raise Refusal("invalid", refusal.message) from None
    return message
