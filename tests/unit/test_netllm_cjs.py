"""NetLLM for scheduling: windows and cached reading agree, batches don't mix, labels say what costs say, training learns and goes on."""

import csv
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from controllers.api import CjsAction
from controllers.cjs.srpt_cap import SrptCap
from controllers.learning.cjs_sessions import CjsJob
from netllm.adapter import load_adapter, new_model, read_settings
from netllm.cjs import experience, trust
from netllm.cjs.adapt import CjsAdaptSettings, CjsRun, adapt
from netllm.cjs.batches import LabelSettings, chances_of, loss_of, stack, windows_of
from netllm.cjs.experience import CjsCollectSettings
from netllm.cjs.reader import CjsReader
from netllm.graph import to_tensors
from netllm.lora import LoraSettings
from netllm.tasks.cjs import TRUST_ABOVE, CjsTask, Graph, action_features, graph_of, joined
from netllm.training import OptimiserSettings
from testbed.errors import UserError
from testbed.sim.cjs_ahead import Candidates
from tests.unit.tiny_models import save_tiny
from traces.tpch import load_profiles

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
QUIET = Console(quiet=True)
COLLECT = CjsCollectSettings(sessions=6, windows=2, window=8)
LABELS = LabelSettings(expected=0.5)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def profiles():
    try:
        load_profiles()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("llm")))


@pytest.fixture(scope="module")
def episodes():
    """Of small clusters, which are quick."""
    jobs = [CjsJob(1_000_000 + i, 6, 25.0, 5 + i, "published" if i % 2 else "conserving", "noisy") for i in range(3)]
    return list(experience.play(jobs, COLLECT))


@pytest.fixture
def model(llm, request):
    torch.manual_seed(1)
    made = new_model(llm, "float32", CjsTask(hidden=16, context=8), LoraSettings(rank=2), request.node.name)
    for parameter in [*made.switch.parameters(), made.head.query.weight, made.head.stage[-1].weight, made.head.executors[-1].weight]:
        torch.nn.init.normal_(parameter, std=0.3)
    yield made.eval()
    made.switch.remove()


@pytest.fixture
def settings(llm, tmp_path, monkeypatch):
    """A run of a few steps with a tiny model."""
    monkeypatch.setattr(
        experience, "draw_session", lambda rng, seed, *_: CjsJob(seed, 6, 25.0, int(rng.integers(4, 9)), "published", "ahead")
    )
    return CjsAdaptSettings(
        steps=6,
        out=tmp_path / "out",
        llm=llm,
        dtype="float32",
        threads=1,
        rounds=1,
        round_sessions=2,
        validate_minutes=1e9,
        checkpoint_minutes=0.0,
        collect=replace(COLLECT, sessions=12),
        task=CjsTask(hidden=16, context=8),
        lora=LoraSettings(rank=2),
        optimiser=OptimiserSettings(batch=4, warmup_steps=2, lr_modules=3e-3),
    )


def begun(settings):
    return CjsRun(settings, QUIET, validation=[CjsJob(2_000_000 + i, 4, 25.0, 5) for i in range(3)])


def test_a_cheaper_candidate_is_likelier_and_ties_go_to_the_rule():
    labels = LabelSettings(temperature_s=1.0, temperature_share=0.0, prior=2.0)
    found = chances_of(Candidates(np.arange(3), np.ones(3, int), np.array([10.0, 10.0, 9.0])), labels)
    assert found == pytest.approx(np.array([2.0, 1.0, np.e]) / (3 + np.e))
    assert chances_of(Candidates(np.arange(2), np.ones(2, int), np.array([5.0, np.inf])), labels).tolist() == [1.0, 0.0]


def test_an_episode_is_kept_as_it_was(episodes, tmp_path):
    path = tmp_path / "experience.parquet"
    experience.write(path, episodes, experience.header(COLLECT))
    for one, other in zip(episodes, experience.read(path), strict=True):
        assert (one.job, one.starts, one.window) == (other.job, other.starts, other.window)
        assert (one.actions == other.actions).all()
        for a, b in zip(one.labels, other.labels, strict=True):
            assert (a.stage.tolist(), a.executors.tolist(), a.cost_s.tolist()) == (
                b.stage.tolist(),
                b.executors.tolist(),
                b.cost_s.tolist(),
            )
    (tmp_path / "other.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no experience file"):
        experience.read(tmp_path / "other.parquet")


def test_windows_are_decisions_as_they_were_met(episodes):
    (window, *_) = windows_of(episodes[1], LabelSettings())
    seen = [each for step, each in experience.replay(episodes[1]) if step >= episodes[1].starts[0]][: window.decisions]
    assert window.decisions == COLLECT.window
    assert (window.arrays["stages"] == np.concatenate([graph_of(each).stages for each in seen])).all()
    at = np.cumsum([0, *(each.stages for each in seen)])
    label = episodes[1].labels[2]
    first = sum(len(each.stage) for each in episodes[1].labels[:2])
    assert (window.tried_row[first : first + len(label.stage)] == label.stage + at[2]).all()


def test_no_feature_tells_how_long_the_last_task_took(episodes):
    for _, seen in experience.replay(episodes[0]):
        other = replace(seen, last_task_s=seen.last_task_s * 7 + 1)
        assert all(np.array_equal(getattr(graph_of(seen), each.name), getattr(graph_of(other), each.name)) for each in fields(Graph))


def test_windows_do_not_see_each_other(model, episodes):
    windows = [each for episode in episodes for each in windows_of(episode, LabelSettings())][:3]
    with torch.inference_mode():
        alone = [loss_of(model, stack([each]), LABELS).item() for each in windows]
        together = loss_of(model, stack(windows), LABELS).item()
    assert together == pytest.approx(np.mean(alone), rel=1e-4)


def test_the_expected_cost_is_that_of_a_choice_among_the_candidates(model, episodes):
    window = next(windows_of(episodes[0], LABELS))
    batch = stack([window])
    seen = batch.seen
    encoded, queries = model(seen)
    rows, log_stage = model.head.stage_log_chances(seen, encoded, queries)
    total = 0.0
    for decision in range(window.decisions):
        mine = np.flatnonzero(window.tried_decision == decision)
        stages, counts = window.tried_row[mine], window.tried_executors[mine]
        log_stages = torch.stack([log_stage[rows == int(stage)][0] for stage in stages])
        log_counts = model.head.executor_log_chances(seen, encoded, queries, torch.from_numpy(stages))
        chances = torch.softmax(log_stages + log_counts[torch.arange(len(mine)), torch.from_numpy(counts) - 1], 0)
        total += float(chances.detach() @ torch.from_numpy(window.tried_cost[mine]))
    both, alone = (loss_of(model, batch, replace(LABELS, expected=weight)).item() for weight in (1.0, 0.0))
    assert both - alone == pytest.approx(total / window.decisions, abs=1e-4)
    assert total != pytest.approx(0.0, abs=1e-2)


def test_reading_decision_by_decision_gives_what_a_whole_window_gives(model, episodes):
    """Also after the context was full: then the newer half was read anew."""
    seen = [each for _, each in experience.replay(episodes[2])][:21]
    reader, queries = CjsReader(model), []
    original = model.head.queries
    model.head.queries = lambda *asked: queries.append(original(*asked)) or queries[-1]
    actions = [reader.decide([each])[0] for each in seen]
    model.head.queries = original
    context, first = model.task.context, 0
    for place in range(len(seen)):
        if place - first > context - 1:
            first = place - context // 2
        tokens = torch.cat([reader_token(model, seen, actions, at) for at in range(first, place + 1)], 1)
        with torch.inference_mode():
            model.switch.activate()
            hidden = model.backbone.model(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1]
            assert torch.allclose(original(tokens[:, -1], hidden), queries[place], atol=1e-4), place


def reader_token(model, seen, actions, at):
    before = (seen[at - 1], actions[at - 1]) if at else (None, None)
    with torch.inference_mode():
        arrays = joined([graph_of(seen[at])], [action_features(*before, seen[at].now_s)])
        return model.encode(to_tensors(arrays, 1))[1]


def test_sessions_played_together_go_as_alone(model):
    """Of different lengths: those that have ended are forgotten."""
    jobs = [CjsJob(1_000_100 + i, 2 + 2 * i, 25.0, 4) for i in range(3)]
    alone = []
    for job in jobs:
        simulator = job.simulator()
        experience.play_together([simulator], CjsReader(model))
        alone.append((simulator.decisions, simulator.summary))
    together = [job.simulator() for job in jobs]
    experience.play_together(together, CjsReader(model))
    assert [(each.decisions, each.summary) for each in together] == alone


def test_answers_can_be_meant(model):
    simulator, reader = CjsJob(1_000_200, 5, 5.0, 7).simulator(), CjsReader(model)
    while not simulator.ended:
        seen = simulator.observation
        (action,) = reader.decide([seen])
        assert seen.schedulable[action.stage]
        assert 1 <= action.executors <= min(seen.committable, seen.demand[action.stage])
        simulator.step(CjsAction(action.stage, action.executors))


def taken(seen, action):
    """The decision as the engine takes it: a stage takes no more than it has tasks for."""
    return CjsAction(action.stage, min(action.executors, int(seen.demand[action.stage]), seen.committable))


@pytest.mark.parametrize(("executors", "leans"), [(TRUST_ABOVE, False), (TRUST_ABOVE + 1, True)])
def test_who_trusts_the_rule_wholly_decides_as_it_does_in_large_clusters(model, executors, leans):
    """There every decision is the rule's, in smaller ones every decision is the adapter's own; some differ."""
    rule = SrptCap()
    simulators = [CjsJob(1_000_300 + i, 12, 5.0, executors).simulator() for i in range(2)]  # rows of one are not the other's
    own, trusting, as_the_rule, as_before = CjsReader(model), CjsReader(model), [], []
    own_task = model.task
    for _ in range(40):
        seen = [simulator.observation for simulator in simulators]
        wanted = own.decide(seen)
        model.task = replace(own_task, trust=1e3)
        found = trusting.decide(seen)
        model.task = own_task
        ruled = [taken(each, rule.decide(each)) for each in seen]
        as_the_rule += [(a.stage, a.executors) == (b.stage, b.executors) for a, b in zip(found, ruled, strict=True)]
        as_before += [(a.stage, a.executors) == (b.stage, b.executors) for a, b in zip(found, wanted, strict=True)]
        for simulator, action in zip(simulators, ruled, strict=True):
            simulator.step(action)
        own._last = trusting._last = list(zip(seen, ruled, strict=True))
    assert all(as_the_rule) == leans and all(as_before) != leans


def test_trust_is_chosen_and_told(settings, monkeypatch):
    folder = begun(settings).run()
    monkeypatch.setattr(trust, "SESSIONS", ((26, 4, 2),))
    jct_s = iter([np.array([11.0, 9.0]), np.array([8.0, 9.0]), np.array([9.0, 9.0])])
    tried = []
    monkeypatch.setattr(trust, "rule_jct_s", lambda sessions: np.array([10.0, 10.0]))
    monkeypatch.setattr(trust, "student_jct_s", lambda model, sessions: (tried.append(model.task.trust), next(jct_s))[1])
    chosen = trust.TrustSettings(adapter=folder, bonuses=(0.0, 1.0, 2.0), dtype="float32")
    assert trust.choose(chosen, QUIET) == 1.0 and tried == [0.0, 1.0, 2.0]
    facts, card = read_settings(folder), (folder / "README.md").read_text()
    assert facts["settings"]["trust"] == 1.0 and [each["bonus"] for each in facts["trust"]["tried"]] == tried
    assert "trust 1.0" in card and "2 of 26 executors and 4 jobs): 0: 0.9950 (" in card and "step | seconds" in card
    monkeypatch.undo()
    with pytest.raises(UserError, match="wanted some, none below 0"):
        trust.choose(replace(chosen, bonuses=()), QUIET)


def test_trust_is_tried_by_playing(settings, monkeypatch):
    folder = begun(settings).run()
    monkeypatch.setattr(trust, "SESSIONS", ((26, 4, 2),))
    assert trust.choose(trust.TrustSettings(adapter=folder, bonuses=(0.0, 1e3), dtype="float32"), QUIET) in (0.0, 1e3)
    assert read_settings(folder)["trust"]["tried"][1]["jct_over_rule"] == 1.0, "who trusts the rule wholly plays as it does"


def test_a_run_leaves_a_loadable_adapter_with_a_card_and_a_curve(settings):
    folder = begun(settings).run()
    made = load_adapter(folder, settings.llm, "float32")
    assert made.task == settings.task
    facts = read_settings(folder)
    assert (facts["task"], facts["trained"]["steps"], facts["trained"]["dagger_rounds"]) == ("cjs", 6, 1)
    card = (folder / "README.md").read_text()
    assert f"{facts['validation']['jct_over_rule']:.3f}" in card
    rows = list(csv.DictReader((settings.out / "curve.csv").open()))
    assert rows[-1]["step"] == "6"
    assert sorted(path.name for path in settings.out.glob("experience*")) == ["experience-round-1.parquet", "experience.parquet"]


def test_equal_settings_give_equal_weights_also_when_cut(settings, tmp_path, monkeypatch):
    whole = weights(begun(settings).run())
    cut = replace(settings, out=tmp_path / "cut")
    made, steps = begun(cut), []
    made.start()
    learn = CjsRun._learn

    def learn_or_die(self, *given):
        found = learn(self, *given)
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(0)
        return found

    monkeypatch.setattr(CjsRun, "_learn", learn_or_die)
    with pytest.raises(KeyboardInterrupt):
        made.loop.run()
    made.model.switch.remove()
    monkeypatch.undo()
    settings_again = replace(cut, resume=True)
    monkeypatch.setattr(experience, "draw_session", None)  # nothing is drawn any more: the round was played before the cut
    found = weights(begun(settings_again).run())
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_round_that_was_cut_is_played_again_as_it_was(settings, tmp_path, monkeypatch):
    """The encoder and heads alone decide in it, if they alone have learnt so far."""
    whole, cut = weights(begun(settings).run()), replace(settings, out=tmp_path / "cut")
    honest, bare = CjsRun._play_round, []

    def play(self, *given):
        bare.append(self.model.bare)
        if len(bare) == 1:
            raise KeyboardInterrupt
        return honest(self, *given)

    monkeypatch.setattr(CjsRun, "_play_round", play)
    with pytest.raises(KeyboardInterrupt):
        begun(cut).run()
    found = weights(begun(replace(cut, resume=True)).run())
    assert bare == [True, True]
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def weights(folder):
    return {f"{path.name}/{name}": tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_it_learns_what_the_labels_say(settings):
    made = begun(replace(settings, steps=60, rounds=0, optimiser=OptimiserSettings(batch=8, warmup_steps=5, lr_modules=5e-3)))
    made.start()
    try:
        before = np.mean([made._loss(made.model, batch).item() for batch in made.held_out])
        for _ in range(40):
            made.loop.advance()
        assert np.mean([made._loss(made.model, batch).item() for batch in made.held_out]) < 0.8 * before
    finally:
        made.model.switch.remove()


def test_what_can_not_be_trained_is_refused(settings):
    with pytest.raises(UserError, match="--collect.window is 9, wanted at most --task.context, 8"):
        adapt(replace(settings, collect=replace(settings.collect, window=9)), QUIET)
    with pytest.raises(UserError, match="--collect.sessions is 8, wanted at least 9"):
        adapt(replace(settings, collect=replace(settings.collect, sessions=8)), QUIET)


def test_too_few_sessions_to_hold_any_out_are_refused(settings, tmp_path):
    """Else the held-out loss would be one on sessions learnt from, and not say so."""
    collect = replace(settings.collect, sessions=8)
    experience.write(tmp_path / "few.parquet", list(experience.play(experience.jobs(collect), collect)), experience.header(collect))
    made = begun(replace(settings, experience=(tmp_path / "few.parquet",)))
    with pytest.raises(UserError, match=r"few.parquet: there are 8 sessions, wanted more than the 8 that are held out"):
        made.run()


def test_experience_collected_with_other_settings_is_refused(settings):
    made = begun(settings)
    made.start()
    made.model.switch.remove()
    other = begun(replace(settings, resume=True, collect=replace(settings.collect, seed=2)))
    with pytest.raises(UserError, match="experience.parquet: was collected with another seed, wanted the settings the run was begun with"):
        other.run()
