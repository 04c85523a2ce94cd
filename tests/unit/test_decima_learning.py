"""Decima's training: the network to learn with is the policy's, a run learns to imitate, repeats, and goes on."""

import csv

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from controllers.cjs import decima
from controllers.cjs.decima import Decima, Scorer, chances, shapes
from controllers.learning.cjs_sessions import LEFT_OUT, CjsJob, draw_session
from controllers.learning.decima import Network, joined, seen_by
from controllers.learning.decima_ppo import SPANS_S, DecimaRun, DecimaSettings
from controllers.weights import read_story
from testbed.errors import UserError
from testbed.sim.cjs import CjsSimulator
from tests.cjs_cases import Random, random_workload, session
from traces.tpch import load_profiles

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
QUIET = Console(quiet=True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def profiles():
    try:
        load_profiles()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def settings(tmp_path):
    return DecimaSettings(
        iterations=4, out=tmp_path / "out", sessions=3, decisions=12, minibatch=18, imitate=0.5, validate_every=2, usual=0.3
    )


def run(settings):
    return DecimaRun(settings, QUIET, validation=[CjsJob(2_000_000, 4, 25.0, 5)])


def test_the_network_computes_what_the_policy_does():
    """Graphs of many decisions at once, some without any edge."""
    torch.manual_seed(0)
    network = Network()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert {name: array.shape for name, array in weights.items()} == shapes()
    made, profiles = random_workload(3, jobs=10, interarrival_s=1.0)
    simulator, policy, observed = CjsSimulator(made, session(6), profiles=profiles), Random(), []
    policy.reset(session(6), 1)
    while not simulator.ended:
        observed.append(simulator.observation)
        simulator.step(policy.decide(observed[-1]))
    parts = [seen_by(each) for each in observed]
    assert any(not len(part.edges) for part in parts)
    graphs, at, first_job = joined(parts), 0, np.cumsum([0, *(each.jobs for each in observed[:-1])])
    jobs = [int(part.stage_job[part.rows[-1]]) for part in parts]
    with torch.no_grad():
        embedded = network.embed(graphs)
        of_stage = network.stage_log_chances(graphs, embedded).numpy()
        of_count = network.executor_log_chances(graphs, embedded, torch.from_numpy(np.array(jobs) + first_job)).numpy()
    for i, (seen, part) in enumerate(zip(observed, parts, strict=True)):
        scorer = Scorer(weights, decima.features(seen), seen.edges, seen.job_first)
        scores = np.log(chances(scorer.stage_scores(part.rows, part.stage_job[part.rows])))
        assert of_stage[at : at + len(scores)] == pytest.approx(scores, abs=1e-4)
        at, most = at + len(scores), int(seen.commit_caps[jobs[i]])
        assert of_count[i, :most] == pytest.approx(np.log(chances(scorer.executor_scores(jobs[i], most, 6))), abs=1e-4)
        assert (of_count[i, most:] == -np.inf).all()


def test_a_run_leaves_weights_that_the_policy_plays_with_and_a_curve(settings):
    path = run(settings).train()
    Decima(str(path))
    story = read_story(path)
    assert story["policy"] == "decima"
    assert story["validation_jct_over_srpt_cap"] > 0
    rows = list(csv.DictReader((settings.out / "curve.csv").open()))
    assert [row["iteration"] for row in rows] == ["2", "4"]


def test_equal_settings_give_equal_weights(settings, tmp_path):
    one = load_file(run(settings).train())
    other = load_file(run(DecimaSettings(**{**vars(settings), "out": tmp_path / "again"})).train())
    assert all(torch.equal(one[name], other[name]) for name in shapes())


def test_imitation_comes_nearer_to_the_rule(tmp_path):
    """On decisions that were met at the beginning."""
    learner = run(DecimaSettings(iterations=100, out=tmp_path / "out", sessions=4, decisions=32, minibatch=64, imitate=1.0, lr=3e-3))
    first = learner._collect(np.random.default_rng(0))
    met = [record for lane in first for record in lane]

    def chance():
        return learner._log_chances(met, [record.taught for record in met])[0].mean().item()

    before = chance()
    for i in range(6):
        learner._imitate(first, np.random.default_rng(i))
    assert chance() > 0.8 * before


def test_policy_optimisation_makes_what_paid_likelier(settings):
    """Decisions that get a reward out of nothing become likelier than before."""
    learner = run(DecimaSettings(**{**vars(settings), "lr": 3e-4, "minibatch": 36, "epochs": 2, "entropy": 0.0}))
    records = learner._collect(np.random.default_rng(1))
    paid = [record for lane in records for record in lane if record.chosen == 0 and len(record.seen.rows) > 1]
    for lane in records:
        for record in lane:
            record.reward, record.discount = (1.0 if any(record is each for each in paid) else 0.0), 0.0
    decisions = [(record.chosen, record.count) for record in paid]
    before = learner._log_chances(paid, decisions)[0].mean().item()
    for i in range(5):
        learner._optimise(records, np.random.default_rng(i), entropy_weight=0.0)
    assert learner._log_chances(paid, decisions)[0].mean().item() > before


def test_the_critic_knows_what_will_arrive(settings):
    """Executor time of the jobs that arrive within each span, over the executors."""
    lane = run(settings).lanes[0]
    now_s, jobs = lane.simulator.now_s, lane.simulator.workload.jobs
    work_s = [sum(stage.tasks * stage.mean_task_s for stage in job.stages) for job in jobs]
    told = lane.told(seen_by(lane.simulator.observation))[-len(SPANS_S) :]
    for span_s, load in zip(SPANS_S, told, strict=True):
        coming_s = sum(work for job, work in zip(jobs, work_s, strict=True) if now_s < job.arrival_s <= now_s + span_s)
        assert load == pytest.approx(coming_s / lane.job.executors / 100, rel=1e-5)
    assert told[-1] > told[0] >= 0


def test_the_critic_learns_while_the_rule_is_imitated(settings):
    """Of costs that end with the decision, so that what it should say stays the same."""
    learner = run(settings)
    records = learner._collect(np.random.default_rng(2))
    for record in (record for lane in records for record in lane):
        record.reward, record.discount = -float(record.told[0]), 0.0
    told, _, returns = learner._advantages(records)
    before = learner._misfit(told, returns).item()
    for i in range(20):
        learner._imitate(records, np.random.default_rng(i))
    assert learner._misfit(told, returns).item() < before


def test_each_part_of_the_run_has_its_own_rate_and_the_entropy_bonus_that_of_policy_optimisation(settings, monkeypatch):
    learner, rates, weights = run(DecimaSettings(**{**vars(settings), "imitate": 0.8})), [], []
    monkeypatch.setattr(learner, "_collect", lambda *_: [])
    monkeypatch.setattr(learner, "_imitate", lambda *_: {})
    monkeypatch.setattr(learner, "_optimise", lambda records, rng, weight: weights.append(weight) or {})
    for done in (0.0, 0.799999, 0.8, 0.9, 1.0):
        learner.step(0, done)
        rates.append(learner.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-3, 2e-4, 5e-4, 2.75e-4, 5e-5], rel=1e-3)
    assert weights == pytest.approx([5e-3, 2.75e-3, 5e-4], rel=1e-3)


def test_a_run_goes_on_only_with_its_own_settings(settings):
    run(settings).train()
    resumed = DecimaSettings(**{**vars(settings), "resume": True, "iterations": 6})
    longer = run(resumed)
    assert longer.loop.standing.step == 4
    longer.train()
    assert longer.loop.standing.step == 6
    with pytest.raises(UserError, match="begun with lr 0.002"):
        run(DecimaSettings(**{**vars(resumed), "lr": 0.5}))


def test_ctrl_c_in_the_middle_of_an_iteration_keeps_none_of_it(settings, monkeypatch):
    learner = run(settings)
    learner.loop.advance()
    before = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
    honest, steps = learner.optimiser.step, []

    def cut(*given):
        steps.append(honest(*given))
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(learner.optimiser, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        learner.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in learner.tensors().items())
    again = run(DecimaSettings(**{**vars(settings), "resume": True}))
    assert again.loop.standing.step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in again.tensors().items())


def test_clusters_left_out_are_never_drawn():
    rng = np.random.default_rng(1)
    drawn = [draw_session(rng, seed, usual=0.2, small=0.2) for seed in range(400)]
    assert not [job for job in drawn if LEFT_OUT[0] <= job.executors <= LEFT_OUT[1]]
    assert min(job.executors for job in drawn) >= 8
    assert max(job.executors for job in drawn) <= 60
    assert max(job.jobs for job in drawn) <= 200
