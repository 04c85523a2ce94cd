"""The loop of training runs: interrupted at any line it ends as it would have; budgets, due times, and what kill -9 leaves."""

import csv
import sys
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from controllers.learning import averaging, loop, saved
from controllers.learning.averaging import RunningMean
from controllers.learning.loop import Loop, Pace, Standing, Trainee, Validation, asked_of
from controllers.learning.saved import add_row, cut_curve
from testbed.errors import UserError

QUIET = Console(quiet=True)
STEPS = 6
PACE = Pace(STEPS, validate_every=2)


class Line(Trainee):
    """Fits a line by gradient; after step 3 it gets another target, once."""

    name = "line"

    def __init__(self, out: Path, keep: float = 0.5) -> None:
        self.out, self.kept = out, keep
        self.model = torch.nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(0.5)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.mean = RunningMean(dict(self.model.named_parameters()))
        self.target, self.calls = 1.0, list[str]()

    def tensors(self):
        newest = {f"newest/{name}": parameter for name, parameter in self.model.named_parameters()}
        return newest | {f"mean/{name}": tensor for name, tensor in self.mean.weights.items()}

    def step(self, number, done):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        loss = (self.model(x) - self.target).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.mean.update(self.kept)
        self.calls.append(f"step {number}")
        return {"loss": loss.item()}

    def between(self, done):
        if self.target != 1.0 or done < 0.5:
            return False
        self.target = 2.0
        return True

    def validate(self, standing, figures):
        with self.mean.in_place(), torch.no_grad():
            cost = (self.model(torch.ones(1, 3)) - self.target).abs().item()
        self.calls.append(f"validate {standing.step}")
        return Validation(cost, {"step": standing.step, "loss": sum(each["loss"] for each in figures), "cost": cost}, "", {})

    def keep(self, standing, found):
        save_file({name: tensor.clone() for name, tensor in self.mean.weights.items()}, self.out / "best.safetensors")

    def facts(self):
        return {"target": self.target}

    def restore(self, facts):
        self.target = facts["target"]


def begun(out, resume=False, pace=PACE, asked=None):
    out.mkdir(exist_ok=True)
    made = Loop(Line(out), out, pace, asked or {"seed": 1}, QUIET)
    if resume:
        made.resume()
    return made


def left_by(out):
    """Everything that a run leaves but times."""
    tensors = {path.name: load_file(path) for path in sorted(out.glob("*.safetensors"))}
    return {f"{file}/{name}": tensor.tolist() for file, found in tensors.items() for name, tensor in found.items()} | {
        "curve": (out / "curve.csv").read_bytes()
    }


class Interrupt:
    """Raises `KeyboardInterrupt` before the `at`th line that runs in the loop's files and in `Line`."""

    FILES = frozenset(module.__file__ for module in (loop, averaging, saved)) | {__file__}

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in self.FILES:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, made):
        sys.settrace(self)
        try:
            made.run()
        finally:
            sys.settrace(None)


def test_ctrl_c_at_any_line_changes_nothing(tmp_path):
    whole = begun(tmp_path / "whole")
    counted = Interrupt(0)
    counted.run(whole)
    expected = left_by(tmp_path / "whole")
    assert counted.lines > 500
    for at in range(1, counted.lines + 1, 3):
        out = tmp_path / str(at)
        try:
            Interrupt(at).run(begun(out))
        except KeyboardInterrupt:
            torch.set_grad_enabled(True)  # what is cut on its way out of `no_grad` leaves it off in this process
            begun(out, resume=True).run()
        assert left_by(out) == expected, at


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_kill_between_two_steps_changes_nothing(tmp_path, steps):
    begun(tmp_path / "whole").run()
    killed = begun(tmp_path / "cut", pace=replace(PACE, save_minutes=0.0))
    for _ in range(steps):
        killed.advance()
    again = begun(tmp_path / "cut", resume=True)
    assert again.standing.step == steps
    again.run()
    assert left_by(tmp_path / "cut") == left_by(tmp_path / "whole")


def test_a_mean_that_was_put_in_place_by_half_is_taken_out_again(monkeypatch):
    weights = {name: torch.nn.Parameter(torch.zeros(2)) for name in "ab"}
    mean = RunningMean(weights)
    mean.fill({name: torch.ones(2) for name in "ab"})
    put = mean._put

    def half(found):
        put({name: found[name] if name == "a" else weights[name].detach() for name in "ab"})
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(mean, "_put", half)
    with pytest.raises(KeyboardInterrupt), mean.in_place():
        pass
    assert all(not weight.any() for weight in weights.values())


def test_a_finished_run_does_nothing_more_and_a_larger_budget_goes_on(tmp_path):
    begun(tmp_path).run()
    before, again = left_by(tmp_path), begun(tmp_path, resume=True)
    again.run()
    assert again.trainee.calls == [] and left_by(tmp_path) == before
    longer = begun(tmp_path, resume=True, pace=replace(PACE, steps=STEPS + 2))
    longer.run()
    assert longer.trainee.calls == ["step 6", "step 7", "validate 8"]


def test_a_run_cut_before_its_last_validation_makes_it_when_taken_up_again(tmp_path, monkeypatch):
    cut = begun(tmp_path, pace=Pace(STEPS))
    monkeypatch.setattr(cut.trainee, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = begun(tmp_path, resume=True, pace=Pace(STEPS))
    again.run()
    assert again.trainee.calls == ["validate 6"] and (again.standing.validated, again.standing.best_step) == (6, 6)


@pytest.mark.parametrize("within", ["validate", "keep", "_take"])
def test_a_kill_in_a_validation_makes_the_same_one_again(tmp_path, monkeypatch, within):
    """Else a run in minutes could go on to another model, worse than what it kept already, and take that for the best."""
    killed = begun(tmp_path, pace=Pace(minutes=1e9, validate_every=2, save_minutes=inf))
    killed.advance()

    def step(*given):
        figures = honest(*given)
        monkeypatch.setattr(killed if within == "_take" else killed.trainee, within, Kill(1 if within == "_take" else 0, killed._take))
        return figures

    honest = killed.trainee.step
    monkeypatch.setattr(killed.trainee, "step", step)
    with pytest.raises(SystemError, match="killed"):
        killed.advance()
    again = begun(tmp_path, resume=True, pace=killed.pace)
    assert again.standing.step == 2
    again._settle()
    assert again.trainee.calls == ["validate 2"] and again.standing.best_step == 2
    assert [row["step"] for row in csv.DictReader((tmp_path / "curve.csv").open())] == ["2"]


class Kill:
    """Dies when it is called after `calls` times."""

    def __init__(self, calls, honest):
        self.calls, self.honest = calls, honest

    def __call__(self, *given):
        if not self.calls:
            raise SystemError("killed")
        self.calls -= 1
        return self.honest(*given)


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_that_was_cut_short_is_never_taken_up(tmp_path, monkeypatch, again):
    """Whether it is of another step than the whole one, or of the same."""
    run = begun(tmp_path, pace=Pace(STEPS, save_minutes=0.0))
    run.advance()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(saved, "save_file", full_disk)
    with pytest.raises(OSError, match="disk full"):
        run._save() if again else run.advance()
    assert begun(tmp_path, resume=True).standing.step == 1


@dataclass
class Clock:
    """Time passes where it is told to."""

    now: float = 100.0

    def passing(self, work, seconds):
        def timed(*given):
            self.now += seconds
            return work(*given)

        return timed


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(loop, "now_s", lambda: made.now)
    return made


def test_a_long_validation_does_not_call_for_the_next(tmp_path, clock, monkeypatch):
    run = begun(tmp_path, pace=Pace(100, validate_minutes=1.0))
    monkeypatch.setattr(run.trainee, "step", clock.passing(run.trainee.step, 20.0))
    monkeypatch.setattr(run.trainee, "validate", clock.passing(run.trainee.validate, 90.0))
    for _ in range(9):
        run.advance()
    assert [call for call in run.trainee.calls if call.startswith("validate")] == ["validate 3", "validate 6", "validate 9"]
    assert run.standing.elapsed_s == pytest.approx(9 * 20 + 3 * 90)


def test_the_time_of_a_round_and_of_a_validation_is_in_the_checkpoint(tmp_path, clock, monkeypatch):
    run = begun(tmp_path, pace=Pace(STEPS, save_minutes=inf))
    monkeypatch.setattr(run.trainee, "between", clock.passing(run.trainee.between, 600.0))
    for _ in range(3):
        run.advance()
    again = begun(tmp_path, resume=True)
    assert (again.standing.step, again.standing.elapsed_s, again.trainee.target) == (3, 600.0, 2.0)
    monkeypatch.setattr(run.trainee, "validate", clock.passing(run.trainee.validate, 60.0))
    run._validate()
    assert begun(tmp_path, resume=True).standing == run.standing
    assert run.standing.validated_s == run.standing.elapsed_s == 660.0


def test_validations_may_come_on_top_of_the_budget(tmp_path, clock, monkeypatch):
    run = begun(tmp_path, pace=Pace(minutes=1.0, validations=2, validations_count=False))
    monkeypatch.setattr(run.trainee, "step", clock.passing(run.trainee.step, 10.0))
    monkeypatch.setattr(run.trainee, "validate", clock.passing(run.trainee.validate, 1e6))
    run.run()
    assert [call for call in run.trainee.calls if call.startswith("validate")] == ["validate 3", "validate 6"]
    assert run.standing.elapsed_s == 60.0


@pytest.mark.parametrize("steps, validations", [(100, 29), (7, 3), (25, 25), (8, 1)])
def test_validations_at_equal_distances(steps, validations):
    pace, standing, at = Pace(steps, validations=validations), Standing(), []
    for step in range(1, steps + 1):
        standing = replace(standing, step=step)
        if pace.validation_due(standing):
            standing = replace(standing, validated=step)
            at.append(step)
    assert at == [-(-number * steps // validations) for number in range(1, validations + 1)]


def test_what_is_not_as_it_was_asked_is_told_with_what_it_was(tmp_path):
    begun(tmp_path, asked={"seed": 1, "ppo": {"lr": 0.1, "clip": 0.2}}).run()
    with pytest.raises(UserError, match=r"can't be resumed \(it was begun with ppo.lr 0.1, threads None\), wanted the checkpoint of a run"):
        begun(tmp_path, resume=True, asked={"seed": 1, "ppo": {"lr": 0.3, "clip": 0.2}, "threads": 2})
    begun(tmp_path, resume=True, asked={"seed": 1, "ppo": {"lr": 0.1, "clip": 0.2}})


def test_place_threads_and_budget_may_change_and_nothing_else():
    @dataclass(frozen=True)
    class Inner:
        steps: int = 3
        lr: float = 0.1

    @dataclass(frozen=True)
    class Settings:
        out: Path = Path("x")
        resume: bool = False
        threads: int = 1
        steps: int = 5
        checkpoint_minutes: float = 2.0
        dtype: str = "float32"
        inner: Inner = Inner()

    assert asked_of(Settings(), ["steps"]) == {"dtype": "float32", "inner.steps": 3, "inner.lr": 0.1}


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    begun(tmp_path).run()
    other = begun(tmp_path)
    other.trainee.mean.weights["bias"] = torch.zeros(1, 1)
    with pytest.raises(UserError, match=r"mean/bias has shape \(1,\), wanted \(1, 1\)"):
        other.resume()


ROWS = [{"step": step, "cost": step / 10} for step in (1, 2, 3)]
LINES = b"step,cost\r\n1,0.1\r\n2,0.2\r\n3,0.3\r\n"


@pytest.mark.parametrize("length", range(len(LINES) + 1))
def test_a_curve_that_was_cut_anywhere_goes_on_whole(tmp_path, length):
    """As kill -9 leaves it: empty, with half a heading, with half a row."""
    path = tmp_path / "curve.csv"
    path.write_bytes(LINES[:length])
    cut_curve(path, 2)
    kept = [int(row["step"]) for row in csv.DictReader(path.open())]
    assert kept == [step for step in (1, 2) if len(LINES.partition(b"%d,0.%d\r\n" % (step, step))[0]) + 7 <= length]
    for row in ROWS[len(kept) :]:
        add_row(path, row)
    assert path.read_bytes() == LINES


def test_rows_without_a_number_are_dropped(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_bytes(b"step,cost\r\n1,0.1\r\n\r\n2,0.2\r\n\x00\x00\x00")
    cut_curve(path, 5)
    assert path.read_bytes() == b"step,cost\r\n1,0.1\r\n2,0.2\r\n"
    cut_curve(tmp_path / "none.csv", 5)
    assert not (tmp_path / "none.csv").exists()
