"""The report in a real browser: silent console, no request, and what a reader sees and does works."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_run import POLICIES, FakeRun

from players.dash.devtools import Browser, chromium
from testbed.report.build import build
from testbed.results import ResultFolder

pytestmark = pytest.mark.browser
TRACES = 5
HEADINGS = (
    "Setting",
    "QoE per chunk",
    "Gap to the offline optimum",
    "NetLLM minus each other policy",
    "Distribution over trials",
    "What QoE is made of",
    "Trials over time",
    "Decision latency",
    "Emulation against simulation",
    "Link fidelity: fail",
    "Lateness of packets",
    "The host over the run",
    "What links did with their capacity",
    "Verdicts trial by trial",
    "Invalid trials",
    "Run it again",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake = FakeRun(
        traces=TRACES, policies=tuple(POLICIES), fallback_share=0.05, invalid_every=13, notes=["a note"], uplink=True, optimum=True
    )
    folder = ResultFolder.create(tmp_path_factory.mktemp("results"), fake.header(), datetime(2026, 11, 23, tzinfo=UTC))
    folder.extend(list(fake.events())[1:])
    folder.close()
    build(folder.path)
    return folder.path / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    browser.open(report.as_uri())
    return browser


def count(page: Browser, selector: str) -> int:
    visible = "e => e.checkVisibility() && getComputedStyle(e).display !== 'none'"  # the first alone lets hidden SVG groups pass
    return page.evaluate(f"[...document.querySelectorAll({selector!r})].filter({visible}).length")


def test_page_opens_without_a_complaint_or_a_request(page, report):
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith("data:")] == [report.as_uri()]


def test_expected_elements_are_there(page):
    assert "fcc/test" in page.evaluate("document.title")
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent).join('|')")
    for heading in HEADINGS:
        assert heading in headings
    assert count(page, "table.qoe tbody tr") == len(POLICIES) + 1
    assert "Offline optimum" in page.evaluate("document.querySelector('table.qoe tbody tr.upper').textContent")
    assert count(page, "table.qoe .bound") == len(POLICIES) + 1
    assert count(page, "svg.timeline") == len(POLICIES)
    assert page.evaluate("document.querySelectorAll('svg.timeline').length") == TRACES * len(POLICIES)
    assert count(page, "path.fallback") > 0
    assert count(page, "svg.host .lane-fail") == count(page, "svg.host .failed-band") == 2 < count(page, "svg.host .lane-pass")
    assert count(page, "svg.capacity-use") == 4  # the open one of the trials drawn: both directions, whole and close-up
    empty = "[...document.querySelectorAll('main svg')].filter(s => s.checkVisibility() && s.getBoundingClientRect().height < 15).length"
    assert page.evaluate(empty) == 0


def test_closed_trace_opens(page):
    page.evaluate("document.querySelectorAll('details.trace summary')[1].click()")
    assert count(page, "svg.timeline") == 2 * len(POLICIES)


def test_policy_can_be_switched_off_and_on_in_all_figures(page):
    before = count(page, "[data-p='1']")
    page.evaluate("document.querySelector('button[data-toggle=\"1\"]').click()")
    assert before > 5 and count(page, "[data-p='1']") == 0 and count(page, "[data-p='0']") > 5
    assert page.evaluate("document.querySelector('button[data-toggle=\"1\"]').getAttribute('aria-pressed')") == "false"
    page.evaluate("document.querySelector('button[data-toggle=\"1\"]').click()")
    assert count(page, "[data-p='1']") == before


def test_optimum_is_a_dashed_line_that_can_be_switched_off(page):
    lines = "path.ln.upper"
    assert count(page, lines) == 1 + len(POLICIES)  # the distribution, and each trial that is open
    assert page.evaluate(f"getComputedStyle(document.querySelector({lines!r})).strokeDasharray") != "none"
    button = f"document.querySelector('button[data-toggle=\"{len(POLICIES)}\"]')"
    assert page.evaluate(f"{button}.textContent") == "Offline optimum"
    page.evaluate(f"{button}.click()")
    assert count(page, f"[data-p='{len(POLICIES)}']") == 0 and count(page, "svg.timeline") == len(POLICIES)


def test_pointer_reads_a_chunk(page):
    box = page.evaluate(
        "(() => { const s = document.querySelector('svg.timeline'); s.scrollIntoView({block: 'center'});"
        "const b = s.getBoundingClientRect(); return [b.left + b.width / 3, b.top + b.height / 2]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    tip = page.evaluate("document.querySelector('.tip').textContent")
    assert "Mbit/s" in tip and "buffer" in tip and "QoE" in tip
    assert page.evaluate("document.querySelector('svg.timeline .cursor').getAttribute('d')").startswith("M")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert page.evaluate("document.querySelector('.tip').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.querySelector('.theme').click()")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


@pytest.mark.parametrize("width", [1600, 1280, 820, 390])
def test_page_fits_its_window(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('table.qoe')].every(t => t.scrollWidth <= t.parentElement.clientWidth)"
    assert page.evaluate(wide) or width < 1280
    page.call("Emulation.clearDeviceMetricsOverride")


def test_page_works_without_scripts(browser, report):
    browser.open("about:blank")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.call("Page.navigate", url=report.as_uri())
    browser.events.clear()
    browser.wait_for("Page.loadEventFired")
    assert browser.complaints() == []
    assert count(browser, "svg.timeline") == len(POLICIES) and count(browser, "button") == 0


CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > .5) return c; } return [255, 255, 255]; };
  let worst = {ratio: 99};
  const texts = document.querySelectorAll('h1,h2,p,li,dt,dd,th,td,button,summary,code,figcaption span,footer,text');
  for (const e of texts) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const style = getComputedStyle(e);
    const front = light(parse(e instanceof SVGElement ? style.fill : style.color)), back = light(behind(e));
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    if (ratio < worst.ratio) worst = {ratio, text: e.textContent.slice(0, 60), tag: e.tagName, class: e.getAttribute('class')};
  }
  return worst;
})()"""
