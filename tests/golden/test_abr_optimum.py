"""The offline optimum is what an independent program found on the same traces (`reference/abr.json`), at any grid."""

import pytest
from test_abr_reference import RUNS, TOLERANCE, reference

from controllers.api import AbrSession
from players.media import load_manifest
from testbed.errors import UserError
from testbed.sim.optimum import offline_optimum
from traces.store import resolve

EVERY = 9
"""Of 100 traces: each takes half a second."""


@pytest.fixture(scope="module")
def playback():
    try:
        return AbrSession("golden", load_manifest("video1"), 48)
    except UserError as error:
        pytest.skip(str(error))


def test_the_optimum_is_the_reference(playback):
    wanted = reference()[RUNS["fcc"].format(video="video1")]["offline_optimum"]["per_trace"]
    found = resolve("fcc/test", fetch=False)
    if found.source != "store":
        pytest.skip(found.note)
    for trace in found.traces[::EVERY]:
        assert offline_optimum(trace, playback) == pytest.approx(wanted[trace.name], abs=TOLERANCE)


def test_a_finer_grid_finds_the_same(playback):
    found = resolve("norway/test", fetch=False)
    if found.source != "store":
        pytest.skip(found.note)
    for trace in found.traces[::20]:
        assert offline_optimum(trace, playback, grid_s=0.05) == pytest.approx(offline_optimum(trace, playback), abs=2e-3)
