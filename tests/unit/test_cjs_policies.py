"""Each scheduling heuristic on states made by hand; Decima's options and mistakes."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from controllers.api import DECLINE, CjsAction, CjsObservation, CjsPolicy
from controllers.cjs import decima
from controllers.cjs.decima import Decima, depths, embed_stages, shapes
from controllers.cjs.fair import Fair
from controllers.cjs.fifo_full import FifoFull
from controllers.cjs.fifo_half import FifoHalf
from controllers.cjs.sjf_cp import SjfCp, critical_paths_s
from controllers.cjs.srpt_cap import SrptCap
from controllers.cjs.weighted_fair import WeightedFair
from testbed.errors import UserError
from tests.cjs_cases import session

Stage = tuple[int, int, float, bool, bool]
"""Job's row, unstarted tasks, mean task in seconds, runnable, schedulable."""


def state(
    stages: list[Stage],
    supply: list[int],
    committable: int,
    source_job: int = -1,
    executors: int = 10,
    edges: tuple[tuple[int, int], ...] = (),
    running: int = 0,
) -> CjsObservation:
    jobs, unstarted, mean_s, runnable, schedulable = (np.array(column) for column in zip(*stages, strict=True))
    first = np.searchsorted(jobs, np.arange(len(supply) + 1))
    return CjsObservation(
        session=session(executors),
        now_s=50.0,
        committable=committable,
        source_job=source_job,
        job_id=np.arange(len(supply)),
        job_age_s=np.full(len(supply), 5.0),
        job_first=first,
        supply=np.array(supply),
        stage_id=np.arange(len(stages)) - first[jobs],
        stage_job=jobs,
        unstarted=unstarted,
        running=np.full(len(stages), running),
        demand=unstarted,
        mean_task_s=mean_s,
        last_task_s=mean_s,
        runnable=runnable,
        schedulable=schedulable,
        edges=np.array(edges, np.int64).reshape(-1, 2),
    )


def decided(policy: CjsPolicy, seen: CjsObservation) -> CjsAction:
    policy.reset(seen.session, 1)
    return policy.decide(seen)


TWO_JOBS: list[Stage] = [(0, 9, 1.0, False, True), (0, 9, 1.0, True, True), (1, 9, 1.0, True, True)]


@pytest.mark.parametrize(("policy", "share"), [(Fair(), 5), (FifoHalf(), 5), (FifoFull(), 10)])
def test_jobs_are_served_in_order_up_to_their_share(policy, share):
    assert decided(policy, state(TWO_JOBS, [0, 0], 10)) == CjsAction(1, share), "the oldest job, a runnable stage first"
    assert decided(policy, state(TWO_JOBS, [share - 1, 0], 10)) == CjsAction(1, 1)
    assert decided(policy, state(TWO_JOBS, [share, 0], 3)) == CjsAction(2, 3), "the next job, when the first has its share"
    assert decided(policy, state(TWO_JOBS, [share, share], 3)) == DECLINE
    assert decided(policy, state(TWO_JOBS, [9, 9], 4, source_job=1)) == CjsAction(2, 4), "who releases executors keeps all it can use"


def test_shares_are_rounded_up():
    three = [*TWO_JOBS, (2, 9, 1.0, True, True)]
    assert decided(Fair(), state(three, [0, 0, 0], 10)) == CjsAction(1, 4)
    assert decided(FifoHalf(), state(three, [0, 0, 0], 7, executors=7)) == CjsAction(1, 4)


def test_a_stage_that_can_not_be_chosen_is_not():
    blocked = [(0, 9, 1.0, True, False), (1, 9, 1.0, False, True)]
    for policy in (Fair(), FifoFull(), FifoHalf(), SjfCp(), WeightedFair(), SrptCap()):
        assert decided(policy, state(blocked, [0, 0], 2)).stage == 1


def test_weights_follow_the_work():
    jobs = [(0, 8, 10.0, True, True), (1, 2, 10.0, True, True)]
    assert decided(WeightedFair(-1.0), state(jobs, [0, 0], 5)) == CjsAction(1, 2), "the small job first, up to what it can use"
    assert decided(WeightedFair(1.0), state(jobs, [0, 0], 5)) == CjsAction(0, 4)
    assert decided(WeightedFair(0.0), state(jobs, [0, 0], 4)) == CjsAction(0, 2)
    assert decided(WeightedFair(0.0), state(jobs, [3, 0], 2)) == CjsAction(1, 2), "fewer executors come first"
    assert decided(WeightedFair(-1.0), state(jobs, [3, 0], 2, source_job=0)) == CjsAction(0, 2)
    with pytest.raises(UserError, match="alpha is 99"):
        WeightedFair(99)


def test_weighted_fair_declines_when_no_stage_can_use_more():
    """A task may start between question and observation."""
    jobs = [(0, 0, 10.0, True, True), (1, -2, 10.0, True, True)]
    assert decided(WeightedFair(), state(jobs, [0, 0], 5)) == DECLINE
    assert decided(WeightedFair(), state([*jobs, (2, 3, 10.0, True, True)], [0, 0, 0], 5)) == CjsAction(2, 3)


def test_shortest_job_first_takes_the_longest_path_of_the_shortest_job():
    stages = [(0, 50, 1.0, True, True), (1, 5, 1.0, True, True), (1, 5, 1.0, True, True), (1, 1, 9.0, False, False)]
    seen = state(stages, [0, 0], 6, edges=((2, 3),))
    assert critical_paths_s(seen) == [1.0, 1.0, 10.0, 9.0]
    assert decided(SjfCp(), seen) == CjsAction(2, 6)
    assert decided(SjfCp(), state(stages, [0, 0], 6, source_job=0, edges=((2, 3),))) == CjsAction(0, 6)


def test_the_rule_with_caps():
    small_and_large = [(0, 40, 20.0, True, True), (1, 3, 2.0, True, True)]
    short_first = decided(SrptCap(), state(small_and_large, [0, 0], 5, executors=50))
    assert short_first == CjsAction(1, 3), "and no more than it can use"
    many_tasks = [(0, 400, 20.0, True, True), (1, 400, 0.1, True, True)]
    action = decided(SrptCap(), state(many_tasks, [0, 0], 50, executors=50))
    assert action.stage == 1
    assert 1 <= action.executors < 25, "not beyond what its work is worth"
    above = state(many_tasks, [2, 49], 1, source_job=1, executors=50)
    assert decided(SrptCap(), above).stage == 0, "a job above its cap gives executors back"
    order = [(0, 5, 1.0, False, True), (0, 5, 1.0, True, True)]
    assert decided(SrptCap(), state(order, [0], 1)).stage == 1, "runnable before not yet runnable"
    assert decided(SrptCap(), state([(0, 5, 1.0, True, False)], [0], 1)) == DECLINE


def test_commit_caps_leave_room_for_the_cluster_but_not_for_the_source():
    seen = state(TWO_JOBS, [9, 12], 4, source_job=1)
    assert seen.commit_caps.tolist() == [1, 4]
    assert state(TWO_JOBS, [9, 12], 4).commit_caps.tolist() == [1, 0]


def weights(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes().items()}


def test_decimas_features_by_hand():
    seen = state([(0, 100, 2.0, True, True), (1, 40, 0.5, True, True)], [4, 12], 3, source_job=1)
    assert decima.features(seen) == pytest.approx(np.array([[0.3, -1, 0.4, 0.5, 2.0], [0.3, 1, 1.2, 0.2, 0.2]], np.float32))
    assert sum(np.prod(shape) for shape in shapes().values()) == 20_802


def test_messages_go_from_children_to_parents_only():
    """A change at a leaf reaches all above it, a change at a root nobody else."""
    seen, edges = np.random.default_rng(2).normal(size=(5, 5)).astype(np.float32), np.array([[0, 1], [1, 2], [3, 2]])
    base = embed_stages(weights(), seen, edges)
    for row, reached in ((2, {0, 1, 2, 3}), (0, {0}), (4, {4})):
        changed = seen.copy()
        changed[row] += 1
        moved = np.abs(embed_stages(weights(), changed, edges) - base).max(axis=1) > 1e-6
        assert set(np.flatnonzero(moved)) == reached
    assert depths(5, edges).tolist() == [0, 1, 2, 0, 0]


def test_decima_samples_and_greedy_takes_the_likeliest(tmp_path: Path):
    save_file(weights(), tmp_path / "w.safetensors")
    seen = state([(0, 100, 2.0, True, True), (1, 40, 0.5, True, True), (1, 7, 3.0, True, False)], [4, 1], 3)
    greedy, sampled = Decima(str(tmp_path / "w.safetensors"), "greedy"), Decima(str(tmp_path / "w.safetensors"))
    assert len({decided(greedy, seen) for _ in range(5)}) == 1
    sampled.reset(seen.session, 3)
    actions = [sampled.decide(seen) for _ in range(300)]
    scorer = decima.Scorer(weights(), decima.features(seen), seen.edges, seen.job_first)
    chances = decima.chances(scorer.stage_scores(np.array([0, 1]), np.array([0, 1])))
    assert np.mean([action.stage == 0 for action in actions]) == pytest.approx(chances[0], abs=0.1)
    assert all(1 <= action.executors <= 3 for action in actions)
    assert len({action.executors for action in actions}) > 1


def test_decima_says_what_is_wrong_with_its_weights(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: can't be read"):
        Decima("nowhere")
    wrong = weights()
    wrong["dag_encoder.layer0.weight"] = wrong["dag_encoder.layer0.weight"][:, :7].copy()
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"dag_encoder.layer0.weight \(32, 7\), wanted \(32, 21\)"):
        Decima(str(tmp_path / "wrong.safetensors"))
    (tmp_path / "garbage.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="can't be read"):
        Decima(str(tmp_path / "garbage.safetensors"))
