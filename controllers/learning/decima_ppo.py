"""Trains Decima by proximal policy optimisation (Schulman et al., 2017) in the simulator, under the published rules.

Sessions run side by side and go on from iteration to iteration; one that ends gives way to a new one. The reward is minus the time that
jobs spend in the system, discounted by time (as in spark-sched-sim; Decima's authors used differential rewards). First the network may
learn to do as the rule `srpt_cap` does in the states it meets itself: from nothing, policy optimisation takes tens of millions of
decisions (spark-sched-sim: 500 iterations of 16 whole sessions). The critic learns from the first iteration on, so that it has something to
say when policy optimisation begins, and it is told the work that will arrive, which the policy never sees: arrivals move the cost more than
any decision does (Mao et al., Variance Reduction for Reinforcement Learning in Input-Driven Environments, ICLR 2019).

Equal seeds and iterations give equal weights on one machine, but for the sessions that a resumed run begins anew.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from controllers.api import CjsAction, CjsPolicy
from controllers.cjs.decima import Decima
from controllers.cjs.srpt_cap import NUMBERS, SrptCap
from controllers.learning.averaging import RunningMean
from controllers.learning.cjs_sessions import CjsJob, draw_session, validation_sessions, workloads
from controllers.learning.decima import CLUSTER_FEATURES, Critic, Graphs, Network, Seen, joined, seen_by
from controllers.learning.loop import Figures, Loop, Pace, Standing, Trainee, Validation, asked_of
from controllers.learning.saved import write_tensors
from controllers.learning.start import check_least, open_folder
from controllers.weights import HEADER
from testbed.clock import utc_now
from testbed.commit import checkout_commit, command_line
from testbed.errors import UserError
from testbed.sim.cjs_ahead import LookAhead
from testbed.sim.cjs_compiled import CompiledCjs

NAME = "decima"
REWARD_UNIT_S = 100.0
SPANS_S = (25.0, 50.0, 100.0, 200.0, 400.0)
"""The critic is told the work that arrives within each of these from now."""
NUMBERS_FROM_0 = ("seed", "imitate", "lr", "lr_ppo", "clip", "gae", "entropy", "discount", "usual", "small")
NUMBERS_FROM_1 = ("sessions", "decisions", "epochs", "minibatch")


@dataclass(frozen=True)
class DecimaSettings:
    """How to train it."""

    minutes: float = 30.0
    """Time budget, over all resumed runs."""
    iterations: int = 0
    """Iterations instead of a time budget."""
    seed: int = 1
    """Of everything random."""
    out: Path | None = None
    """Folder for checkpoint, learning curve and weights; default: results/train-decima-SEED."""
    resume: bool = False
    """Go on from the checkpoint in OUT."""
    threads: int = 1
    """CPU threads."""
    imitate: float = 0.5
    """Share of the budget in which the network learns to do as the rule does; 0: policy optimisation from nothing."""
    sessions: int = 24
    """Sessions side by side."""
    decisions: int = 96
    """Decisions of each in an iteration."""
    epochs: int = 3
    minibatch: int = 256
    """Decisions a gradient step."""
    lr: float = 2e-3
    """Peak learning rate of Adam while the rule is imitated; falls linearly to a tenth."""
    lr_ppo: float = 5e-4
    """The same of policy optimisation."""
    clip: float = 0.2
    gae: float = 0.98
    """Lambda of generalised advantage estimation."""
    entropy: float = 0.005
    """Weight of the entropy bonus in policy optimisation; falls linearly to a tenth."""
    discount: float = 5e-3
    """Per second, as in spark-sched-sim."""
    usual: float = 0.6
    """Share of sessions of 50 executors and 200 jobs."""
    small: float = 0.25
    """Share of sessions of few executors with a backlog."""
    keep: float = 0.95
    """Of the running mean of weights, per iteration: that is validated and kept."""
    validate_every: int = 20
    """Iterations between two validations."""


@dataclass
class Record:
    """What one decision was, and what came of it."""

    seen: Seen
    told: np.ndarray
    """What the critic is told: the cluster, and the work to come."""
    chosen: int
    """Place among the stages that may be chosen."""
    job: int
    count: int
    """Executors given, less one."""
    log_chance: float
    taught: tuple[int, int]
    """The rule's: place among the stages that may be chosen, and executors less one; (-1, -1) where it was not asked."""
    reward: float = 0.0
    discount: float = 1.0
    """Of what comes after; 0 at a session's end."""


class Lane:
    """Sessions one after another."""

    def __init__(self, number: int, settings: DecimaSettings, rule: LookAhead) -> None:
        self._rule = rule
        self._rng = np.random.default_rng([settings.seed, 21, number])
        self._settings, self._seeds = settings, cycle(workloads("decima", settings.seed, number))
        self.begin(int(self._rng.integers(2000)))

    def begin(self, ahead: int = 0) -> None:
        """A new session, a while after its beginning if the rule is to decide `ahead` times first: lanes should not all be young."""
        self.job = draw_session(self._rng, next(self._seeds), self._settings.usual, self._settings.small)
        self.simulator: CompiledCjs = self.job.simulator()
        jobs = self.simulator.workload.jobs
        self._arrivals_s = np.array([job.arrival_s for job in jobs])
        works_s = [sum(stage.tasks * stage.mean_task_s for stage in job.stages) for job in jobs]
        self._before_s = np.cumsum([0.0, *works_s])
        for _ in range(ahead):
            self.simulator.step(CjsAction(*self._rule.rule(self.simulator)))
            if self.simulator.ended:
                self.simulator = self.job.simulator()
        self._spent_s, self._at_s = self.simulator.in_system_s, self.simulator.now_s

    def told(self, seen: Seen) -> np.ndarray:
        """What the critic is told of this moment, (CLUSTER_FEATURES + spans,)."""
        now_s = self.simulator.now_s
        known, coming = (np.searchsorted(self._arrivals_s, now_s + np.array(spans), "right") for spans in ((0.0,), SPANS_S))
        load = (self._before_s[coming] - self._before_s[known]) / self.job.executors / 100
        return np.concatenate([seen.cluster, load]).astype(np.float32)

    def step(self, record: Record, action: CjsAction) -> None:
        """Take a decision and note what came of it."""
        self.simulator.step(action)
        spent_s, at_s = self.simulator.in_system_s, self.simulator.now_s
        record.reward = -(spent_s - self._spent_s) / REWARD_UNIT_S
        record.discount = 0.0 if self.simulator.ended else float(np.exp(-self._settings.discount * (at_s - self._at_s)))
        self._spent_s, self._at_s = spent_s, at_s
        if self.simulator.ended:
            self.begin()


class DecimaRun(Trainee):
    """One run in one folder."""

    name, unit = NAME, "iteration"

    def __init__(self, settings: DecimaSettings, console: Console | None = None, validation: Sequence[CjsJob] | None = None) -> None:
        self.settings = settings
        check_least(settings, 0, ["iterations", "keep", *NUMBERS_FROM_0])
        check_least(settings, 1, ["threads", "validate_every", *NUMBERS_FROM_1])
        if not settings.iterations and not settings.minutes > 0:
            raise UserError(f"--minutes is {settings.minutes:g}, wanted more than 0 (or --iterations)")
        self.out = settings.out or Path("results") / f"train-{NAME}-{settings.seed}"
        open_folder(self.out, settings.resume)
        torch.set_num_threads(settings.threads)
        self.commit = checkout_commit()
        torch.manual_seed(settings.seed)
        self.network, self.critic = Network(), Critic(CLUSTER_FEATURES + len(SPANS_S))
        self.mean = RunningMean(dict(self.network.named_parameters()))
        self.optimiser = torch.optim.Adam([*self.network.parameters(), *self.critic.parameters()], lr=settings.lr, eps=1e-6)
        self.rule = LookAhead(NUMBERS)
        self.validation = list(validation or validation_sessions())
        pace = Pace(settings.iterations, settings.minutes, validate_every=settings.validate_every)
        self.loop = Loop(self, self.out, pace, asked_of(settings, ["iterations", "minutes"]), console or Console(stderr=True))
        if settings.resume:
            self.loop.resume()
        self.lanes = [Lane(number, settings, self.rule) for number in range(settings.sessions)]
        self._rule_s = np.array([_jct_s(SrptCap(), job) for job in self.validation])

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.out / f"{NAME}.safetensors"

    def train(self) -> Path:
        """Until the budget is spent; returns the file with the best weights."""
        self.loop.run()
        return self.weights

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Trainee`."""
        parts = {"network": self.network.state_dict(), "mean": self.mean.weights, "critic": self.critic.state_dict()}
        return {f"{name}/{key}": tensor for name, part in parts.items() for key, tensor in part.items()}

    def step(self, number: int, done: float) -> Figures:
        """One iteration."""
        rng = np.random.default_rng([self.settings.seed, 22, number])
        imitates = done < self.settings.imitate
        for group in self.optimiser.param_groups:
            group["lr"] = (self.settings.lr if imitates else self.settings.lr_ppo) * self._left(done)
        records = self._collect(rng, imitates)
        watched = self._imitate(records, rng) if imitates else self._optimise(records, rng, self.settings.entropy * self._left(done))
        self.mean.update(min(self.settings.keep, number / 20))
        return watched

    def _left(self, done: float) -> float:
        """What is left of a weight that falls to a tenth: it falls in the part of the run that `done` lies in, and begins anew with it."""
        imitate = self.settings.imitate
        within = done / imitate if done < imitate else min((done - imitate) / (1 - imitate), 1.0)
        return 1 - 0.9 * within

    @torch.no_grad()
    def _collect(self, rng: np.random.Generator, taught: bool = True) -> list[list[Record]]:
        """The next decisions of each lane, sampled; with what the rule would do if `taught`."""
        records: list[list[Record]] = [[] for _ in self.lanes]
        for _ in range(self.settings.decisions):
            observed = [lane.simulator.observation for lane in self.lanes]
            parts = [seen_by(each) for each in observed]
            seen = joined(parts)
            embedded = self.network.embed(seen)
            of_stage = self.network.stage_log_chances(seen, embedded).numpy()
            ends = np.cumsum([len(part.rows) for part in parts])
            stages = [scores + rng.gumbel(size=len(scores)) for scores in np.split(of_stage, ends[:-1])]
            chosen = np.array([int(np.argmax(each)) for each in stages])
            jobs = np.array([part.stage_job[part.rows[place]] for part, place in zip(parts, chosen, strict=True)])
            first_job = np.cumsum([0, *(len(part.caps) for part in parts[:-1])])
            of_count = self.network.executor_log_chances(seen, embedded, torch.from_numpy(jobs + first_job)).numpy()
            counts = np.argmax(of_count + rng.gumbel(size=of_count.shape), axis=1)
            for i, (lane, part) in enumerate(zip(self.lanes, parts, strict=True)):
                log_chance = float(of_stage[ends[i] - len(part.rows) + chosen[i]] + of_count[i, counts[i]])
                rules = self._taught(lane, part) if taught else (-1, -1)
                record = Record(part, lane.told(part), int(chosen[i]), int(jobs[i]), int(counts[i]), log_chance, rules)
                lane.step(record, CjsAction(int(part.rows[chosen[i]]), int(counts[i]) + 1))
                records[i].append(record)
        return records

    def _taught(self, lane: Lane, part: Seen) -> tuple[int, int]:
        stage, executors = self.rule.rule(lane.simulator)
        most = int(part.caps[part.stage_job[stage]])
        return int(np.searchsorted(part.rows, stage)), min(executors, most) - 1

    def _imitate(self, records: list[list[Record]], rng: np.random.Generator) -> Figures:
        """Cross-entropy against the rule's decisions."""
        flat, losses = [record for lane in records for record in lane], []
        told, _, returns = self._advantages(records)
        for rows in _minibatches(len(flat), self.settings, rng):
            part = [flat[row] for row in rows]
            chance, entropy = self._log_chances(part, [record.taught for record in part])
            loss = -chance.mean()
            self._descend(loss + 0.5 * self._misfit(told[rows], returns[rows]))
            losses.append(loss.item())
        return {"loss": float(np.mean(losses)), "entropy": float(entropy.mean().detach())}

    def _optimise(self, records: list[list[Record]], rng: np.random.Generator, entropy_weight: float) -> Figures:
        """Proximal policy optimisation on one iteration's decisions."""
        flat = [record for lane in records for record in lane]
        told, advantage, returns = self._advantages(records)
        old, entropies = torch.tensor([record.log_chance for record in flat]), []
        for rows in _minibatches(len(flat), self.settings, rng):
            part = [flat[row] for row in rows]
            chance, entropy = self._log_chances(part, [(record.chosen, record.count) for record in part])
            ratio, gain = torch.exp(chance - old[rows]), advantage[rows]
            policy = -torch.minimum(ratio * gain, ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip) * gain).mean()
            self._descend(policy + 0.5 * self._misfit(told[rows], returns[rows]) - entropy_weight * entropy.mean())
            entropies.append(entropy.mean().item())
        return {"loss": policy.item(), "entropy": float(np.mean(entropies))}

    def _misfit(self, told: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        """The critic's loss: errors in units of the spread that it tells, and how well it tells it."""
        value, spread = self.critic(told)
        error = (returns - value).abs()
        loss: torch.Tensor = (error / spread.detach().clamp(min=0.05)).clamp(max=10).square().mean()
        loss = loss + (error.detach() / spread + spread.log()).mean()
        return loss

    def _descend(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        nn.utils.clip_grad_norm_(self.critic.parameters(), 5.0)
        self.optimiser.step()

    def _log_chances(self, part: Sequence[Record], decisions: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each decision (place of stage, executors less one), and entropy in nats, (D,) each."""
        seen: Graphs = joined([record.seen for record in part])
        embedded = self.network.embed(seen)
        of_stage = self.network.stage_log_chances(seen, embedded)
        sizes = np.array([len(record.seen.rows) for record in part])
        first = np.cumsum(sizes) - sizes
        places = torch.from_numpy(first + np.array([stage for stage, _ in decisions]))
        of_count = self.network.executor_log_chances(seen, embedded, seen.stage_job[seen.rows[places]])
        counts = torch.tensor([count for _, count in decisions])
        chance = of_stage[places] + of_count.gather(1, counts[:, None]).squeeze(1)
        spread = torch.zeros(len(part)).index_add(0, seen.stage_decision[seen.rows], -of_stage.exp() * of_stage)
        finite = of_count.clamp(min=-50)
        return chance, spread - (finite.exp() * finite).sum(-1)

    @torch.no_grad()
    def _advantages(self, records: list[list[Record]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the critic is told, (D, features), generalised advantages in units of its spread, and returns, (D,) each."""
        told = torch.from_numpy(np.stack([record.told for lane in records for record in lane]))
        value, spread = (each.numpy().astype(float) for each in self.critic(told))
        advantage, at = np.zeros(len(value)), 0
        for lane, own in zip(self.lanes, records, strict=True):
            last = self.critic(torch.from_numpy(lane.told(seen_by(lane.simulator.observation)))[None])[0].item()
            after, running = last, 0.0
            for i in range(len(own) - 1, -1, -1):
                error = own[i].reward + own[i].discount * after - value[at + i]
                running = error + own[i].discount * self.settings.gae * running
                advantage[at + i], after = running, value[at + i]
            at += len(own)
        scaled = advantage / spread
        scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-6)
        return told, torch.from_numpy(scaled).float(), torch.from_numpy(advantage + value).float()

    def validate(self, standing: Standing, figures: Sequence[Figures]) -> Validation:
        """JCT over the rule's, geometric mean, sampled as in use."""
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".validating-") as scratch:
            path = Path(scratch) / f"{NAME}.safetensors"
            write_tensors(path, self.mean.weights, HEADER, {})
            policy = Decima(str(path))
        ratio = float(np.exp(np.mean(np.log(np.array([_jct_s(policy, job) for job in self.validation]) / self._rule_s))))
        row: dict[str, Any] = {"iteration": standing.step, "elapsed_s": round(standing.elapsed_s)}
        row |= {f"training_{name}": f"{value:.4g}" for name, value in figures[-1].items()} | {"valid_jct_over_rule": f"{ratio:.4f}"}
        return Validation(ratio, row, f"validation JCT {ratio:.4f} of the rule's", {})

    def keep(self, standing: Standing, found: Validation) -> None:
        """See `Trainee`."""
        write_tensors(self.weights, self.mean.weights, HEADER, self._story(standing, found))

    def _story(self, standing: Standing, found: Validation) -> dict[str, Any]:
        return {
            "policy": NAME,
            "utc": utc_now().isoformat(timespec="seconds"),
            "commit": self.commit,
            "command": command_line("scripts/train", sys.argv[1:]),
            "iteration": standing.step,
            "decisions": standing.step * self.settings.sessions * self.settings.decisions,
            "minutes": round(standing.elapsed_s / 60, 1),
            "settings": {name: value for name, value in asdict(self.settings).items() if name != "out"},
            "validation_jct_over_srpt_cap": round(found.cost, 4),
        }


def _minibatches(count: int, settings: DecimaSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each gradient step, over all epochs."""
    steps = max(count // settings.minibatch, 1)
    return [rows for _ in range(settings.epochs) for rows in np.array_split(rng.permutation(count), steps)]


def _jct_s(policy: CjsPolicy, job: CjsJob) -> float:
    """Mean JCT of a session."""
    simulator = job.simulator()
    policy.reset(job.session, 1)
    while not simulator.ended:
        simulator.step(policy.decide(simulator.observation))
    return simulator.summary.avg_jct_s
