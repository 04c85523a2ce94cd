"""The live table and the final one."""

import io
from datetime import UTC, datetime

import pytest
from fake_run import FakeRun
from rich.console import Console

from testbed.events import read_run
from testbed.live import LiveView
from testbed.records import TrialRow
from testbed.report.summary import summarise
from testbed.results import ResultFolder
from testbed.terminal import print_summary

FAKE = FakeRun(traces=2, policies=("netllm", "bba"), chunks=10, link_rows=False, fallback_share=0.3)


def console(width: int = 130, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def said(view: LiveView) -> str:
    out = console()
    out.print(view.renderable())
    return out.file.getvalue()


def rows_of(trial_id: str) -> list:
    return [event for event in FAKE.events() if getattr(event, "trial_id", None) == trial_id]


def test_table_follows_a_trial():
    times = iter([0.0, 100.0, 200.0])
    view = LiveView(4, 10, console(), clock=lambda: next(times))
    *rows, end = [row for row in rows_of("t0000") if type(row).__name__ != "LatenessRow"]
    view.trial_started("t0000", "netllm", end.trace, 3)
    for row in rows:
        view.row(row)
    shown = said(view)
    assert all(part in shown for part in ("netllm", "10/10", "▁", "0 of 4 trials", f"{end.qoe:.2f}", "about 5:00 left"))
    assert f" {end.fallbacks} " in shown and end.fallbacks > 0
    assert view.share_done() == pytest.approx(0.25)
    view.trial_ended(end)
    assert view.share_done() == pytest.approx(0.25)
    shown = said(view)
    assert "netllm" not in shown and "1 of 4 trials" in shown and "about 10:00 left" in shown


def test_lane_is_taken_over_by_its_next_trial():
    view = LiveView(4, 10, console())
    view.trial_started("t0000", "netllm", "x", 0)
    view.trial_started("t0001", "bba", "x", 0)
    for row in rows_of("t0000")[:3]:
        view.row(row)
    assert "bba" in said(view) and "netllm" not in said(view) and "0/10" in said(view)


def test_rows_of_trials_that_were_not_announced_do_no_harm():
    view = LiveView(4, 10, console())
    for event in FAKE.events():
        if isinstance(event, TrialRow):
            view.trial_ended(event)
        elif hasattr(event, "trial_id"):
            view.row(event)
    assert view.ended == 4 and view.share_done() == 1.0


def test_no_terminal_gets_few_quiet_lines():
    out = console()
    end = rows_of("t0000")[-1]
    with LiveView(400, 10, out) as view:
        for _ in range(400):
            view.trial_ended(end)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 20 and lines[-1].startswith("[400/400] netllm on ") and "\x1b" not in out.file.getvalue()


def test_invalid_trials_are_told_at_once_everywhere():
    end = next(e for e in FakeRun(traces=1, policies=("bba",), chunks=4, invalid_every=1).events() if isinstance(e, TrialRow))
    for terminal in (False, True):
        out = console(terminal=terminal)
        with LiveView(400, 4, out) as view:
            view.trial_ended(end)
        assert "invalid: link: p99 lateness 7.31 ms" in out.file.getvalue()


def test_a_trial_to_be_played_again_is_told_and_not_over():
    end = next(e for e in FakeRun(traces=1, policies=("bba",), chunks=4, invalid_every=1).events() if isinstance(e, TrialRow))
    out = console()
    with LiveView(2, 4, out) as view:
        view.trial_ended(end, again=True)
        assert (view.ended, view.invalid, view.share_done()) == (0, 0, 0.0)
        assert "0 of 2 trials, 1 played again" in said(view)
    assert "[0/2] bba on " in out.file.getvalue()
    assert "its link failed, to be played again: link: p99 lateness 7.31 ms" in out.file.getvalue()


def test_terminal_is_left_clean_after_an_error():
    out = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), LiveView(4, 10, out) as view:
        view.trial_started("t0000", "netllm[x]", "trace [y]", 0)
        view.note("a [note]")
        raise KeyboardInterrupt
    assert "a [note]" in out.file.getvalue()
    assert out.file.getvalue().count("\x1b[?25l") == out.file.getvalue().count("\x1b[?25h") == 1


def test_final_table_tells_of_repeats_and_the_host(tmp_path):
    fake = FakeRun(traces=5, invalid_every=5, repeated=True)
    folder = ResultFolder.create(tmp_path, fake.header(), datetime(2026, 1, 1, tzinfo=UTC))
    folder.extend(list(fake.events())[1:])
    folder.close()
    out = console()
    print_summary(summarise(read_run(folder.path)), out)
    text = out.file.getvalue()
    assert "link fidelity: pass" in text and "4 trials played again" in text and "% of CPU time stolen" in text
    assert "4 trials were played again because the link failed (t0004: link: p99 lateness 7.31 ms" in text and "and 1 more" in text
    assert "4 of 5" not in text


def test_what_comes_after_the_trials_is_told():
    out = console()
    with LiveView(2, 10, out) as view:
        view.stage("finding the offline optimum", 2, "trace")
        view.advance()
        progress = console()
        progress.print(view.renderable())
    assert "finding the offline optimum of 2 traces" in out.file.getvalue()
    assert "finding the offline optimum: 1 of 2 traces" in progress.file.getvalue()


@pytest.mark.parametrize("width", [80, 130])
def test_final_table_ends_with_the_optimum(tmp_path, width):
    folder = ResultFolder.create(tmp_path, FakeRun(optimum=True).header(), datetime(2026, 1, 1, tzinfo=UTC))
    folder.extend(list(FakeRun(optimum=True).events())[1:])
    folder.close()
    summary = summarise(read_run(folder.path))
    out = console(width)
    print_summary(summary, out)
    lines = out.file.getvalue().splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("optimum: "))]
    assert not any(len(line.rstrip()) > width or "…" in line for line in table)
    assert "share" in out.file.getvalue() and "knows the whole trace" in out.file.getvalue()
    (last,) = [line for line in table if line.strip().startswith("optimum  ")]
    assert f"{summary['optimum']['mean']:.2f}" in last
    (netllm,) = [line for line in table if line.strip().startswith("netllm  ")]
    assert f"{100 * summary['policies']['netllm']['share_of_optimum']:.0f} %" in netllm


@pytest.mark.parametrize("width", [80, 130])
def test_final_table_says_what_matters_whole(tmp_path, width):
    fake = FakeRun(traces=5, source="model", invalid_every=5, ended=False)
    folder = ResultFolder.create(tmp_path, fake.header(), datetime(2026, 1, 1, tzinfo=UTC))
    folder.extend(list(fake.events())[1:])
    folder.close()
    summary = summarise(read_run(folder.path))
    out = console(width)
    print_summary(summary, out)
    text = out.file.getvalue()
    for part in (
        "modelled, not measured",
        "netllm",
        "robust_mpc",
        "95 % interval",
        "4 of 5",
        "link fidelity: fail",
        "cut short",
        "robust_mpc: ",
    ):
        assert part in text, part
    assert f"{summary['policies']['bba']['mean']:.2f}" in text and "…" not in text
    assert ("stall" in text) == (width > 100)
