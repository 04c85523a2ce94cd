"""The report of an evaluation in a real browser: silent, self-contained, readable, and as wide as its window."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_report_page import CONTRAST, count

from netllm.abr.suite.analysis import Analysis, analyse
from netllm.abr.suite.cells import Cell
from netllm.abr.suite.contenders import ABLATION, LEARNED, NETLLM, RULE
from netllm.abr.suite.header import Header
from netllm.abr.suite.page import render
from netllm.abr.suite.play import OPTIMUM
from netllm.abr.suite.settings import SETTINGS
from players.dash.devtools import Browser, chromium
from tests.unit.test_evaluate_analysis import contender, prepared

pytestmark = pytest.mark.browser
COLOURS = ("#c2185b", "#1f77b4", "#2ca02c", "#ff7f0e", "#8c564b", "#9467bd", "#7048e8", "#0c8599")
POLICIES = {"netllm": 0.9, "bba": 0.6, "robust_mpc": 0.83, "rate": 0.7, "pensieve": 0.9, "genet": 0.8}
VARIANTS = {"no lora": 0.7, "rank 4": 0.88}


def example(traces: int = 40) -> Analysis:
    """Sessions that look like real ones: QoE is a share of the optimum, less noise; one policy can't play one setting."""
    rng = np.random.default_rng(1)
    kinds = {"netllm": NETLLM, "pensieve": LEARNED, "genet": LEARNED}
    who = [contender(name, kinds.get(name, RULE)) for name in POLICIES]
    who += [contender(name, NETLLM, ABLATION, 2) for name in VARIANTS]
    who = [replace(each, colour=colour) for each, colour in zip(who, COLOURS, strict=True)]
    cells = {}
    for setting in SETTINGS.values():
        best = rng.uniform(0.4, 3.0, traces)
        cells[setting.name, OPTIMUM, 0, 0] = cell(best, rng)
        for name, share in (POLICIES | VARIANTS).items():
            for member, seed in [(i, 0) for i in range(2)] if name in VARIANTS else [(0, i) for i in range(3 if name == "genet" else 1)]:
                cells[setting.name, name, member, seed] = cell(share * best - rng.exponential(0.06, traces), rng)
    cells["ladder", "genet", 0, 0] = Cell((), refused="five levels are not six")
    units = [f"trace {i}" for i in range(traces)]
    groups = [f"log {i // 2}" for i in range(traces)]
    return analyse([prepared(units, groups, setting) for setting in SETTINGS.values()], who, cells, "netllm")


def cell(qoe: np.ndarray, rng: np.random.Generator) -> Cell:
    stall_s, change = rng.exponential(0.01, len(qoe)), rng.uniform(0.05, 0.2, len(qoe))
    return Cell(tuple(zip(qoe, qoe + 4.3 * stall_s + change, stall_s, change, np.full(len(qoe), 2.2), strict=True)))


def header(analysis: Analysis) -> Header:
    sets = [
        {"setting": each.name, "traces": "x", "source": "store", "sha256": "0" * 64, "played": 40, "video": "y", "video_sha256": "1" * 64}
        for each in analysis.settings
    ]
    policies = [
        {"name": each.name, "kind": each.kind, "reference": each.name, "identity": "2" * 64, "weights": {"w": "3" * 64}, "story": {}}
        for each in analysis.contenders
    ]
    seconds = dict.fromkeys((each.name for each in analysis.contenders), 60.0)
    return Header(
        "2026-11-24T00:00:00+00:00",
        "abc",
        "scripts/evaluate abr",
        "a CPU",
        {"numpy": "2"},
        3,
        True,
        tuple(sets),
        tuple(policies),
        ("n",),
        seconds,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    analysis, path = example(), tmp_path_factory.mktemp("evaluation") / "report.html"
    path.write_text(render(analysis, header(analysis)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    browser.open(report.as_uri())
    return browser


def test_it_opens_without_a_complaint_or_a_request_and_shows_every_setting(page, report):
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith("data:")] == [report.as_uri()]
    assert count(page, "svg.panel") == len(SETTINGS)
    assert page.evaluate("document.querySelectorAll('details.card').length") == len(SETTINGS)
    assert count(page, "table.qoe tbody tr") == len(POLICIES), "one setting is open"
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent).join('|')")
    for heading in ("what is unseen", "Share of the offline optimum", "hardest to beat", "Ablations", "Seeds", "Method"):
        assert heading in headings
    assert "five levels are not six" in page.evaluate("document.body.textContent")


def test_a_policy_can_be_switched_off_in_all_figures(page):
    before = count(page, "[data-p='1']")
    page.evaluate("document.querySelector('button[data-toggle=\"1\"]').click()")
    assert before > len(SETTINGS) and count(page, "[data-p='1']") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst


@pytest.mark.parametrize("width", [1600, 1280, 820, 390])
def test_it_fits_its_window(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tables = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.parentElement.clientWidth)"
    wide = f"{tables}.map(t => t.textContent.slice(0, 80))"
    assert width < 1280 or page.evaluate(wide) == []
    page.call("Emulation.clearDeviceMetricsOverride")
