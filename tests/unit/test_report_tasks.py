"""Reports of schedules and of viewings: their figures show what their tables count, and are called by the metric."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_tasks import POLICIES, folder_of, schedules, viewings

from testbed.events import read_run
from testbed.records import Event
from testbed.report.page import Page
from testbed.report.paper import export
from testbed.report.summary import summarise

Events = Callable[[str], Iterator[Event]]


def page_of(base: Path, events: Iterator[Event]) -> Page:
    run = read_run(folder_of(base, list(events)))
    return Page(run, summarise(run))


@pytest.mark.parametrize("events", [schedules, viewings])
@pytest.mark.parametrize("failing", ["", "bola"])
def test_who_has_no_mean_has_no_curve(tmp_path: Path, events: Events, failing: str) -> None:
    page = page_of(tmp_path, events(failing))
    with_mean = {str(POLICIES.index(name)) for name, row in page.summary["policies"].items() if row["mean"] is not None}
    assert with_mean == ({"0", "2"} if failing else {"0", "1", "2"})
    drawn = [page.distribution()["svg"], *([page.viewings.errors()] if page.viewings else [])]
    assert [set(re.findall('data-p="(.)"', svg)) for svg in drawn] == [with_mean] * len(drawn)


@pytest.mark.parametrize(("events", "name"), [(schedules, "jct"), (viewings, "qoe")])
def test_figures_for_a_paper_are_called_by_the_metric(tmp_path: Path, events: Events, name: str) -> None:
    written = export(page_of(tmp_path, events("")).run, tmp_path / "figures", "svg")
    assert [path.name for path in written] == [f"{name}_mean.svg", f"{name}_cdf.svg", f"{name}_difference.svg", "decision_latency.svg"]
