"""Reports of schedules and of viewings in a real browser: what the pointer rests on is told, and no script fails."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_tasks import folder_of, schedules, viewings

from players.dash.devtools import Browser, chromium
from testbed.records import Event
from testbed.report.build import build

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def tip(page: Browser, selector: str) -> str | None:
    """What is told while the pointer rests on the first element that `selector` finds."""
    place = page.evaluate(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
        "const b = e.getBoundingClientRect(), at = [b.left + b.width / 2, b.top + b.height / 2];"
        "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(at)))); })()"  # scrolling hides the tip
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    return page.evaluate("(t => t.hidden ? null : t.textContent)(document.querySelector('.tip'))")


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (
            schedules,
            {
                "svg.timeline rect.job": "job 0, executor 0\n0.0 to 8.0 s",
                "svg.timeline path.fallback": "executor 1 lost at 12.0 s\na test",
                "svg.timeline rect.lost-switch": "executor 0\nsent 3.000 MB\nreceived 0.000 MB",
            },
        ),
        (
            viewings,
            {
                "svg.timeline rect.hit": "second 0\n2.10 Mbit/s in view\nblank 1.0 %\nstall 0.000 s\n200 kB, never seen 50 kB",
                "svg.timeline rect.hit ~ rect.hit": "second 1\n2.10 Mbit/s in view\nblank 1.0 %\nstall 0.000 s\n200 kB, never seen 50 kB",
            },
        ),
    ],
    ids=["schedules", "viewings"],
)
def test_the_pointer_reads_a_drawing(browser: Browser, tmp_path: Path, events: Callable[[], Iterator[Event]], told: dict[str, str]) -> None:
    folder = folder_of(tmp_path, list(events()))
    build(folder)
    browser.open((folder / "report.html").as_uri())
    assert {selector: tip(browser, selector) for selector in told} == told
    assert browser.complaints() == []
