"""Training: it learns, it repeats, and it survives kill -9."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from controllers.learning.averaging import RunningMean, kept_share
from netllm.abr.adapt import AdaptSettings, Run, adapt, by_family, score_of
from netllm.abr.experience import CollectSettings, Job, collect
from netllm.abr.lessons import loss_of, stack
from netllm.adapter import load_adapter, read_settings
from netllm.command import adapt_command
from netllm.lora import LoraSettings
from netllm.tasks.abr import AbrTask
from netllm.training import OptimiserSettings, make_optimiser, pick, set_rate, train_step
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.stats import Estimate
from tests.unit.test_netllm_experience import write_trace
from tests.unit.tiny_models import a_session, lively, played, save_tiny
from traces.trace import RateTrace

torch.set_num_threads(1)
QUIET = Console(quiet=True)


@pytest.fixture
def settings(tmp_path):
    """A run of a few steps with a tiny model on traces of its own."""
    folder = tmp_path / "traces"
    folder.mkdir()
    for number in range(8):
        write_trace(folder / f"mine_{number}", number)
    collect = CollectSettings(
        teachers=("scenario_mpc",),
        sessions=6,
        traces=(str(folder),),
        videos=("synthetic",),
        validation_videos=("synthetic",),
        chunks=8,
        held_out=0.25,
    )
    return AdaptSettings(
        steps=6,
        out=tmp_path / "out",
        llm=str(save_tiny(tmp_path / "llm")),
        dtype="float32",
        threads=1,
        rounds=1,
        round_sessions=3,
        validate_minutes=1e9,
        validation_sessions=3,
        checkpoint_minutes=0.0,
        collect=collect,
        lora=LoraSettings(rank=2),
        optimiser=OptimiserSettings(batch=3, warmup_steps=2),
    )


def weights(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        for key in one[name]:
            assert torch.equal(one[name][key], other[name][key]), (name, key)


def test_a_run_leaves_a_loadable_adapter_with_a_card_and_a_curve(settings):
    folder = adapt(settings, QUIET)
    model = load_adapter(folder, settings.llm, "float32")
    assert model.task == AbrTask()
    facts = read_settings(folder)
    assert facts["trained"]["dagger_rounds"] == 1 and facts["trained"]["steps"] == 6
    card = (folder / "README.md").read_text()
    assert facts["trained"]["experience"]["sets"][0]["sha256"][:16] in card
    assert f"{facts['validation']['qoe']:.3f}" in card
    rows = list(csv.DictReader((settings.out / "curve.csv").open()))
    assert rows[-1]["step"] == "6" and float(rows[-1]["valid_qoe"]) == pytest.approx(facts["validation"]["qoe"], rel=1e-3)
    assert sorted(path.name for path in settings.out.glob("experience*")) == ["experience-round-1.parquet", "experience.parquet"]


def test_equal_settings_give_equal_weights(settings, tmp_path):
    one = weights(adapt(settings, QUIET))
    assert_equal(one, weights(adapt(replace(settings, out=tmp_path / "again"), QUIET)))


@pytest.mark.parametrize("crash_at", [2, 5])
def test_a_run_taken_up_again_ends_with_the_weights_of_one_that_ran_through(settings, tmp_path, monkeypatch, crash_at):
    expected = weights(adapt(settings, QUIET))
    crashing = replace(settings, out=tmp_path / "crashed")
    steps = []

    def step_or_die(*args):
        if len(steps) == crash_at:
            raise SystemError("killed")
        steps.append(0)
        return train_step(*args)

    monkeypatch.setattr("netllm.abr.adapt.train_step", step_or_die)
    run = Run(crashing, QUIET)
    run.start()
    with pytest.raises(SystemError, match="killed"):
        run.loop.run()
    run.model.switch.remove()
    monkeypatch.undo()
    assert_equal(weights(adapt(replace(crashing, resume=True), QUIET)), expected)


def test_a_run_cut_in_its_last_validation_makes_it_when_taken_up_again(settings, monkeypatch):
    """Else a run that had done all its steps would end without an adapter."""
    monkeypatch.setattr(Run, "validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        adapt(replace(settings, rounds=0), QUIET)
    monkeypatch.undo()
    folder = adapt(replace(settings, rounds=0, resume=True), QUIET)
    assert read_settings(folder)["trained"]["steps"] == 6
    assert [row["step"] for row in csv.DictReader((settings.out / "curve.csv").open())] == ["6"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_validation_that_no_checkpoint_knows_is_made_again_not_twice(settings, monkeypatch):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    run.loop.advance()
    monkeypatch.setattr(run.loop, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.loop._validate()  # then killed
    run.model.switch.remove()
    assert [row["step"] for row in csv.DictReader((settings.out / "curve.csv").open())] == ["1"]
    adapt(replace(settings, rounds=0, resume=True), QUIET)
    assert [row["step"] for row in csv.DictReader((settings.out / "curve.csv").open())] == ["6"]


@pytest.mark.parametrize("after", ["gradients", "optimiser", "mean", "half a mean"])
def test_ctrl_c_in_the_middle_of_a_step_changes_nothing(settings, tmp_path, monkeypatch, after):
    """Weights that moved must not be taken for those of the step before."""
    expected = weights(adapt(settings, QUIET))
    run = Run(replace(settings, out=tmp_path / "cut"), QUIET)
    run.start()
    run.loop.advance()
    owner, name = {
        "gradients": (torch.nn.utils, "clip_grad_norm_"),
        "optimiser": (run.optimiser, "step"),
        "mean": (run.mean, "update"),
        "half a mean": (run.mean, "_put"),
    }[after]
    honest = getattr(owner, name)

    def cut(*given):
        if after == "half a mean":
            given = (dict(list(given[0].items())[:3]),)
        with contextlib.suppress(KeyError):
            honest(*given)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, cut)
    with pytest.raises(KeyboardInterrupt):
        run.loop.run()
    run.model.switch.remove()
    assert_equal(weights(adapt(replace(settings, out=tmp_path / "cut", resume=True), QUIET)), expected)


def test_a_kill_while_an_adapter_is_written_leaves_the_one_before(settings, monkeypatch):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    run.loop.advance()
    run.loop._validate()
    before = weights(settings.out / "adapter")
    run.loop.advance()
    monkeypatch.setattr("netllm.adapter._write_lora", interrupt)
    run.loop.standing = replace(run.loop.standing, best=inf)
    with pytest.raises(KeyboardInterrupt):
        run.loop._validate()
    assert_equal(before, weights(settings.out / "adapter"))
    assert run.loop.standing.best == inf, "a model that was not kept is not the best"
    run.model.switch.remove()


@pytest.mark.parametrize(
    "more, message",
    [
        ({"steps": 0, "minutes": 0.0}, "--minutes is 0, wanted more than 0"),
        ({"threads": 0}, "--threads is 0, wanted at least 1"),
        ({"validation_sessions": 0}, "--validation-sessions is 0"),
        ({"lora": LoraSettings(rank=-1)}, "--lora.rank is -1"),
        ({"collect": CollectSettings(sessions=0)}, "--collect.sessions is 0"),
        ({"collect": CollectSettings(seed=-1)}, "--collect.seed is -1"),
        ({"collect": CollectSettings(behaviours=())}, "--collect.behaviours is empty, wanted at least one"),
        ({"lora": LoraSettings(targets=("q_proj", "nope"))}, "LoRA target 'nope' is unknown in .*: wanted one of .*q_proj"),
        ({"collect": CollectSettings(held_out=2.0)}, "held out is 2, wanted one from 0 to below 1"),
        ({"resume": True}, "out: holds no run to go on with"),
        ({"out": Path("/proc/none")}, "/proc/none: can't be used"),
    ],
)
def test_settings_without_sense_are_one_sentence(settings, more, message):
    traces = settings.collect.traces
    more = {name: replace(value, traces=traces) if name == "collect" else value for name, value in more.items()}
    with pytest.raises(UserError, match=message):
        adapt(replace(settings, **more), QUIET)


def test_kill_9_leaves_a_checkpoint_to_go_on_from(settings, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_netllm_adapt import endless; from netllm.abr.adapt import adapt; "
        "adapt(endless(*map(Path, sys.argv[1:])))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(settings.out), settings.llm, settings.collect.traces[0]],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:  # without a terminal each checkpoint prints a line
        if line.startswith("adapt abr step 3 "):
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.stderr.close()
    run = Run(replace(settings, resume=True, rounds=0), QUIET)
    run.start()
    assert run.loop.standing.step >= 3
    run.model.switch.remove()


def endless(out, llm, traces):
    """What the killed process runs."""
    collect = CollectSettings(
        teachers=("scenario_mpc",),
        sessions=6,
        traces=(str(traces),),
        videos=("synthetic",),
        validation_videos=("synthetic",),
        chunks=8,
        held_out=0.25,
    )
    return AdaptSettings(
        steps=100_000, out=out, llm=str(llm), dtype="float32", threads=1, rounds=0, round_sessions=3, validation_sessions=3,
        validate_minutes=1e9, checkpoint_minutes=0.0,
        collect=collect, lora=LoraSettings(rank=2), optimiser=OptimiserSettings(batch=3, warmup_steps=2),
    )  # fmt: skip


def test_resuming_with_another_rank_is_one_sentence(settings):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    run.loop.advance()
    run.model.switch.remove()
    other = Run(replace(settings, rounds=0, resume=True, lora=LoraSettings(rank=3)), QUIET)
    with pytest.raises(
        UserError,
        match=r"checkpoint.safetensors: can't be resumed \(it was begun with lora.rank 2\), wanted the checkpoint of a run with the",
    ):
        other.start()
    other.model.switch.remove()


def test_resuming_with_another_seed_is_one_sentence(settings):
    """Else the card would tell the new seed of a run that began with the old one."""
    adapt(replace(settings, steps=1, rounds=0), QUIET)
    other = replace(settings, resume=True, rounds=0, collect=replace(settings.collect, seed=2))
    with pytest.raises(UserError, match="experience.parquet: was collected with another seed, wanted the settings the run was begun with"):
        adapt(other, QUIET)


@pytest.mark.parametrize(
    "more, begun",
    [
        ({"task": AbrTask(context_steps=4)}, "task.context_steps 0"),
        ({"dtype": "bfloat16"}, "dtype float32"),
        ({"optimiser": OptimiserSettings(batch=3, warmup_steps=2, lr_lora=1.0)}, "optimiser.lr_lora 0.0006"),
        ({"rounds": 1}, "rounds 0"),
    ],
)
def test_resuming_with_other_settings_is_one_sentence(settings, more, begun):
    """All shapes fit, and still it would be another model, or its card would tell the second setting for the whole run."""
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    run.loop.advance()
    run.model.switch.remove()
    other = Run(replace(settings, **({"resume": True, "rounds": 0} | more)), QUIET)
    with pytest.raises(UserError, match=rf"can't be resumed \(it was begun with {begun}\), wanted the checkpoint of a run with the same"):
        other.start()
    other.model.switch.remove()


def test_a_finished_run_trains_no_more_and_a_larger_budget_goes_on(settings, monkeypatch):
    folder = adapt(replace(settings, steps=2), QUIET)
    before = weights(folder)
    with monkeypatch.context() as patched:
        patched.setattr("netllm.abr.adapt.train_step", interrupt)
        assert_equal(weights(adapt(replace(settings, steps=2, resume=True), QUIET)), before)
    adapt(replace(settings, steps=3, resume=True), QUIET)
    assert [row["step"] for row in csv.DictReader((settings.out / "curve.csv").open())] == ["2", "3"]


def test_experience_made_elsewhere_is_learnt_from_if_it_fits(settings, tmp_path):
    path = collect(tmp_path / "mine.parquet", replace(settings.collect, sessions=4))
    fitting = replace(settings, steps=1, rounds=0, experience=path)
    assert read_settings(adapt(fitting, QUIET))["trained"]["experience"]["settings"]["sessions"] == 4
    refused = ({"held_out": 0.5}, "holds back other traces"), ({"teachers": ("bba",)}, "was labelled by scenario_mpc, wanted bba")
    for change, message in refused:
        run = Run(replace(fitting, out=tmp_path / str(change), collect=replace(settings.collect, **change)), QUIET)
        with pytest.raises(UserError, match=message):
            run.start()
        run.model.switch.remove()


def test_families_count_alike_in_validation():
    video = a_session(20).video
    traces = [RateTrace(f"t{i}", (0.0, 1.0), (1e6,)) for i in range(3)]
    batch = [Job(a_session(20), trace, 0.0, "greedy", 0.0, 0, family) for trace, family in zip(traces, "abb", strict=True)]
    histories = [played(seed, 20)[1] for seed in (1, 2, 3)]
    one, two, three = (summarise(history, video).qoe for history in histories)
    score = score_of(batch, histories)
    assert score.qoe == pytest.approx((one + (two + three) / 2) / 2)
    assert score.families == pytest.approx({"a": one, "b": (two + three) / 2})


def test_sessions_on_one_measurement_are_no_independent_evidence():
    """Four traces played once or forty times: as much is known of other traces."""
    names = ["trace_1_http---a", "trace_2_http---a", "norway_bus_3_0", "norway_bus_4_0"]
    qoe = [0.1, 0.6, 0.9, 1.2]

    def interval(family: str, repeats: int) -> Estimate:
        batch = [
            Job(a_session(20), RateTrace(name, (0.0, 1.0), (1e6,)), 0.0, "greedy", 0.0, 0, family) for name in names for _ in range(repeats)
        ]
        return by_family(batch, [value for value in qoe for _ in range(repeats)])[family]

    once, often = interval("held_out", 1), interval("held_out", 40)
    assert often.mean == pytest.approx(once.mean) and often.half_width == pytest.approx(once.half_width)
    assert interval("synthetic", 40).half_width < 0.2 * once.half_width, "those are drawn anew each time"


def test_training_overfits_a_few_sessions(settings):
    model = lively(Path(settings.llm), name="overfit")
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    batch = stack(run.pools[0])
    before = loss_of(model, batch).item()
    optimiser = make_optimiser(model, OptimiserSettings(lr_lora=3e-3, lr_modules=3e-3))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"]
    for _ in range(60):
        train_step(model, optimiser, OptimiserSettings(), [batch], loss_of)
    floor = float(-(batch["label"] * np.log(np.maximum(batch["label"], 1e-30))).sum() / batch["weight"].sum())
    assert loss_of(model, batch).item() - floor < 0.3 * (before - floor)
    run.model.switch.remove()


def test_training_never_changes_the_backbone(settings):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    frozen = {name: tensor.clone() for name, tensor in run.model.backbone.model.named_parameters() if "lora_" not in name}
    moved = [parameter.clone() for parameter in run.model.switch.parameters()]
    for _ in range(3):
        run.loop.advance()
    for name, parameter in run.model.backbone.model.named_parameters():
        assert "lora_" in name or torch.equal(parameter, frozen[name]), name
    assert any(not torch.equal(a, b) for a, b in zip(moved, run.model.switch.parameters(), strict=True))
    run.model.switch.remove()


def test_accumulated_micro_batches_give_the_gradient_of_one_batch(settings):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    sessions, found = run.pools[0], []
    for parts in ([stack(sessions)], [stack(sessions[:3]), stack(sessions[3:])]):
        run.optimiser.zero_grad()
        for part in parts:
            (loss_of(run.model, part) / len(parts)).backward()
        found.append(torch.cat([p.grad.flatten() for p in run.model.adapt_parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-3)
    run.model.switch.remove()


def test_the_mean_of_weights_forgets_at_the_pace_it_is_told():
    weight = torch.nn.Parameter(torch.zeros(3))
    last, mean = RunningMean({"w": weight}), RunningMean({"w": weight})
    values = np.random.default_rng(1).normal(size=200)
    expected = 0.0
    for step, value in enumerate(values, 1):
        weight.data.fill_(float(value))
        last.update(kept_share(0.0, step))
        mean.update(kept_share(0.9, step))
        expected += (1 - min(0.9, step / (step + 10))) * (value - expected)
    torch.testing.assert_close(last.weights["w"], weight.data)
    torch.testing.assert_close(mean.weights["w"], torch.full((3,), expected), atol=1e-5, rtol=1e-5)


def test_of_the_untrained_weights_soon_nothing_is_left_in_the_mean():
    weight = torch.nn.Parameter(torch.full((3,), 1e6))
    mean = RunningMean({"w": weight})
    weight.data.zero_()
    for step in range(1, 101):
        mean.update(kept_share(0.999, step))
    assert float(mean.weights["w"].max()) < 1e-3


def test_what_is_kept_is_the_mean_of_weights_and_training_goes_on_from_its_own(settings):
    run = Run(replace(settings, rounds=0), QUIET)
    run.start()
    for _ in range(3):
        run.loop.advance()
    own = [parameter.detach().clone() for parameter in run.model.adapt_parameters()]
    run.loop._validate()
    assert all(torch.equal(*pair) for pair in zip(own, run.model.adapt_parameters(), strict=True))
    with run.mean.in_place():
        mean = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert any(not torch.equal(mean[name], tensor) for name, tensor in run.model.state_dict().items())
    assert_equal({"modules.safetensors": mean}, {"modules.safetensors": weights(settings.out / "adapter")["modules.safetensors"]})
    with pytest.raises(SystemError), run.mean.in_place():
        raise SystemError
    assert all(torch.equal(*pair) for pair in zip(own, run.model.adapt_parameters(), strict=True))
    run.model.switch.remove()


def test_the_rate_warms_up_in_optimiser_steps_then_decays():
    settings = OptimiserSettings(warmup_steps=10, final_share=0.1)
    optimiser = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "peak": 1.0}])
    assert set_rate(optimiser, settings, 0, 0.0) == pytest.approx(0.1)
    assert set_rate(optimiser, settings, 9, 0.0) == pytest.approx(1.0)
    assert set_rate(optimiser, settings, 500, 0.5) == pytest.approx(0.55)
    assert set_rate(optimiser, settings, 500, 1.2) == pytest.approx(0.1)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1)


def test_picks_depend_on_seed_and_step_only_and_use_every_pool():
    assert pick(1, 5, 8, [10, 3]) == pick(1, 5, 8, [10, 3]) != pick(1, 6, 8, [10, 3])
    assert [pool for pool, _ in pick(1, 5, 8, [10, 3])] == [0, 1] * 4


def test_a_folder_in_use_is_refused_without_resume(settings):
    settings.out.mkdir()
    (settings.out / "precious").touch()
    with pytest.raises(UserError, match=r"is not empty, wanted a new folder \(or --resume\)"):
        adapt(settings, QUIET)


def test_an_unknown_task_is_exit_code_2(capsys):
    assert adapt_command(["chess"]) == 2
    assert capsys.readouterr().err == "scripts/adapt: task 'chess' is unknown, wanted one of abr, abr-choose, cjs, cjs-trust, vp\n"
