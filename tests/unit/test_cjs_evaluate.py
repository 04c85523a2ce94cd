"""An evaluation of schedulers: paired on workloads, taken up again, shown as it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from controllers.cjs.netllm import NetLLM
from controllers.loader import load, load_all
from netllm import identity as identities
from netllm.adapter import SHIPPED, new_model, save_adapter
from netllm.cjs.suite import page, run
from netllm.cjs.suite import play as playing
from netllm.cjs.suite.analysis import analyse
from netllm.cjs.suite.header import MODEL, SIMULATION, cjs_header, identity
from netllm.cjs.suite.play import Played
from netllm.cjs.suite.run import CjsEvaluateSettings
from netllm.cjs.suite.settings import NAMED, CjsSetting, chosen
from netllm.command import evaluate_command
from netllm.evaluation.shipped import measures_shipped
from netllm.lora import LoraSettings
from netllm.tasks.cjs import CjsTask
from testbed.errors import UserError
from testbed.sim.cjs import COMPLETE, STARVED
from tests.unit.tiny_models import save_tiny
from traces.tpch import load_profiles

pytestmark = pytest.mark.timeout(600)  # the first use of the compiled simulator compiles for half a minute of CPU time
QUIET = Console(quiet=True)
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def profiles():
    try:
        load_profiles()
    except UserError as error:
        pytest.skip(str(error))


def played(policy: str, seed: int, jct_s: float, ended: str = COMPLETE) -> Played:
    return Played("toy", seed, policy, ended, jct_s, jct_s, jct_s, 100.0, 0.5, 10, None, None)


def test_policies_are_compared_on_the_same_workloads():
    """By hand: always 10 s better than the other, on workloads that differ by far more."""
    toy = CjsSetting("toy", 5, 4, (1, 2, 3, 4), (100.0, 200.0, 300.0, 400.0))
    jct_s = {"a": [90.1, 190.2, 289.9, 389.8], "b": [100.0, 200.0, 300.0, 400.0]}
    sessions = [played(name, seed, value) for name, values in jct_s.items() for seed, value in zip(toy.seeds, values, strict=True)]
    (result,) = analyse([toy], sessions, ["a", "b"], ["b"])
    (found,) = result.differences
    assert found.difference_s.mean == pytest.approx(-10.0)
    assert (found.wins, found.losses, found.verdict) == (4, 0, "better")
    assert result.outcomes["a"].over_decima.mean == pytest.approx(0.96)
    assert result.outcomes["b"].over_decima.mean == pytest.approx(1.0)
    assert [each.policy for each in result.ranked()] == ["a", "b"]


def test_who_starved_jobs_comes_last_and_has_no_mean_and_no_difference():
    """However quick the jobs that did end."""
    toy = CjsSetting("toy", 5, 4, (1, 2, 3), (50.0, 51.0, 52.0), goal=0.9)
    sessions = [played("netllm", seed, 1.0 + 0.1 * seed, STARVED if seed == 2 else COMPLETE) for seed in toy.seeds]
    sessions += [played("slow", seed, 50.0 + seed) for seed in toy.seeds] + [played("same", seed, 50.0 + seed) for seed in toy.seeds]
    (result,) = analyse([toy], sessions, ["netllm", "slow", "same"], ["slow", "netllm"])
    assert [each.policy for each in result.ranked()] == ["slow", "same", "netllm"]
    assert [(each.a, each.b) for each in result.differences] == [("same", "slow")]
    starved = result.outcomes["netllm"]
    assert starved.mean_s is None and starved.over_decima is None
    header = cjs_header([], "published")
    for text in (page.section([result], header), page.card([result], "netllm", header)):
        assert "| 1 of 3 starved |" in text and "1.2" not in text
    told = run._summary(result)["policies"]
    assert (told["netllm"]["invalid"], told["netllm"]["mean"]) == (1, None) and (told["slow"]["invalid"], told["slow"]["mean"]) == (0, 52.0)


def test_a_changed_policy_is_played_again(profiles, tmp_path, monkeypatch):
    """Else a changed source would leave yesterday's sessions standing."""
    mine = tmp_path / "mine.py"
    source = (CHECKOUT / "controllers" / "cjs" / "fair.py").read_text()
    settings = CjsEvaluateSettings(("5:4:1-2",), (str(mine),), (), out=tmp_path / "out")
    asked = []
    original = run.play
    monkeypatch.setattr(run, "play", lambda setting, seeds, *rest: asked.append(seeds) or original(setting, seeds, *rest))
    for text in (source, source + "# a comment\n", source + "CHANGED = True\n"):
        mine.write_text(text)
        run.test(settings, QUIET)
    assert asked == [[1, 2], [1, 2]]


def test_every_source_of_a_schedule_is_in_its_key():
    loaded = modules_with("testbed.sim.cjs", "testbed.sim.cjs_compiled", among=("testbed.sim.", "testbed.cluster."))
    loaded |= {CHECKOUT / "testbed/units.py", Path(playing.__file__)}
    assert loaded and loaded <= {file for pattern in SIMULATION for file in CHECKOUT.glob(pattern)}


def test_every_source_of_an_answer_is_in_a_language_models_key():
    loaded = modules_with("netllm.cjs.reader", "controllers.cjs.netllm", among=("netllm.", "controllers.cjs."))
    own = {CHECKOUT / "controllers/cjs/netllm.py"}  # the policy's own file, as of any policy
    assert loaded - own <= {file for pattern in MODEL for file in CHECKOUT.glob(pattern)}
    assert CHECKOUT / "controllers/cjs/srpt_cap.py" in loaded


def modules_with(*imported: str, among: tuple[str, ...]) -> set[Path]:
    """Files of the modules that these bring along."""
    code = f"import sys, {', '.join(imported)}; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith({among})))"
    told = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split()
    return {Path(file) for file in told if not file.endswith("__init__.py")}


def test_an_adapter_that_was_changed_is_another_policy(tmp_path, monkeypatch):
    """`scripts/adapt cjs-trust` rewrites netllm.json alone."""
    folder = shutil.copytree(SHIPPED / "cjs", tmp_path / "adapter")
    policy = load(f"netllm+adapter={folder}", "cjs")
    before = identity(policy)
    (folder / "README.md").write_text("a card")
    assert identity(policy) == before
    content = json.loads((folder / "netllm.json").read_text())
    content["settings"]["trust"] += 1
    (folder / "netllm.json").write_text(json.dumps(content))
    changed = identity(policy)
    monkeypatch.setattr(identities.importlib.metadata, "version", lambda package: f"another {package}")
    assert len({before, changed, identity(policy)}) == 3


def test_an_evaluation_is_taken_up_where_it_was_cut(profiles, tmp_path, monkeypatch):
    settings = CjsEvaluateSettings(("5:4:1-3",), ("fair", "srpt_cap"), ("srpt_cap",), out=tmp_path / "out")
    results = run.test(settings, QUIET)
    lines = (settings.out / "sessions.jsonl").read_text().splitlines()
    assert len(lines) == 6
    (settings.out / "sessions.jsonl").write_text("\n".join(lines[:5]) + "\n")
    asked = []
    original = run.play
    monkeypatch.setattr(run, "play", lambda setting, seeds, *rest: asked.append(seeds) or original(setting, seeds, *rest))
    again = run.test(settings, QUIET)
    assert asked == [[3]]
    for one, other in zip(results[0].outcomes.values(), again[0].outcomes.values(), strict=True):
        assert np.array_equal(one.jct_s, other.jct_s)
    summary = json.loads((settings.out / "summary.json").read_text())
    assert summary["metric"] == "avg_jct_s"
    assert summary["settings"][0]["comparisons"][0]["a"] == "fair"
    (settings.out / "sessions.jsonl").write_text("nothing\n")
    with pytest.raises(UserError, match="sessions.jsonl:1: is no session"):
        run.test(settings, QUIET)


def test_a_language_model_plays_all_its_sessions_together_and_is_timed(profiles, tmp_path):
    llm = str(save_tiny(tmp_path / "llm"))
    save_adapter(new_model(llm, "float32", CjsTask(hidden=16, context=8), LoraSettings(rank=2), "evaluated"), tmp_path / "adapter", {})
    name = f"netllm+adapter={tmp_path / 'adapter'}+llm={llm}+dtype=float32"
    (result,) = run.test(CjsEvaluateSettings(("4:3:1-3",), (name, "fair"), out=tmp_path / "out"), QUIET)
    sessions = next(each.sessions for key, each in result.outcomes.items() if key.startswith("netllm"))
    assert [each.seed for each in sessions] == [1, 2, 3]
    assert all(each.ended == COMPLETE for each in sessions)
    assert sessions[0].decision_ms_p50 is not None
    assert sessions[1].decision_ms_p50 is None
    assert load("fair", "cjs").name in result.outcomes


@pytest.mark.parametrize(("own", "used"), [("", 2), ("+threads=1", 1)])
def test_a_language_model_computes_in_the_threads_asked_for(profiles, tmp_path, monkeypatch, own, used):
    llm, seen = str(save_tiny(tmp_path / "llm")), []
    save_adapter(
        new_model(llm, "float32", CjsTask(hidden=16, context=8), LoraSettings(rank=2), f"in threads{own}"), tmp_path / "adapter", {}
    )
    together = playing.play_together
    monkeypatch.setattr(playing, "play_together", lambda *arguments: seen.append(torch.get_num_threads()) or together(*arguments))
    name = f"netllm+adapter={tmp_path / 'adapter'}+llm={llm}+dtype=float32{own}"
    try:
        run.test(CjsEvaluateSettings(("4:2:1",), (name,), threads=2, out=tmp_path / "out"), QUIET)
    finally:
        torch.set_num_threads(1)
    assert seen == [used]


def test_tables_are_written_between_the_marks(tmp_path, monkeypatch):
    path = tmp_path / "cjs.md"
    path.write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n")
    monkeypatch.setattr(run, "PAGE", path)
    toy = CjsSetting("toy", 5, 4, (1, 2, 3))
    results = analyse([toy], [played("fair", seed, 5.0 + seed) for seed in toy.seeds], ["fair"], [])
    settings = CjsEvaluateSettings(out=tmp_path, write=True)
    run._write(settings, results, cjs_header([], "published"), False)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "`fair`" in text
    path.write_text("nothing")
    with pytest.raises(UserError, match="wanted both"):
        run._write(settings, results, cjs_header([], "published"), False)


def test_what_is_published_is_what_was_run(tmp_path):
    """No page and no card of other rules, and no ratio to what was measured under the published ones."""
    with pytest.raises(UserError, match="--write is for results under the published rules, seen --semantics conserving"):
        run.test(CjsEvaluateSettings(semantics="conserving", write=True, out=tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()
    (setting,) = chosen(["default"], "conserving")
    assert setting.decima_s == () and setting.goal is None and setting.seeds == NAMED["default"].seeds
    toy = CjsSetting("toy", 5, 4, (1, 2, 3))
    results = analyse([toy], [played("netllm", seed, 5.0 + seed) for seed in toy.seeds], ["netllm"], [])
    for semantics in ("published", "conserving"):
        assert f"Simulator, {semantics} rules" in page.card(results, "netllm", cjs_header([], semantics))


def test_no_other_policy_s_results_go_into_the_shipped_adapter_s_card(tmp_path):
    mine = tmp_path / "netllm.py"
    mine.write_text((CHECKOUT / "controllers" / "cjs" / "fair.py").read_text())
    with pytest.raises(UserError, match="--write: the policy 'netllm' is .*netllm.py, wanted our own under that name"):
        run.test(CjsEvaluateSettings(("5:4:1",), (str(mine),), write=True, out=tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()
    assert measures_shipped(load_all(["fair", "netllm"], "cjs"), NetLLM)
    assert not measures_shipped(load_all(["fair", f"netllm+adapter={tmp_path}"], "cjs"), NetLLM)


def test_settings_of_ones_own_and_unknown_ones(capsys):
    assert chosen(["20:50:3-5", "small"]) == [CjsSetting("20:50:3-5", 20, 50, (3, 4, 5)), NAMED["small"]]
    for bad in ("smal", "0:5:1", "5:5:3-1", "5:x:1"):
        with pytest.raises(UserError, match=r"is (unknown|empty)"):
            chosen([bad])
    assert evaluate_command(["cjs", "--settings", "smal"]) == 2
    assert "small" in capsys.readouterr().err


def test_settings_with_published_numbers_have_one_for_each_seed():
    for setting in NAMED.values():
        assert len(setting.decima_s) in (0, len(setting.seeds))
