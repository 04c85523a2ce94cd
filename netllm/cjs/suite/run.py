"""One evaluation of schedulers from beginning to end: `test` plays what was not played yet, works out the tables and writes them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from controllers.cjs.netllm import NetLLM
from controllers.learning.start import check_least
from controllers.loader import PolicyFactory, load_all
from netllm.adapter import SHIPPED
from netllm.cards import set_results
from netllm.cjs.suite import page
from netllm.cjs.suite.analysis import SettingResult, analyse
from netllm.cjs.suite.header import CjsHeader, cjs_header, identity
from netllm.cjs.suite.play import Played, play
from netllm.cjs.suite.settings import NAMED, PUBLISHED, CjsSetting, chosen
from netllm.evaluation.shipped import NETLLM, measures_shipped
from netllm.evaluation.tables import roomy
from testbed.errors import UserError
from testbed.sim.cjs import Semantics

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cjs.md"
SESSIONS = "sessions.jsonl"


@dataclass(frozen=True)
class CjsEvaluateSettings:
    """What to measure."""

    settings: tuple[str, ...] = tuple(NAMED)
    """Named ones (default, small, fewer, ...), or EXECUTORS:JOBS:FIRST-LAST, the last two being seeds (20:50:1-10)."""
    policies: tuple[str, ...] = ("fair", "srpt_cap", "decima", NETLLM)
    """Names, files (mine.py) or package.module:Class, with +option=value."""
    against: tuple[str, ...] = ("srpt_cap", "decima")
    """What all others are compared with, workload by workload, if it is among the policies."""
    semantics: Semantics = PUBLISHED
    """Rules of the simulator; docs/cjs.md tells them."""
    threads: int = 1
    """CPU threads of PyTorch, for policies whose own option `threads` is not given."""
    out: Path = Path("results/evaluate-cjs")
    """Folder of the results. Sessions that it has already, of the same sources and weights, are not played again."""
    write: bool = False
    """Also write the tables into docs/cjs.md and into the card of the adapter that ships."""


def test(settings: CjsEvaluateSettings | None = None, console: Console | None = None) -> list[SettingResult]:
    """Measure schedulers; prints tables and writes `sessions.jsonl` and `summary.json` into `settings.out`."""
    settings = settings or CjsEvaluateSettings()
    console = console or roomy()
    check_least(settings, 1, ["threads"])
    if settings.write and settings.semantics != PUBLISHED:
        raise UserError(f"--write is for results under the published rules, seen --semantics {settings.semantics}, wanted one of the two")
    asked = chosen(settings.settings, settings.semantics)
    policies = load_all(settings.policies, "cjs")
    with_card = settings.write and measures_shipped(policies, NetLLM)
    settings.out.mkdir(parents=True, exist_ok=True)
    store = _Store(settings.out / SESSIONS, settings.semantics)
    played = [each for setting in asked for policy in policies for each in _played(setting, policy, settings, store, console)]
    names = [policy.name for policy in policies]
    results = analyse(asked, played, names, [name for name in settings.against if name in names])
    header = cjs_header(policies, settings.semantics)
    _write(settings, results, header, with_card)
    page.show(results, console)
    console.print(f"results: {settings.out}", markup=False, soft_wrap=True)
    return results


def _played(setting: CjsSetting, policy: PolicyFactory, settings: CjsEvaluateSettings, store: "_Store", console: Console) -> list[Played]:
    who = identity(policy)
    known = {seed: found for seed in setting.seeds if (found := store.find(setting.name, seed, policy.name, who))}
    missing = [seed for seed in setting.seeds if seed not in known]
    if missing:
        for each in play(setting, missing, policy, settings.semantics, settings.threads):
            store.add(each, who)
            known[each.seed] = each
            console.print(f"{setting.name} seed {each.seed} {policy.name}: mean JCT {each.avg_jct_s:.1f} s, {each.ended}", markup=False)
    return [known[seed] for seed in setting.seeds]


class _Store:
    """Sessions played, one line each: what a killed run had played is not played again."""

    def __init__(self, path: Path, semantics: Semantics) -> None:
        self._path, self._semantics = path, semantics
        self._known: dict[tuple[Any, ...], Played] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
            try:
                facts = json.loads(line)
                key = facts.pop("semantics"), facts.pop("identity"), facts["setting"], facts["seed"], facts["policy"]
                self._known[key] = Played(**facts)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: is no session ({error!r}), wanted the file of an earlier evaluation") from error

    def find(self, setting: str, seed: int, policy: str, who: str) -> Played | None:
        """The session, if it was played."""
        return self._known.get((self._semantics, who, setting, seed, policy))

    def add(self, played: Played, who: str) -> None:
        """Keep a session."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(played) | {"semantics": self._semantics, "identity": who}) + "\n")


def _write(settings: CjsEvaluateSettings, results: Sequence[SettingResult], header: CjsHeader, with_card: bool) -> None:
    summary = {"version": 1, "task": "cjs", "metric": "avg_jct_s", "unit": "s", "mode": "simulation", "header": asdict(header)}
    summary["settings"] = [_summary(each) for each in results]
    (settings.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if settings.write:
        text = PAGE.read_text(encoding="utf-8")
        before, mark, rest = text.partition(page.START)
        _, end, after = rest.partition(page.END)
        if not mark or not end:
            raise UserError(f"{PAGE}: has no {page.START} and {page.END}, wanted both, to write between them")
        PAGE.write_text(f"{before}{page.START}\n{page.section(results, header)}\n{page.END}{after}", encoding="utf-8")
        if with_card:
            set_results(SHIPPED / "cjs", page.card(results, NETLLM, header))


def _summary(result: SettingResult) -> dict[str, Any]:
    return {
        "name": result.setting.name,
        "executors": result.setting.executors,
        "jobs": result.setting.jobs,
        "seeds": list(result.setting.seeds),
        "policies": {
            name: {
                "trials": len(each.sessions),
                "invalid": each.starved,
                "mean": each.mean_s,
                "over_published_decima": asdict(each.over_decima) if each.over_decima else None,
            }
            for name, each in result.outcomes.items()
        },
        "comparisons": [asdict(each) | {"verdict": each.verdict} for each in result.differences],
    }
