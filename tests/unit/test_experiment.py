"""An experiment in real time: what is up while its trials are played, and no more once they are over."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from controllers.api import Manifest
from testbed import experiment
from testbed.abr import PreparedPlaybacks, job
from testbed.netns import owned
from testbed.policycards import PolicyCard
from testbed.recorder import Recorder
from testbed.spec import Experiment
from testbed.trial import plan
from testbed.twin import simulate
from testbed.verdict import PathFacts
from traces.trace import RateTrace

VIDEO = Manifest("toy", 4.0, (300_000, 750_000), ((150_000, 375_000),) * 4)
POLICY = "fixed+level=0"


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt])
def test_the_network_is_down_before_twins_and_optima_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException] | None
) -> None:
    wanted = Experiment(policies=POLICY, trials=2, chunks=4, out=str(tmp_path))
    trials = plan(wanted, (POLICY,), [RateTrace("steady", (0.0, 60.0), (2e6,))])
    prepared = PreparedPlaybacks(wanted, (PolicyCard(POLICY, POLICY, "#777777", "", POLICY),), (), trials, (), VIDEO)
    happened: list[str] = []

    def play(recorder: Recorder) -> None:
        happened.append("play")
        if fault:
            raise fault
        for trial in trials:
            for row in simulate(job(prepared, trial)):
                recorder.row(row)
            recorder.close(trial.trial_id, PathFacts())

    @contextlib.contextmanager
    def emulated(_: PreparedPlaybacks) -> Iterator[SimpleNamespace]:
        happened.append("up")
        try:
            yield SimpleNamespace(run=play, facts={}, pictures=None)
        finally:
            happened.append("down")

    def noted(what: str) -> Callable[..., None]:
        return lambda *_: happened.append(what)

    for name, stand_in in {
        "prepare": lambda _: prepared,
        "_emulated": emulated,
        "_add_twins": noted("twins"),
        "_add_optima": noted("optima"),
    }.items():
        monkeypatch.setattr(experiment, name, stand_in)
    monkeypatch.setattr(owned, "require_root", noted("root"))
    with pytest.raises(fault) if fault else contextlib.nullcontext():
        experiment.run(wanted, Console(quiet=True))
    assert happened == ["root", "up", "play", "down", *([] if fault else ["twins", "optima"])]
