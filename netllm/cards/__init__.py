"""Model cards of adapters: what they learnt from, how, and how well they do.

Results stand with the hashes of what was measured: another adapter in the same folder doesn't inherit them.
"""

import hashlib
import json
from pathlib import Path

from controllers.weights import weights_sha256
from netllm.cards import abr, cjs, vp

CARD = "README.md"
RESULTS_START, RESULTS_END = "<!-- results -->", "<!-- end of results -->"
TASKS = {"abr": abr.CARD, "cjs": cjs.CARD, "vp": vp.CARD}


def write_card(folder: Path, curve: Path | None = None) -> Path:
    """Write `README.md` from `netllm.json`, and keep the learning curve beside it; results of these very weights and settings are kept."""
    facts = json.loads((folder / "netllm.json").read_text(encoding="utf-8"))
    card, path, own = TASKS[facts["task"]], folder / CARD, folder / "curve.csv"
    if curve is not None and curve.is_file():
        own.write_bytes(curve.read_bytes())
    lines = [*card.lines(facts, own), RESULTS_START, _kept_results(folder) or card.unmeasured, RESULTS_END, ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def set_results(folder: Path, text: str) -> None:
    """Put the results of a test into the card."""
    path = folder / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else write_card(folder).read_text(encoding="utf-8")
    before, _, rest = card.partition(RESULTS_START)
    _, _, after = rest.partition(RESULTS_END)
    path.write_text(f"{before}{RESULTS_START}\n{_measured(folder)}\n{text}\n{RESULTS_END}{after}", encoding="utf-8")


def _kept_results(folder: Path) -> str:
    """What an earlier test of this adapter put into the card; empty when none did."""
    path = folder / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    results = card.partition(RESULTS_START)[2].partition(RESULTS_END)[0].strip()
    return results if results.startswith(_measured(folder)) else ""


def _measured(folder: Path) -> str:
    """What decides the results: an adapter's weights, and the settings of its task."""
    settings = json.loads((folder / "netllm.json").read_text(encoding="utf-8"))["settings"]
    sha256 = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"<!-- of weights with sha256 {weights_sha256(folder)} and task settings with sha256 {sha256} -->"
