"""The predictions of one policy for one viewer, on recorded head movement: what `--simulate` measures for viewport prediction."""

from collections.abc import Callable, Iterator

import msgspec

from controllers.loader import PolicyFactory
from testbed.clock import now_s
from testbed.records import Row
from testbed.records_vp import PredictionRow, ViewingEndRow
from testbed.sim.vp import checked, observations, sessions
from testbed.vp_metrics import mae_deg
from traces.viewport_splits import find_split, load_split
from traces.windows import cut, find_rule


class ViewerJob(msgspec.Struct, frozen=True, kw_only=True, tag="vp", tag_field="task"):
    """All windows of one viewer of a split to predict."""

    trial_id: str
    policy: str
    seed: int
    split: str
    viewer: int
    rule: str
    history_s: float
    horizon_s: float

    @property
    def who(self) -> str:
        """What decides, for sentences on what befell it."""
        return "policy"

    @property
    def asks(self) -> bool:
        """Whether the policy is asked."""
        return True

    def ended_early(self, reason: str) -> ViewingEndRow:
        """The only row of a trial that came to nothing."""
        return ViewingEndRow(trial_id=self.trial_id, end_reason=reason, startup_s=0.0, played_s=0.0, rebuffer_s=0.0, wall_s=0.0)


def simulate_viewer(job: ViewerJob, factory: PolicyFactory, alive: Callable[[], None]) -> Iterator[Row]:
    """A row for each window, one decision after the other. `alive` is called after each, and after each start."""
    viewings = [each for each in load_split(job.split) if each.user == job.viewer]
    windows = cut(viewings, find_rule(job.rule), job.history_s, job.horizon_s, find_split(job.split).front_deg)
    policy, number = factory(), 0
    for order, (rows, session) in enumerate(sessions(windows)):
        policy.reset(session, job.seed * 1_000_003 + order)
        alive()
        for row, seen in zip(range(rows.start, rows.stop), observations(windows, rows, session), strict=True):
            began_s = now_s()
            answer = policy.decide(seen)
            took_s = now_s() - began_s
            predicted_deg = checked([answer], 1, session.horizon)
            alive()
            yield PredictionRow(
                trial_id=job.trial_id,
                segment=number,
                at_s=float(windows.times_s[row, -1]),
                media_s=float(windows.times_s[row, -1]),
                mae_deg=float(mae_deg(predicted_deg, windows.future_deg[row : row + 1])[0]),
                latency_s=took_s,
                policy_s=took_s,
                source="policy",
                reason="",
            )
            number += 1
    yield ViewingEndRow(trial_id=job.trial_id, end_reason="complete", startup_s=0.0, played_s=0.0, rebuffer_s=0.0, wall_s=0.0)
