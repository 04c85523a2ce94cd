"""Proximal policy optimisation (Schulman et al., 2017) over whole playbacks, for any small policy network.

Three things are unlike the textbook. The critic is told the bandwidth to come, which the actor never sees: it explains away the luck of the
trace, not the choice. Advantages are divided by a spread that the critic predicts for each state, since one stall outweighs all else.
What is used in the end is a running mean of the actor's weights. Discount is 1: a session ends, and its QoE is a plain sum.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from controllers.learning.playbacks import FUTURE_S, Playbacks
from testbed.host import bf16_units
from testbed.sim.batch import Floats, Integers

SPANS = len(FUTURE_S) - 1
VALUE_SCALE = 10.0
"""QoE left in a session is of this order."""


@dataclass(frozen=True)
class PpoSettings:
    """How to optimise."""

    iterations: int = 400
    """Batches of sessions played and learnt from."""
    sessions: int = 2048
    """Sessions a batch."""
    epochs: int = 2
    minibatch: int = 8192
    """Decisions a gradient step."""
    lr: float = 1e-3
    """Peak learning rate (Adam); falls linearly to `final_share` of it."""
    final_share: float = 0.03
    clip: float = 0.2
    gae: float = 0.97
    """Lambda of generalised advantage estimation."""
    entropy: float = 0.05
    """Weight of the entropy bonus; falls linearly to `final_share` of it. With 0.02 a network may give the top level up in its first
    iterations, when stalls are all it knows of it, and never try it again: one seed of two did."""
    keep: float = 0.98
    """Of the running mean of weights, per iteration."""
    gradient_norm: float = 5.0
    """Longest gradient. The usual 0.5 would shrink just those batches that hold a bad stall."""
    floor: float = -40.0
    """Least reward of a chunk."""
    noise: float = 0.1
    """Half of a batch's sessions have download times off by up to this share (Pensieve's training environment)."""


class Design(Protocol):
    """What differs between the learned baselines."""

    actions: int
    features: int

    def network(self) -> nn.Module:
        """The actor: (N, features) to logits (N, actions)."""
        ...

    def inputs(self, plays: Playbacks) -> np.ndarray:
        """What the actor sees now, (N, features), float32."""
        ...

    def allowed(self, plays: Playbacks) -> np.ndarray:
        """Which actions exist now, (N, actions)."""
        ...

    def slots(self, plays: Playbacks, actions: Integers) -> Integers:
        """The slots that actions mean now, (N,)."""
        ...


@dataclass
class Experience:
    """What a batch of sessions gave; the first axis runs over all decisions of all sessions."""

    inputs: torch.Tensor
    critic_inputs: torch.Tensor
    allowed: torch.Tensor
    actions: torch.Tensor
    log_chance: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor


class Critic(nn.Module):
    """QoE to come, and how far it strays, from what the actor sees and what the trace will do."""

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__()
        sizes = features + SPANS, hidden, hidden
        self.layers = nn.Sequential(nn.Linear(sizes[0], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, features + spans) to value (N,) and spread (N,)."""
        value, log_spread = self.layers(x).float().unbind(-1)
        return value * VALUE_SCALE, torch.exp(log_spread.clamp(-5, 5))


class Learner:
    """An actor, its critic and their optimiser; one `improve` is one iteration. Everything random comes from the generator given to it."""

    def __init__(self, design: Design, settings: PpoSettings, seed: int) -> None:
        torch.manual_seed(seed)
        self.design, self.settings = design, settings
        self.actor, self.critic = design.network(), Critic(design.features)
        self.mean_actor = deepcopy(self.actor).requires_grad_(False)
        self.optimiser = torch.optim.Adam([*self.actor.parameters(), *self.critic.parameters()], lr=settings.lr, eps=1e-6)

    def improve(self, batches: Sequence[Playbacks], rng: np.random.Generator, done: float) -> dict[str, float]:
        """Play the sessions to their ends and learn from them; `done` is the share of training behind us. Returns figures to watch."""
        played = [self._play(plays, rng) for plays in batches]
        experience = Experience(*(torch.cat(parts) for parts in zip(*(vars(each).values() for each in played), strict=True)))
        left = 1 - (1 - self.settings.final_share) * done
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * left
        entropy = self._learn(experience, rng, self.settings.entropy * left)
        with torch.no_grad():
            for mean, now in zip(self.mean_actor.parameters(), self.actor.parameters(), strict=True):
                mean.lerp_(now, 1 - min(self.settings.keep, 10 * done))  # a short memory at first
        return {"qoe": float(np.mean([plays.mean_qoe.mean() for plays in batches])), "entropy": entropy}

    @torch.no_grad()
    def _play(self, plays: Playbacks, rng: np.random.Generator) -> Experience:
        design, rows = self.design, np.arange(len(plays.which))
        noisy = rng.random(len(rows)) < 0.5
        seen, future, masks, chosen, chances, rewards = [], [], [], [], [], []
        plays.begin()
        while not plays.done:
            inputs, allowed = design.inputs(plays), design.allowed(plays)
            logits = torch.log_softmax(self.actor(torch.from_numpy(inputs)).masked_fill(~torch.from_numpy(allowed), -torch.inf), -1).numpy()
            actions = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
            seen.append(inputs)
            future.append(np.log(plays.future_mbps()).astype(np.float32))
            masks.append(allowed)
            chosen.append(actions)
            chances.append(logits[rows, actions])
            noise = np.where(noisy, rng.uniform(1 - self.settings.noise, 1 + self.settings.noise, len(rows)), 1.0)
            rewards.append(np.maximum(plays.step(design.slots(plays, actions), noise), self.settings.floor))
        actor_inputs = torch.from_numpy(np.stack(seen))  # (T, N, features)
        critic_inputs = torch.cat([actor_inputs, torch.from_numpy(np.stack(future))], -1)
        value, spread = self.critic(critic_inputs)
        advantage, returns = _advantages(np.stack(rewards), value.numpy().astype(float), self.settings.gae)
        parts = actor_inputs, critic_inputs, np.stack(masks), np.stack(chosen), np.stack(chances), advantage / spread.numpy(), returns
        flat = [torch.as_tensor(part).flatten(0, 1) for part in parts]
        return Experience(*(each.float() if each.is_floating_point() else each for each in flat))

    def _learn(self, experience: Experience, rng: np.random.Generator, entropy_weight: float) -> float:
        """Gradient steps over the batch, `epochs` times; returns the mean entropy in nats."""
        settings, count = self.settings, len(experience.actions)
        experience.advantage = (experience.advantage - experience.advantage.mean()) / (experience.advantage.std() + 1e-6)
        entropies = []
        for _ in range(settings.epochs):
            order = torch.from_numpy(rng.permutation(count))
            for rows in torch.split(order, settings.minibatch):
                loss, entropy = self._loss(experience, rows, entropy_weight)
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.actor.parameters(), settings.gradient_norm)
                nn.utils.clip_grad_norm_(self.critic.parameters(), settings.gradient_norm)
                self.optimiser.step()
                entropies.append(entropy)
        return float(np.mean(entropies))

    def _loss(self, experience: Experience, rows: torch.Tensor, entropy_weight: float) -> tuple[torch.Tensor, float]:
        allowed, actions = experience.allowed[rows], experience.actions[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16_units())):  # emulated, it takes far longer than float32
            logits, (value, spread) = self.actor(experience.inputs[rows]), self.critic(experience.critic_inputs[rows])
        log_chances = torch.log_softmax(logits.float().masked_fill(~allowed, -1e9), -1)  # (rows, actions)
        chosen = log_chances.gather(1, actions[:, None]).squeeze(1)
        ratio = torch.exp(chosen - experience.log_chance[rows])
        gain = experience.advantage[rows]
        policy = -torch.minimum(ratio * gain, ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip) * gain).mean()
        entropy = -(log_chances.exp() * log_chances.clamp(min=-50)).sum(-1).mean()
        error = (experience.returns[rows] - value).abs()
        fit = (error / spread.detach().clamp(min=0.05)).clamp(max=10).square().mean() + (error.detach() / spread + spread.log()).mean()
        return policy + 0.5 * fit - entropy_weight * entropy, entropy.item()


def _advantages(rewards: Floats, value: Floats, gae: float) -> tuple[Floats, Floats]:
    """Generalised advantages and returns, (T, N) each, undiscounted; nothing comes after the last chunk."""
    advantage, running = np.zeros_like(rewards), np.zeros(rewards.shape[1])
    after = np.vstack([value[1:], np.zeros((1, rewards.shape[1]))])
    for step in range(len(rewards) - 1, -1, -1):
        running = rewards[step] + after[step] - value[step] + gae * running
        advantage[step] = running
    return advantage, advantage + value


@torch.no_grad()
def play_out(design: Design, actor: nn.Module, plays: Playbacks, rng: np.random.Generator | None = None) -> Floats:
    """QoE of each session when `actor` decides, greedily or, given a generator, by its probabilities; (N,)."""
    plays.begin()
    while not plays.done:
        allowed = torch.from_numpy(design.allowed(plays))
        logits = torch.log_softmax(actor(torch.from_numpy(design.inputs(plays))).masked_fill(~allowed, -torch.inf), -1).numpy()
        plays.step(design.slots(plays, np.argmax(logits if rng is None else logits + rng.gumbel(size=logits.shape), axis=1)))
    return plays.mean_qoe
