"""The clusters and workloads that schedulers are measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from testbed.errors import UserError, suggestion
from testbed.sim.cjs import Semantics


@dataclass(frozen=True)
class CjsSetting:
    """One cluster, and one workload a seed; 25 s between arrivals on average."""

    name: str
    executors: int
    jobs: int
    seeds: tuple[int, ...]
    decima_s: tuple[float, ...] = ()
    """Mean JCT of each seed with the published code and weights of Decima; empty where that was not run."""
    goal: float | None = None
    """Ratio to that which this project aims at for NetLLM."""
    note: str = ""

    @property
    def title(self) -> str:
        """`50 executors, 200 jobs`."""
        return f"{self.executors} executors, {self.jobs} jobs"


PUBLISHED: Semantics = "published"
"""The rules that Decima's published JCTs were measured under."""
UNSEEN, UNSEEN_SIZE = "unseen in training", "a size unseen by the networks, not by the rule"
NAMED = {
    setting.name: setting
    for setting in (
        CjsSetting("default", 50, 200, (1, 2, 3, 4, 5, 666), (38.99, 50.34, 57.01, 64.84, 48.51, 56.74), 0.87),
        CjsSetting("small", 10, 20, (1, 2, 3, 4, 5), (265.28, 277.63, 184.33, 441.55, 323.32), 0.90),
        CjsSetting("fewer", 30, 200, (1, 2, 3, 4, 5), (69.81, 124.86, 118.85, 261.56, 91.44), 0.84, UNSEEN_SIZE),
        CjsSetting("more-jobs", 50, 450, (1, 2, 3), (54.46, 48.31, 61.28), 0.87, UNSEEN),
        CjsSetting("fewer-more-jobs", 30, 450, (1, 2, 3), (134.47, 154.06, 163.13), 0.82, UNSEEN_SIZE),
        CjsSetting("default-held-out", 50, 200, tuple(range(201, 221))),
        CjsSetting("small-held-out", 10, 20, tuple(range(201, 241))),
        CjsSetting("fewer-held-out", 30, 200, tuple(range(201, 221)), note=UNSEEN_SIZE),
    )
}
"""The first five have the seeds of `reference/cjs.json` in the data store (NetLLM's fork of spark-sched-sim, run by this project): its JCTs
of Decima stand here, for the data are not committed. On the held-out seeds nothing was tuned or chosen."""


def chosen(names: Sequence[str], semantics: Semantics = PUBLISHED) -> list[CjsSetting]:
    """The settings called so; each once. EXECUTORS:JOBS:FIRST-LAST is a setting of one's own.

    Under other rules than the published ones nothing published is comparable.
    """
    if not names:
        raise UserError(f"--settings names none, wanted some of {', '.join(NAMED)}, or EXECUTORS:JOBS:FIRST-LAST (20:50:1-10)")
    found = [NAMED.get(name) or _own(name) for name in dict.fromkeys(names)]
    return found if semantics == PUBLISHED else [replace(each, decima_s=(), goal=None) for each in found]


def _own(name: str) -> CjsSetting:
    try:
        executors, jobs, seeds = name.split(":")
        first, _, last = seeds.partition("-")
        setting = CjsSetting(name, int(executors), int(jobs), tuple(range(int(first), int(last or first) + 1)))
    except ValueError as error:
        raise UserError(f"setting {name!r} is unknown: {suggestion(name, NAMED)}, or EXECUTORS:JOBS:FIRST-LAST (20:50:1-10)") from error
    if setting.executors < 1 or setting.jobs < 1 or not setting.seeds or min(setting.seeds) < 0:
        raise UserError(f"setting {name!r} is empty, wanted at least 1 executor, 1 job and one seed from 0 on")
    return setting
