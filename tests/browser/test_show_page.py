"""The live page in the real browser: lanes appear and move on, a click opens one, nothing is asked of another host."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report_page import CONTRAST, count

from players.dash.devtools import Browser, chromium
from testbed.lane import picture_of
from testbed.live import LiveView
from testbed.records import ChunkRow, DecisionRow, StallRow
from testbed.show import Show, served
from testbed.spec import Experiment
from testbed.tasks import prepare

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def show(tmp_path: Path) -> Show:
    return show_of(tmp_path, "".join(f"{10 * i} {rate}\n" for i, rate in enumerate((3.0, 1.0, 4.0, 2.0))))


def show_of(tmp_path: Path, steps: str) -> Show:
    """Two lanes that begin to play over this trace."""
    trace = tmp_path / "steps.txt"
    trace.write_text(steps)
    experiment = Experiment(trace=(str(trace),), policies="bba,fixed+level=1", chunks=12, trials=1, video="synthetic")
    prepared = prepare(experiment)
    view = LiveView(len(prepared.trials), 12, Console(quiet=True))
    shown = Show(view, prepared, tmp_path)
    for lane, trial in enumerate(prepared.trials):
        shown.trial_started(trial.trial_id, trial.policy, trial.trace.name, lane)
    return shown


def chunk(trial_id: str, index: int) -> ChunkRow:
    return ChunkRow(
        trial_id=trial_id,
        index=index,
        level=index % 6,
        bitrate_bps=(300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)[index % 6],
        size_bytes=100_000,
        request_s=3.0 * index,
        first_byte_s=3.0 * index + 0.1,
        end_s=3.0 * index + 2,
        download_s=2.0,
        rebuffer_s=0.0,
        buffer_s=4.0 + index,
        waited_s=0.0,
        qoe=1.0,
    )


def decision(trial_id: str, index: int) -> DecisionRow:
    reason = "late" if index == 2 else ""
    return DecisionRow(
        trial_id=trial_id,
        chunk_index=index,
        at_s=3.0 * index - 0.1,
        level=index % 6,
        latency_s=0.012,
        policy_s=None if reason else 0.01,
        source="fallback" if reason else "policy",
        reason=reason,
    )


def wait_until(page: Browser, expression: str) -> None:
    """Until the page says so: it asks for the state twice a second."""
    script = f"new Promise(done => {{ const look = () => ({expression}) ? done(true) : setTimeout(look, 20); look(); }})"
    assert page.evaluate(script)


def test_lanes_are_drawn_and_move_on_and_a_click_opens_one(browser: Browser, show: Show, tmp_path: Path) -> None:
    browser.open("about:blank")
    picture_of(tmp_path, 0).write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", format="jpeg")["data"]))
    for index in range(4):
        for trial_id in ("t0000", "t0001"):
            show.row(chunk(trial_id, index))
            if index:
                show.row(decision(trial_id, index))
    show.row(StallRow(trial_id="t0000", start_s=5.0, end_s=6.0))
    show.note("a <b>note</b>")
    with served(show) as url:
        browser.open(url)
        wait_until(browser, "document.querySelectorAll('section.lane rect[fill]').length > 5")
        assert browser.complaints() == []
        assert all(asked.startswith((url, "data:")) for asked in browser.requested())
        assert count(browser, "section.lane") == 2 and count(browser, "section.lane img") == 1
        lane = "section[data-lane='0'] "
        assert [count(browser, lane + kind) for kind in ("line.l-chunk", "circle.l-decision", "rect.l-stall")] == [4, 3, 1]
        assert browser.evaluate("document.querySelector('#notes').textContent") == "a <b>note</b>"
        assert browser.evaluate("document.querySelector('#progress').textContent") == "playing: 0 of 2 trials done"
        click(browser, "section[data-lane='1'] h2")
        wait_until(browser, "document.querySelectorAll('section[data-lane=\"1\"].open .detail td').length > 0")
        assert "fallback: late" in browser.evaluate("document.querySelector('section.open .detail').textContent")
        show.row(chunk("t0000", 4))
        wait_until(browser, "document.querySelectorAll('section[data-lane=\"0\"] line.l-chunk').length === 5")
        assert browser.evaluate(CONTRAST)["ratio"] >= 4.5
        shot = browser.call("Page.captureScreenshot", format="png")["data"]
        assert len(shot) > 20_000
        click(browser, "section[data-lane='1'] h2")
        wait_until(browser, "document.querySelectorAll('section.open').length === 0")
    wait_until(browser, "!document.getElementById('over').hidden")


def test_a_period_of_milliseconds_is_drawn_as_its_mean(browser: Browser, tmp_path: Path) -> None:
    with served(show_of(tmp_path, "0 1\n0.001 2\n0.004 4\n")) as url:
        browser.open(url)
        wait_until(browser, "document.querySelectorAll('section.lane rect[fill]').length > 100")
        heights = browser.evaluate("[...document.querySelectorAll('[data-lane=\"0\"] rect[fill]')].map(r => +r.getAttribute('height'))")
        assert len(heights) < 2000 and heights == pytest.approx([96 / 1.1] * len(heights), rel=0.03)
        assert browser.complaints() == []


@pytest.mark.parametrize("width", [1600, 390])
def test_it_fits_its_window(browser: Browser, show: Show, width: int) -> None:
    show.row(chunk("t0000", 0))
    with served(show) as url:
        browser.open(url)
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        wait_until(browser, "document.querySelectorAll('line.l-chunk').length === 1")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def click(page: Browser, selector: str) -> None:
    """As a mouse does."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    place: Any = page.evaluate(f"(b => ({{x: b.x + b.width / 2, y: b.y + b.height / 2}}))({box})")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1)
