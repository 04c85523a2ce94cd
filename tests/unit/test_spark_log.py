"""Spark's event log as a DAG of stages: skipped copies, jobs that follow one another, slots and waves. All logs are made here."""

import json
from itertools import permutations
from typing import Any

import pytest

from testbed.errors import TestbedError
from traces.spark_log import END, EXECUTION, QUERY, EventLog, LoggedQuery, is_over, ordered, read_query

Event = dict[str, Any]


def job(number: int, at_ms: int, stages: dict[int, tuple[list[int], int, int]], query: str | None = "7") -> Event:
    """A job that names stages: parents, tasks, the RDD that the stage makes."""
    infos = [
        {"Stage ID": stage, "Parent IDs": parents, "Number of Tasks": tasks, "RDD Info": [{"RDD ID": rdd - 1}, {"RDD ID": rdd}]}
        for stage, (parents, tasks, rdd) in stages.items()
    ]
    properties = {} if query is None else {QUERY: query, EXECUTION: "3"}
    return {
        "Event": "SparkListenerJobStart",
        "Job ID": number,
        "Submission Time": at_ms,
        "Stage IDs": list(stages),
        "Stage Infos": infos,
        "Properties": properties,
    }


def job_end(number: int, at_ms: int, result: str = "JobSucceeded") -> Event:
    return {"Event": "SparkListenerJobEnd", "Job ID": number, "Completion Time": at_ms, "Job Result": {"Result": result}}


def done(stage: int) -> Event:
    return {"Event": "SparkListenerStageCompleted", "Stage Info": {"Stage ID": stage}}


def task(stage: int, launch_ms: int, finish_ms: int, cpu_ms: float = 5, written: int = 0, read: int = 0, reason: str = "Success") -> Event:
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Task End Reason": {"Reason": reason},
        "Task Info": {"Task ID": launch_ms, "Launch Time": launch_ms, "Finish Time": finish_ms, "Executor ID": "driver"},
        "Task Metrics": {
            "Executor Run Time": finish_ms - launch_ms,
            "Executor CPU Time": int(cpu_ms * 1e6) - 200_000,
            "Executor Deserialize CPU Time": 200_000,
            "Shuffle Write Metrics": {"Shuffle Bytes Written": written, "Shuffle Records Written": written},
            "Input Metrics": {"Records Read": read},
        },
    }


def read(*events: Event, cores: int = 1) -> LoggedQuery:
    return read_query(events, "7", {"driver": cores})


def shape(logged: LoggedQuery) -> list[tuple[int, ...]]:
    return [stage.parents for stage in logged.stages]


def ordered_query(scan: int, sample: int, copy: int, exchange: int, result: int) -> list[Event]:
    """ORDER BY: one job samples what is to be sorted, the next names its scan anew, skips it, and sorts."""
    return [
        job(0, 0, {scan: ([], 2, 19), sample: ([scan], 1, 24)}),
        task(scan, 0, 10, 4, written=100),
        task(scan, 10, 20, 6, written=100),
        done(scan),
        task(sample, 20, 30, 7),
        done(sample),
        job_end(0, 31),
        job(1, 40, {copy: ([], 2, 19), exchange: ([copy], 1, 25), result: ([exchange], 1, 28)}),
        task(exchange, 41, 50, 8, written=50),
        done(exchange),
        task(result, 51, 60, 9),
        done(result),
        job_end(1, 61),
    ]


def test_a_skipped_stage_is_the_one_that_made_its_rdd() -> None:
    logged = read(*ordered_query(8, 9, 10, 11, 12))
    assert shape(logged) == [(), (0,), (0, 1), (2,)], "the exchange waits for its scan, and for the job that sampled"
    assert [stage.shuffled_bytes for stage in logged.stages] == [200, 0, 50, 0]
    scan, sample, *_ = logged.stages
    assert (scan.fresh_ms, scan.first_ms, scan.rest_ms) == ((4,), (), (6,))
    assert (sample.fresh_ms, sample.first_ms, sample.rest_ms) == ((), (7,), ())
    assert logged.cpu_share == pytest.approx(33 / 48), "of 48 ms that tasks ran"


@pytest.mark.parametrize("numbers", [(8, 9, 10, 11, 12), (0, 3, 7, 9, 22), (108, 110, 212, 211, 213)])
def test_numbers_of_stages_do_not_matter(numbers: tuple[int, int, int, int, int]) -> None:
    assert read(*ordered_query(*numbers)) == read(*ordered_query(1, 2, 3, 4, 5))


def test_stages_that_look_alike_are_told_apart_by_what_they_read_and_whom_they_feed() -> None:
    def joined(one: int, other: int, third: int) -> LoggedQuery:
        stages = {one: ([], 1, 10), other: ([], 1, 20), third: ([], 1, 30), 50: ([one, other], 1, 40), 51: ([third, 50], 1, 60)}
        ran = [(one, 5), (other, 9), (third, 5), (50, 0), (51, 0)]
        return read(
            job(0, 0, stages), *(task(s, 10 * i, 10 * i + 9, read=n) for i, (s, n) in enumerate(ran)), *map(done, stages), job_end(0, 99)
        )

    found = {tuple(shape(joined(*numbers))) for numbers in permutations((1, 2, 3))}
    assert len(found) == 1 and found.pop()[-1] != ()


def test_a_subquery_and_a_broadcast_come_before_what_started_after_them() -> None:
    logged = read(
        job(0, 0, {0: ([], 1, 10), 1: ([0], 1, 20)}),  # a scalar subquery
        *(task(0, 0, 9, read=1), task(1, 10, 19), done(0), done(1), job_end(0, 20)),
        job(1, 5, {2: ([], 1, 30)}),  # a broadcast beside it
        *(task(2, 6, 18, read=2), done(2), job_end(1, 20)),
        job(2, 25, {3: ([], 1, 10), 4: ([], 1, 40), 5: ([3, 4], 1, 50)}),  # the main job, which skips a scan
        *(task(4, 26, 30, read=3), task(5, 31, 40), done(4), done(5), job_end(2, 41)),
    )
    assert shape(logged) == [(), (0,), (), (1, 2), (0, 3)]
    assert [stage.tasks for stage in logged.stages] == [1] * 5


def test_waves_by_slot_though_spark_notes_ends_late() -> None:
    logged = read(
        job(0, 0, {0: ([], 5, 10), 1: ([0], 2, 20)}),
        task(0, 0, 10, 1),
        task(0, 1, 30, 2),
        task(0, 9, 20, 3),  # the first slot took it before its last task's end was noted
        task(0, 21, 28, 4),
        task(0, 31, 40, 5),
        done(0),
        task(1, 41, 50, 6),
        task(1, 42, 49, 7),
        done(1),
        job_end(0, 51),
        cores=2,
    )
    scan, result = logged.stages
    assert (scan.fresh_ms, scan.first_ms, scan.rest_ms) == ((1, 2), (), (3, 4, 5))
    assert (result.fresh_ms, result.first_ms, result.rest_ms) == ((), (6, 7), ())
    assert scan.tasks == 5


def test_a_task_takes_at_least_a_millisecond() -> None:
    (stage,) = read(job(0, 0, {0: ([], 1, 10)}), task(0, 0, 1, 0.3), done(0), job_end(0, 2)).stages
    assert stage.fresh_ms == (1,)


def test_other_jobs_play_no_part() -> None:
    other = [
        job(5, 0, {90: ([], 1, 91)}, None),
        task(90, 0, 5),
        done(90),
        job_end(5, 6),
        job(6, 7, {92: ([], 1, 93)}, "8"),
        task(92, 8, 9),
        done(92),
    ]
    assert read(*other, *ordered_query(1, 2, 3, 4, 5)) == read(*ordered_query(1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], "no stage of query 7"),
        ([job(0, 0, {0: ([], 1, 10)}), task(0, 0, 5, reason="ExceptionFailure")], "a task of stage 0 of query 7 failed"),
        ([job(0, 0, {0: ([], 1, 10)}), job_end(0, 5, "JobFailed")], "job 0 of query 7 failed"),
        ([job(0, 0, {0: ([], 2, 10)}), task(0, 0, 5), done(0)], "stage 0 of query 7 has 1 tasks that ended well, wanted 2"),
        (
            [job(0, 0, {0: ([], 1, 10), 1: ([0], 1, 20)}), task(1, 0, 5), done(1)],
            "stage 0 of query 7 was skipped and no other made its RDD",
        ),
    ],
)
def test_a_log_that_lacks_something_is_named(events: list[Event], told: str) -> None:
    with pytest.raises(TestbedError, match=told):
        read(*events)


def test_the_order_keeps_parents_before_children() -> None:
    parents = {4: {9}, 9: set(), 2: {4, 7}, 7: set()}
    found = ordered(parents, dict.fromkeys(parents, (1,)))
    assert all(found.index(parent) < found.index(number) for number, before in parents.items() for parent in before)


def test_a_log_is_read_as_it_grows(tmp_path) -> None:
    path, lines = tmp_path / "log", [json.dumps(event) for event in ordered_query(1, 2, 3, 4, 5)]
    added = {"Event": "SparkListenerExecutorAdded", "Executor ID": "driver", "Executor Info": {"Total Cores": 2}}
    path.write_text(json.dumps(added) + "\n" + lines[0] + "\n" + lines[1][:20])
    with EventLog(path) as log:
        events = log.events()
        assert [event["Event"] for event in events] == ["SparkListenerExecutorAdded", "SparkListenerJobStart"]
        assert log.cores == {"driver": 2} and log.events() == []
        with path.open("a") as file:
            file.write("\n".join([lines[1][20:], *lines[2:], ""]))
        events += log.events()
        assert read_query(events, "7", log.cores).stages
        assert not is_over(events, "7")
        assert is_over([*events, {"Event": END, "executionId": 3}], "7")
        assert not is_over([{"Event": END, "executionId": 3}], "7"), "nobody has asked yet"
