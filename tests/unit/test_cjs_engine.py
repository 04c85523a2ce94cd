"""The scheduling engine: rules one by one, and random walks of all events, losses among them, with every invariant checked after each."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.cluster.engine import CONSERVING, PUBLISHED, Engine, Rules
from testbed.cluster.events import (
    DECLINE,
    AskDecision,
    DecisionGiven,
    Event,
    ExecutorArrived,
    ExecutorJoined,
    ExecutorLost,
    Instruction,
    JobArrived,
    JobDone,
    LossNoted,
    MoveExecutor,
    OutputsLost,
    StartTask,
    TaskFailed,
    TaskFinished,
)
from testbed.cluster.invariants import InvariantError, validate
from tests.cjs_cases import job
from traces.tpch import FIRST, FRESH, REST
from traces.workload import Job

CHAIN = ((0, 1),)


class Told:
    """An engine whose every event is followed by a check."""

    def __init__(self, executors: int, rules: Rules = PUBLISHED) -> None:
        self.engine, self.now_s = Engine(executors, rules), 0.0

    def __call__(self, event: Event) -> list[Instruction]:
        self.now_s += 1.0
        said = self.engine.handle(event, self.now_s)
        validate(self.engine)
        return said


def test_a_job_that_arrives_is_asked_about_and_its_executors_move_then_start():
    tell = Told(3)
    assert tell(JobArrived(job(0, (2, 1), CHAIN))) == [AskDecision(3)]
    assert tell(DecisionGiven(0, 0, 3)) == [AskDecision(1)], "two tasks take two executors; the third may go to the next stage"
    assert tell(DecisionGiven(0, 1, 1)) == [MoveExecutor(0, 0, 0), MoveExecutor(1, 0, 0), MoveExecutor(2, 0, 1)]
    assert tell(ExecutorArrived(0)) == [StartTask(0, 0, 0, 0, FRESH, 1)]
    assert tell(ExecutorArrived(1)) == [StartTask(1, 0, 0, 1, FRESH, 2)]


@pytest.mark.parametrize("rules", [PUBLISHED, CONSERVING])
def test_an_executor_for_a_stage_that_can_not_run_yet_waits(rules):
    tell = Told(2, rules)
    tell(JobArrived(job(0, (1, 1), CHAIN)))
    tell(DecisionGiven(0, 0, 1))
    tell(DecisionGiven(0, 1, 1))
    tell(ExecutorArrived(0))
    assert tell(ExecutorArrived(1)) == [], "its parent still runs"
    said = tell(TaskFinished(0))
    if rules is PUBLISHED:
        assert said == [AskDecision(2)], "published: both are on offer when the stage ends"
        said = tell(DecisionGiven(0, 1, 1))
        assert said == [StartTask(0, 0, 1, 0, FRESH, 2)]
    else:
        assert said == [StartTask(1, 0, 1, 0, FRESH, 2)], "conserving: who waits for a stage starts with it"


def test_an_executor_stays_at_its_stage_unasked_and_is_warm():
    tell = Told(1)
    tell(JobArrived(job(0, (3,))))
    tell(DecisionGiven(0, 0, 1))
    tell(ExecutorArrived(0))
    assert tell(TaskFinished(0)) == [StartTask(0, 0, 0, 1, REST, 1)]
    assert tell(TaskFinished(0)) == [StartTask(0, 0, 0, 2, REST, 1)]
    assert tell(TaskFinished(0)) == [JobDone(0)]


def test_a_stage_without_tasks_to_start_has_all_its_executors_decided_on_busy_ones_too():
    tell = Told(2)
    tell(JobArrived(job(0, (2, 4), CHAIN)))
    tell(DecisionGiven(0, 0, 2))
    tell(ExecutorArrived(0))
    tell(ExecutorArrived(1))
    assert tell(TaskFinished(0)) == [AskDecision(2)]
    assert tell(DecisionGiven(0, 1, 2)) == [], "the free one waits at the job, the busy one is promised"
    assert tell(TaskFinished(1))[0] == StartTask(1, 0, 1, 0, FIRST, 2), "keeps the promise at once, coming from another stage"


def test_a_refusal_leaves_executors_at_an_unfinished_job_and_frees_those_of_one_that_has_started_all():
    tell = Told(3)
    tell(JobArrived(job(0, (2, 2), CHAIN)))
    tell(DecisionGiven(0, 0, 3))
    tell(DECLINE)
    tell(ExecutorArrived(0))
    tell(ExecutorArrived(1))
    assert tell(TaskFinished(0)) == [AskDecision(2)]
    assert tell(DECLINE) == []
    assert tell.engine.executors[0].pool is tell.engine.jobs[0].pool, "idle at its job, which has tasks left"
    tell(TaskFinished(1))
    tell(DecisionGiven(0, 1, 2))
    assert tell(TaskFinished(0)) == [], "all has started, and no other job is there"
    assert tell.engine.executors[0].pool is tell.engine.common


def test_conserving_rules_offer_idle_executors_again_published_ones_forget_them():
    for rules, said in ((PUBLISHED, []), (CONSERVING, [AskDecision(1)])):
        tell = Told(2, rules)
        tell(JobArrived(job(0, (1, 3), CHAIN)))
        tell(DecisionGiven(0, 0, 1))
        tell(DECLINE)
        assert tell(ExecutorArrived(0))[1:] == said, "the second executor is idle, and the next stage can use it"


def test_an_executor_that_is_not_needed_any_more_falls_back_to_the_last_stage_that_can_use_it():
    tell = Told(2)
    tell(JobArrived(job(0, (2, 1, 1))))
    tell(DecisionGiven(0, 0, 2))
    tell(ExecutorArrived(0))
    tell(TaskFinished(0))  # and starts the second task
    assert tell(ExecutorArrived(1)) == [StartTask(1, 0, 2, 0, FRESH, 2)], "stage 2 is the last schedulable one"


def test_who_is_told_nonsense_says_so():
    tell = Told(2)
    for event in (
        DECLINE,
        DecisionGiven(0, 0, 1),
        TaskFinished(0),
        ExecutorArrived(1),
        ExecutorJoined(0),
        TaskFinished(9),
        ExecutorLost(-1),
    ):
        with pytest.raises(ValueError):
            tell(event)
    tell(JobArrived(job(0, (2, 2), CHAIN)))
    for decision in (
        DecisionGiven(0, 1, 1),
        DecisionGiven(0, 0, 3),
        DecisionGiven(0, 0, 0),
        DecisionGiven(1, 0, 1),
        DecisionGiven(0, 7, 1),
    ):
        with pytest.raises(ValueError, match="wanted"):
            tell(decision)
    with pytest.raises(ValueError, match="at least 1"):
        Engine(0)
    tell(DecisionGiven(0, 0, 2))
    with pytest.raises(ValueError, match="twice"):
        tell(JobArrived(job(0, (1,))))


def test_events_wait_while_a_decision_is_awaited_but_stages_go_on():
    tell = Told(2)
    tell(JobArrived(job(0, (4,))))
    tell(DecisionGiven(0, 0, 1))
    tell(ExecutorArrived(0))
    assert tell(JobArrived(job(1, (1,)))) == [AskDecision(1)]
    assert tell(TaskFinished(0)) == [StartTask(0, 0, 0, 1, REST, 1)], "its stage has tasks: no decision is in it"
    assert tell(JobArrived(job(2, (1,)))) == []
    assert list(tell.engine.jobs) == [0, 1], "another job waits for the decision"
    assert tell(DecisionGiven(1, 0, 1)) == [MoveExecutor(1, 1, 0)]
    assert list(tell.engine.jobs) == [0, 1, 2]


def test_a_decision_that_is_dated_before_what_waited_for_it_counts_from_then():
    tell = Told(2)
    tell(JobArrived(job(0, (1, 1))))
    tell(DecisionGiven(0, 0, 1))
    tell(ExecutorArrived(0))
    engine = tell.engine
    assert engine.asking
    assert engine.handle(TaskFinished(0), 50.0) == [], "its stage has no task left"
    said = engine.handle(DecisionGiven(0, 1, 1), 40.0)
    assert said, "executors are to be sent to the second stage"
    assert engine.now_s == 50.0, "an executor that was busy until 50 can't start anything at 40"


def test_what_happens_while_a_decision_is_awaited_counts_from_when_it_happened():
    engine = Engine(2, CONSERVING)
    engine.handle(JobArrived(job(0, (3,))), 0.0)
    engine.handle(DecisionGiven(0, 0, 2), 0.0)
    for executor in range(2):
        engine.handle(ExecutorArrived(executor), 0.5)
    assert engine.handle(TaskFinished(0), 0.8) == [StartTask(0, 0, 0, 2, REST, 2)]
    assert engine.handle(TaskFinished(1), 0.9) == []
    assert engine.handle(JobArrived(job(1, (1,))), 0.95) == [AskDecision(1)]
    engine.handle(JobArrived(job(2, (1,))), 1.0)
    engine.handle(TaskFinished(0), 3.0)
    said = engine.handle(DecisionGiven(1, 0, 1), 10.0)
    assert JobDone(0) in said and engine.due_s == 10.0, "what follows waits for the decision"
    jobs = engine.jobs
    assert (jobs[0].done_s, jobs[0].stages[0].last_task_s) == (3.0, 3.0 - 0.8)
    assert [jobs[number].arrived_s for number in range(3)] == [0.0, 0.95, 1.0]


def test_a_stage_goes_on_when_its_task_ended_though_a_later_decision_is_known_already():
    engine = Engine(1)
    engine.handle(JobArrived(job(0, (3,))), 0.0)
    engine.handle(DecisionGiven(0, 0, 1), 0.0)
    engine.handle(ExecutorArrived(0), 2.0)
    engine.handle(JobArrived(job(1, (1,))), 9.0)
    assert engine.handle(TaskFinished(0), 4.0) == [StartTask(0, 0, 0, 1, REST, 1)]
    assert (engine.due_s, engine.now_s) == (4.0, 9.0)
    engine.handle(TaskFinished(0), 7.0)
    assert engine.jobs[0].stages[0].last_task_s == 3.0
    engine.handle(TaskFinished(0), 8.0)
    assert engine.jobs[0].done_s == 8.0


def test_a_task_whose_executor_is_lost_runs_again_with_its_number():
    tell = Told(2)
    tell(JobArrived(job(0, (2,))))
    tell(DecisionGiven(0, 0, 2))
    tell(ExecutorArrived(0))
    tell(ExecutorArrived(1))
    assert tell(ExecutorLost(0)) == [LossNoted(0)]
    assert tell(TaskFinished(0)) == [], "what a lost executor says is ignored"
    assert tell(TaskFinished(1)) == [StartTask(1, 0, 0, 0, REST, 1)]
    assert tell(TaskFinished(1)) == [JobDone(0)]


def test_who_waits_for_a_later_stage_is_free_when_an_earlier_one_loses_its_executor():
    for rules in (PUBLISHED, CONSERVING):
        tell = Told(2, rules)
        tell(JobArrived(job(0, (1, 1), CHAIN)))
        tell(DecisionGiven(0, 0, 1))
        tell(DecisionGiven(0, 1, 1))
        tell(ExecutorArrived(0))
        tell(ExecutorArrived(1))
        assert tell(ExecutorLost(0)) == [LossNoted(0), AskDecision(1)]
        assert tell(DecisionGiven(0, 0, 1)) == [StartTask(1, 0, 0, 0, FRESH, 1)]


def test_a_task_that_failed_runs_again_on_its_executor():
    tell = Told(1)
    tell(JobArrived(job(0, (1,))))
    tell(DecisionGiven(0, 0, 1))
    tell(ExecutorArrived(0))
    assert tell(TaskFailed(0)) == [StartTask(0, 0, 0, 0, REST, 1)]
    assert tell(TaskFinished(0)) == [JobDone(0)]


def test_lost_outputs_open_their_stage_again_and_later_tasks_wait_for_it():
    tell = Told(1, CONSERVING)
    tell(JobArrived(job(0, (2, 2), CHAIN)))
    tell(DecisionGiven(0, 0, 1))
    tell(ExecutorArrived(0))
    tell(TaskFinished(0))
    assert tell(TaskFinished(0)) == [AskDecision(1)]
    assert tell(DecisionGiven(0, 1, 1)) == [StartTask(0, 0, 1, 0, FRESH, 1)]
    assert tell(OutputsLost(0, 0, (1,))) == []
    assert tell(TaskFinished(0)) == [AskDecision(1)], "the second task needs what was lost"
    assert tell(DecisionGiven(0, 0, 1)) == [StartTask(0, 0, 0, 1, FRESH, 1)]
    assert tell(TaskFinished(0)) == [AskDecision(1)]
    assert tell(DecisionGiven(0, 1, 1)) == [StartTask(0, 0, 1, 1, FRESH, 1)]
    assert tell(TaskFinished(0)) == [JobDone(0)]
    assert tell(OutputsLost(0, 0, (0,))) == [], "nobody needs them any more"
    with pytest.raises(ValueError, match="wanted a stage"):
        tell(OutputsLost(9, 0, (0,)))
    tell = Told(1)
    tell(JobArrived(job(0, (2,))))
    tell(DecisionGiven(0, 0, 1))
    with pytest.raises(ValueError, match="wanted 1 to 0"):
        tell(OutputsLost(0, 0, (0,)))


def test_a_lost_executor_that_is_back_is_offered():
    tell = Told(1)
    tell(JobArrived(job(0, (1,))))
    tell(DecisionGiven(0, 0, 1))
    assert tell(ExecutorLost(0)) == [LossNoted(0)]
    assert tell(ExecutorJoined(0)) == [AskDecision(1)]
    assert tell(DecisionGiven(0, 0, 1)) == [MoveExecutor(0, 0, 0)]


def test_a_promise_that_can_not_be_kept_is_dropped_the_newest_first():
    tell = Told(3)
    tell(JobArrived(job(0, (3, 1, 1), ((0, 1), (0, 2)))))
    tell(DecisionGiven(0, 0, 3))
    for executor in range(3):
        tell(ExecutorArrived(executor))
    tell(TaskFinished(0))
    tell(DecisionGiven(0, 1, 1))
    tell(DecisionGiven(0, 2, 1))
    stages = tell.engine.jobs[0].stages
    pool = stages[0].pool
    assert (stages[1].committed, stages[2].committed, pool.promised) == (0, 1, 2), "the free one went; of the busy ones one is declined"
    tell(ExecutorLost(1))
    tell(DECLINE)
    assert (stages[2].committed, pool.promised) == (1, 1), "the refusal was the newest"
    tell(ExecutorLost(2))
    assert (stages[2].committed, pool.promised) == (0, 0)


def test_the_check_finds_what_is_broken():
    for damage in ("running", "moving", "committed", "unstarted", "open_parents", "completed"):
        tell = Told(2)
        tell(JobArrived(job(0, (2, 2), CHAIN)))
        tell(DecisionGiven(0, 0, 2))
        stage = tell.engine.jobs[0].stages[0]
        setattr(stage, damage, getattr(stage, damage) + 1)
        with pytest.raises(InvariantError):
            validate(tell.engine)
    tell = Told(2)
    tell.engine.common.members.discard(0)
    with pytest.raises(InvariantError, match="executor 0"):
        validate(tell.engine)


class Walk:
    """A driver without clock: whatever may happen next happens in random order. Checks what no engine may do, counts what ended."""

    def __init__(self, seed: int, rules: Rules, losses: bool, impatient: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.executors = int(self.rng.integers(1, 7))
        self.engine = Engine(self.executors, rules)
        self.coming = [self._job(number) for number in range(int(self.rng.integers(1, 6)))][::-1]
        self.all_tasks = Counter((j.number, s, t) for j in self.coming for s, stage in enumerate(j.stages) for t in range(stage.tasks))
        self.losses, self.impatient, self.spoils = 12 * losses, impatient, 6 * losses
        self.refusals = 0
        self.running: dict[int, tuple[int, int, int]] = {}
        self.moving: set[int] = set()
        self.lost: set[int] = set()
        self.noted: set[int] = set()
        self.ended: Counter[tuple[int, int, int]] = Counter()
        self.done: list[int] = []
        self.asked = False

    def _job(self, number: int) -> Job:
        tasks = tuple(int(count) for count in self.rng.integers(1, 6, self.rng.integers(1, 6)))
        pairs = [(p, c) for c in range(len(tasks)) for p in range(c) if self.rng.random() < 0.4]
        return job(number, tasks, tuple(pairs))

    def possible(self) -> list[Event]:
        events: list[Event] = [TaskFinished(executor) for executor in self.running]
        events += [ExecutorArrived(executor) for executor in sorted(self.moving)]
        if self.coming:
            events.append(JobArrived(self.coming[-1]))
        if self.losses:
            events += [ExecutorLost(executor) for executor in range(self.executors) if executor not in self.lost]
        events += [ExecutorJoined(executor) for executor in sorted(self.noted)]
        if self.spoils and not self.asked:
            events += [TaskFailed(executor) for executor in self.running]
            events += [OutputsLost(*task[:2], task[2:]) for task, count in self.ended.items() if count and task[0] not in self.done]
        return events

    def step(self) -> bool:
        """Whether something happened."""
        events = self.possible()
        if self.asked and not (self.impatient and events and self.rng.random() < 0.5):
            return self.tell(self.decision())
        if not events:
            return False
        return self.tell(events[self.rng.integers(len(events))])

    def decision(self) -> DecisionGiven:
        if self.refusals < 5 and self.rng.random() < 0.2:
            self.refusals += 1
            return DECLINE
        stage = self.engine.schedulable[self.rng.integers(len(self.engine.schedulable))]
        assert self.engine.source is not None
        return DecisionGiven(stage.job, stage.number, int(self.rng.integers(1, self.engine.source.committable + 1)))

    def tell(self, event: Event) -> bool:
        if isinstance(event, DecisionGiven):
            self.asked = False
        elif isinstance(event, TaskFinished):
            self.ended[self.running.pop(event.executor)] += 1
        elif isinstance(event, TaskFailed):
            self.spoils -= 1
            del self.running[event.executor]
        elif isinstance(event, OutputsLost):
            self.spoils -= 1
            self.ended[event.job, event.stage, *event.tasks] -= 1
        elif isinstance(event, ExecutorArrived):
            self.moving.remove(event.executor)
        elif isinstance(event, JobArrived):
            self.coming.pop()
        elif isinstance(event, ExecutorLost):
            self.losses -= 1
            self.lost.add(event.executor)
            self.running.pop(event.executor, None)
            self.moving.discard(event.executor)
        elif isinstance(event, ExecutorJoined):
            self.lost.remove(event.executor)
            self.noted.remove(event.executor)
        before_s = self.engine.now_s
        instructions = self.engine.handle(event, float(self.rng.uniform(0, 100)))
        assert self.engine.now_s >= before_s
        for instruction in instructions:
            self.obey(instruction)
        validate(self.engine)
        return True

    def obey(self, instruction: Instruction) -> None:
        if isinstance(instruction, AskDecision):
            assert not self.asked
            self.asked = True
        elif isinstance(instruction, JobDone):
            self.done.append(instruction.job)
        elif isinstance(instruction, LossNoted):
            assert instruction.executor in self.lost
            self.noted.add(instruction.executor)
        elif instruction.executor in self.lost:
            return  # told before the engine took notice of the loss
        elif isinstance(instruction, StartTask):
            task = instruction.job, instruction.stage, instruction.task
            assert instruction.executor not in self.running
            assert instruction.executor not in self.moving
            assert task not in self.running.values()
            assert not self.ended[task]
            self.running[instruction.executor] = task
        else:
            assert instruction.executor not in self.running
            self.moving.add(instruction.executor)


@pytest.mark.parametrize("rules", [PUBLISHED, CONSERVING], ids=["published", "conserving"])
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), losses=st.booleans(), impatient=st.booleans())
def test_whatever_happens_the_engine_holds_and_no_task_is_lost_or_run_twice(rules, seed, losses, impatient):
    walk = Walk(seed, rules, losses, impatient)
    for _ in range(5000):
        if not walk.step():
            break
    else:
        pytest.fail("the walk doesn't end")
    complete = walk.ended == walk.all_tasks and sorted(walk.done) == list(range(len(walk.engine.jobs)))
    if walk.refusals and rules is PUBLISHED:
        assert set(walk.ended) <= set(walk.all_tasks), "refused executors may never be offered again"
        assert max(walk.ended.values(), default=0) <= 1, "0: its output was lost, and nobody was let make it again"
    elif not complete:
        assert walk.refusals, "nothing was refused, yet jobs are left"
        idle = [executor for executor in walk.engine.executors if not executor.lost]
        assert all(executor.pool is not None and executor.pool.stage == -1 for executor in idle)
