"""The same goldens with no third-party data: our own trace and video, with the decisions and scores of the day they were right.

They were written while `test_abr_reference.py` passed; a change that moves them moves published comparisons. `python -m
tests.golden.test_abr_synthetic` prints the table anew.
"""

import json
import random
import sys
from pathlib import Path

import pytest

from controllers.api import AbrSession
from controllers.loader import load
from players.media import synthetic_manifest
from testbed.metrics import summarise
from testbed.sim.abr import run_session
from traces.trace import RateTrace

GOLDEN = Path(__file__).with_name("abr_synthetic.json")
POLICIES = (
    "fixed",
    "fixed+level=2",
    "rate",
    "bba",
    "bola",
    "bola+variant=basic",
    "bola+variant=u",
    "bola+parameters=paper",
    "panda",
    "robust_mpc",
    "robust_mpc+jumps=adjacent",
    "robust_mpc+chunk_index=late",
    "robust_mpc+jumps=adjacent+chunk_index=late",
    "robust_mpc+robust=false",
)
OFFSETS_S = (0.0, 95.0)


def trace() -> RateTrace:
    """200 s that wander around 2 Mbit/s, with a slow drift and an outage; shorter than a session, so it wraps."""
    rng = random.Random(20240805)  # only `random()`, whose stream is promised never to change
    rates_bps, drift = [], 0.0
    for step in range(80):
        drift = 0.9 * drift + 0.9 * (rng.random() - 0.5)
        rates_bps.append(0.0 if step in (50, 51) else float(round(2e6 * 2**drift)))
    return RateTrace("wander", tuple(2.5 * i for i in range(81)), tuple(rates_bps))


def play(policy: str, offset_s: float) -> dict[str, object]:
    video = synthetic_manifest()
    chunks = run_session(trace(), AbrSession("golden", video, 48), load(policy)(), 0, offset_s)
    summary = summarise(chunks, video)
    return {
        "levels": "".join(str(chunk.level) for chunk in chunks),
        "qoe": summary.qoe,
        "rebuffer_s": summary.rebuffer_s,
        "startup_s": summary.startup_s,
        "waited_s": sum(chunk.waited_s for chunk in chunks),
        "wall_s": sum(chunk.download_s + chunk.waited_s for chunk in chunks),
    }


@pytest.mark.parametrize("offset_s", OFFSETS_S)
@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_and_scores_have_not_moved(policy: str, offset_s: float) -> None:
    wanted = json.loads(GOLDEN.read_text())[f"{policy} @ {offset_s:g} s"]
    found = play(policy, offset_s)
    assert found.pop("levels") == wanted.pop("levels")
    assert found == pytest.approx(wanted, abs=1e-9)


if __name__ == "__main__":
    table = {f"{policy} @ {offset_s:g} s": play(policy, offset_s) for policy in POLICIES for offset_s in OFFSETS_S}
    sys.stdout.write(json.dumps(table, indent=1) + "\n")
