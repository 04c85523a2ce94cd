"""Made-up runs for the tests of results and reports: a toy player over random traces, with every kind of row. Not a simulator."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from testbed.records import (
    ChunkRow,
    DecisionRow,
    EndRow,
    Event,
    HostRow,
    LatenessRow,
    LinkRow,
    OptimumRow,
    RunHeader,
    StallRow,
    TraceRow,
    TrialRow,
)
from testbed.records_trial import Drops

LADDER_BPS = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
CHUNK_S = 4.0
POLICIES = {
    "netllm": {"label": "NetLLM", "colour": "#d9480f", "citation": "Wu et al., SIGCOMM 2024"},
    "robust_mpc": {"label": "RobustMPC", "colour": "#1971c2", "citation": "Yin et al., SIGCOMM 2015"},
    "bola": {"label": "BOLA", "colour": "#2f9e44", "citation": "Spiteri et al., INFOCOM 2016"},
    "bba": {"label": "BBA", "colour": "#9c36b5", "citation": "Huang et al., SIGCOMM 2014"},
    "panda": {"label": "PANDA", "colour": "#e8a200", "citation": "Li et al., JSAC 2014"},
    "rate": {"label": "Rate-based", "colour": "#0c8599", "citation": "last throughputs"},
}
CAUTION = {"netllm": 0.95, "robust_mpc": 0.9, "bola": 0.8, "bba": 0.7, "panda": 0.65, "rate": 1.1}


@dataclass(frozen=True)
class FakeRun:
    """What to make up."""

    policies: tuple[str, ...] = ("netllm", "robust_mpc", "bola", "bba")
    traces: int = 3
    seeds: tuple[int, ...] = (1,)
    chunks: int = 48
    mode: str = "emulation"
    source: str = "store"
    seed: int = 7
    invalid_every: int = 0
    """Every so-many-th trial is invalid."""
    fallback_share: float = 0.0
    ended: bool = True
    notes: list[str] = field(default_factory=list)
    link_rows: bool = True
    repeated: bool = False
    """Invalid trials are played again at the end, and are valid then."""
    uplink: bool = False
    optimum: bool = False

    def header(self) -> RunHeader:
        """Its first line."""
        spec = {
            "trace": ["fcc"],
            "chunks": self.chunks,
            "rtt_ms": 80.0,
            "queue": 100_000,
            "cc": "cubic",
            "link": "userspace",
            "deadline_ms": 1000.0,
        }
        return RunHeader(
            task="abr",
            mode=self.mode,
            metric="qoe_lin",
            unit="per chunk",
            started_utc="2026-11-23T18:47:00+00:00",
            command="testbed/run.py --trace fcc --chunks 48",
            commit="1122914aa0bb",
            spec={**spec, "player": "headless", "video": "video1", "seeds": list(self.seeds), "parallel": 4, "link": "userspace"},
            experiment_toml='trace = ["fcc"]\nchunks = 48\n',
            policies={name: POLICIES[name] for name in self.policies},
            trace={"name": "fcc", "split": "test", "source": self.source, "traces": self.traces, "sha256": "ab" * 32},
            versions={"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
            host={"kernel": "6.1.0-13-amd64", "cores": 2, "link": "userspace", "realtime": "SCHED_FIFO"},
            notes=self.notes,
        )

    def events(self) -> Iterator[Event]:
        """Every line."""
        yield self.header()
        rng = np.random.default_rng(self.seed)
        number = 0
        again = []
        if self.mode == "emulation":
            yield from host(BOOTED_S + 20.0 + 400.0 * (self.traces * len(self.seeds) + self.repeated))
        for index in range(self.traces):
            trace, best = make_trace(index, rng), 0.0
            yield trace
            for seed in self.seeds:
                for lane, policy in enumerate(self.policies):
                    invalid = bool(self.invalid_every) and number % self.invalid_every == self.invalid_every - 1
                    began_at_s = BOOTED_S + 20.0 + 400.0 * (index * len(self.seeds) + self.seeds.index(seed))
                    for event in self._trial(f"t{number:04d}", policy, trace, seed, lane, invalid, rng, began_at_s):
                        best = max(best, event.qoe or 0.0) if isinstance(event, TrialRow) else best
                        yield event
                    if invalid and self.repeated:
                        again.append((f"t{number:04d}r1", policy, trace, seed, lane))
                    number += 1
            if self.optimum:
                yield optimum(trace, self.chunks, best)
        began_at_s = BOOTED_S + 20.0 + 400.0 * self.traces * len(self.seeds)
        for trial in again:
            yield from self._trial(*trial, False, rng, began_at_s, 2)
        if self.ended:
            yield EndRow(ended_utc="2026-11-23T18:51:00+00:00", reason="complete")

    def _trial(
        self,
        trial_id: str,
        policy: str,
        trace: TraceRow,
        seed: int,
        lane: int,
        invalid: bool,
        rng: np.random.Generator,
        began_at_s: float,
        attempt: int = 1,
    ) -> Iterator[Event]:
        chunks = list(play(trial_id, trace, self.chunks, CAUTION[policy], np.random.default_rng([seed, *policy.encode()])))
        yield from chunks
        decisions = [self._decision(chunk, policy, rng) for chunk in chunks[1:]]
        yield from decisions
        for chunk in chunks[1:]:
            if chunk.rebuffer_s > 0:
                yield StallRow(trial_id=trial_id, start_s=chunk.end_s - chunk.rebuffer_s, end_s=chunk.end_s)
        if self.mode == "emulation":
            if self.link_rows:
                yield from link(trial_id, trace, chunks)
                if self.uplink:
                    yield from link(trial_id, trace, chunks, "up", 0.04)
            upper_ms = [0.05 * 2**i for i in range(12)]
            counts = [int(n) for n in 4000 * np.exp(-0.9 * np.arange(12)) * rng.uniform(0.7, 1.3, 12)]
            yield LatenessRow(trial_id=trial_id, direction="down", upper_ms=upper_ms, counts=counts)
        end = self._end(trial_id, policy, trace, seed, lane, invalid, chunks, decisions, rng)
        yield monitored(end, began_at_s, attempt) if self.mode == "emulation" else end

    def _decision(self, chunk: ChunkRow, policy: str, rng: np.random.Generator) -> DecisionRow:
        policy_s = float(rng.lognormal(np.log({"netllm": 0.045, "robust_mpc": 0.012}.get(policy, 0.0004)), 0.3))
        late = rng.random() < self.fallback_share
        return DecisionRow(
            trial_id=chunk.trial_id,
            chunk_index=chunk.index,
            at_s=chunk.request_s,
            level=chunk.level,
            latency_s=1.0 if late else policy_s + 0.002,
            policy_s=None if late else policy_s,
            source="fallback" if late else "policy",
            reason="late" if late else "",
        )

    def _end(
        self,
        trial_id: str,
        policy: str,
        trace: TraceRow,
        seed: int,
        lane: int,
        invalid: bool,
        chunks: list[ChunkRow],
        decisions: list[DecisionRow],
        rng: np.random.Generator,
    ) -> TrialRow:
        emulated = self.mode == "emulation"
        rates = [c.bitrate_bps / 1e6 for c in chunks]
        qoe = float(np.mean([c.qoe for c in chunks[1:]]))
        return TrialRow(
            trial_id=trial_id,
            policy=policy,
            trace=trace.trace,
            trace_sha256=trace.sha256,
            offset_s=0.0,
            seed=seed,
            mode=self.mode,
            lane=lane,
            end_reason="complete",
            valid=not invalid,
            invalid_reason="link: p99 lateness 7.31 ms, wanted at most 5 ms" if invalid else "",
            qoe=qoe,
            bitrate_mbps=float(np.mean(rates[1:])),
            rebuffer_s=float(np.mean([c.rebuffer_s for c in chunks[1:]])),
            switch_mbps=float(np.mean(np.abs(np.diff(rates)))),
            startup_s=chunks[0].end_s,
            chunks=len(chunks),
            decisions=len(decisions),
            fallbacks=sum(d.source == "fallback" for d in decisions),
            controller_restarts=0,
            wall_s=chunks[-1].end_s,
            congestion_control="cubic" if emulated else "",
            trace_wraps=0,
            lateness_ms_p99=(7.31 if invalid else float(rng.uniform(0.2, 0.9))) if emulated else None,
            rate_error_pct_100ms=float(rng.uniform(0.05, 0.3)) if emulated else None,
            uncounted_losses=0 if emulated else None,
            simulated_qoe=qoe + float(rng.normal(0.01, 0.03)) if emulated else None,
            replayed_qoe=qoe + float(rng.normal(0.005, 0.01)) if emulated else None,
            parts_at_chunk=int(rng.integers(1, 40)) if emulated else None,
            fidelity=("fail" if invalid else "pass") if emulated else None,
        )


def make_trace(index: int, rng: np.random.Generator) -> TraceRow:
    """A random walk in log rate with steps of 5 s over 320 s."""
    steps = np.cumsum(rng.normal(0, 0.25, 64))
    rates = np.exp(np.log(rng.uniform(1.0, 3.2)) + steps - 0.6 * np.linspace(steps[0], steps[-1], 64) - steps.mean() * 0.4)
    return TraceRow(
        trace=f"test_fcc_trace_{index * 37 % 991}_http---www.example.com_0",
        sha256=f"{index:064x}",
        edges_s=[5.0 * i for i in range(65)],
        rates_bps=[float(r) for r in np.clip(rates, 0.3, 9.0) * 1e6],
    )


def optimum(trace: TraceRow, count: int, best: float) -> OptimumRow:
    """A tenth better than the `best` of the trace's trials, in equal chunks that alternate between two levels. Not a playback."""
    return OptimumRow(
        trace=trace.trace,
        trace_sha256=trace.sha256,
        offset_s=0.0,
        grid_s=0.2,
        qoe=best + 0.1,
        bitrate_mbps=best + 0.3,
        rebuffer_s=0.0,
        switch_mbps=0.2,
        startup_s=0.5,
        wall_s=CHUNK_S * count,
        bitrates_bps=[LADDER_BPS[2 + i // 5 % 2] for i in range(count)],
        request_s=[CHUNK_S * i for i in range(count)],
        chunk_qoe=[best + 0.1] * count,
    )


def play(trial_id: str, trace: TraceRow, count: int, caution: float, rng: np.random.Generator) -> Iterator[ChunkRow]:
    """A toy session: throughput of the last chunks times `caution`, higher with a full buffer."""
    now_s, buffer_s, level, previous_bps, seen = 0.0, 0.0, 0, LADDER_BPS[0], 1e6
    for index in range(count):
        if index:
            wish = seen * caution * min(0.35 + 0.03 * buffer_s, 1.3) * rng.uniform(0.9, 1.1)
            level = max((i for i, b in enumerate(LADDER_BPS) if b <= wish), default=0)
        size = int(LADDER_BPS[level] * CHUNK_S / 8 * rng.uniform(0.85, 1.15))
        end_s = 0.08 + _served(trace, now_s, size)
        download_s = end_s - now_s
        rebuffer_s = max(download_s - buffer_s, 0.0)
        buffer_s = max(buffer_s - download_s, 0.0) + CHUNK_S
        waited_s = max(buffer_s - 60.0, 0.0)
        seen = 0.6 * seen + 0.4 * size * 8 / download_s
        bitrate = LADDER_BPS[level]
        qoe = bitrate / 1e6 - 4.3 * rebuffer_s - abs(bitrate - previous_bps) / 1e6
        yield ChunkRow(
            trial_id=trial_id,
            index=index,
            level=level,
            bitrate_bps=bitrate,
            size_bytes=size,
            request_s=now_s,
            first_byte_s=now_s + 0.08,
            end_s=end_s,
            download_s=download_s,
            rebuffer_s=rebuffer_s,
            buffer_s=buffer_s,
            waited_s=waited_s,
            qoe=qoe,
        )
        now_s, previous_bps, buffer_s = end_s + waited_s, bitrate, buffer_s - waited_s


def _served(trace: TraceRow, start_s: float, size_bytes: int) -> float:
    """When `size_bytes` asked for at `start_s` have passed."""
    bits, now_s, period_s = size_bytes * 8.0, start_s, trace.edges_s[-1]
    while True:
        phase_s = now_s % period_s
        i = min(int(phase_s // 5), len(trace.rates_bps) - 1)
        left_s = trace.edges_s[i + 1] - phase_s
        if trace.rates_bps[i] * left_s >= bits:
            return now_s + bits / trace.rates_bps[i]
        bits -= trace.rates_bps[i] * left_s
        now_s += max(left_s, 1e-6)


BOOTED_S = 5000.0
"""CLOCK_MONOTONIC when a run begins."""


def monitored(end: TrialRow, began_at_s: float, attempt: int) -> TrialRow:
    """A trial's row with what was seen of its link and host."""
    failed = end.fidelity == "fail"
    return msgspec.structs.replace(
        end,
        attempt=attempt,
        began_at_s=began_at_s,
        ended_at_s=began_at_s + (end.wall_s or 1.0) + 0.5,
        lateness_ms_p50=0.03,
        lateness_ms_max=41.5 if failed else 1.9,
        late_packets=311 if failed else 2,
        late_share=0.0078 if failed else 0.00005,
        packets_in=40_000,
        packets_out=39_900,
        drops=Drops(queue=88, loss=12),
        steal_share=0.06 if failed else 0.004,
        worst_steal_share=0.7 if failed else 0.03,
        cpu_pressure_share=0.2,
        worst_cpu_pressure_share=0.9,
        relay_wait_share=0.01 if failed else 0.0005,
        link_notes="the last 3 windows of 100 ms were not recorded" if failed else "",
    )


def host(until_s: float) -> Iterator[HostRow]:
    """The host every second, with a thief once in a while."""
    rng = np.random.default_rng(3)
    for at_s in np.arange(BOOTED_S + 1.0, until_s):
        stolen = 0.5 if at_s % 400 > 390 else 0.0
        busy = float(rng.uniform(0.3, 0.5))
        yield HostRow(
            at_s=float(at_s),
            window_s=1.0,
            busy_share=busy,
            steal_share=stolen,
            cpu_pressure_share=min(busy * 0.4 + stolen, 1.0),
            relay_busy_share=0.05,
            relay_wait_share=0.02 * stolen,
        )


def link(trial_id: str, trace: TraceRow, chunks: list[ChunkRow], direction: str = "down", share: float = 1.0) -> Iterator[LinkRow]:
    """100 ms counters of a direction: a share of its capacity is used while a chunk is being fetched."""
    busy = [(c.request_s, c.end_s) for c in chunks]
    for k in range(int(chunks[-1].end_s * 10)):
        at_s = k / 10
        allowed = trace.rates_bps[min(int(at_s % trace.edges_s[-1] // 5), 63)] / 80
        used = share * allowed if any(a <= at_s < b for a, b in busy) else 0.0
        yield LinkRow(
            trial_id=trial_id,
            direction=direction,
            start_s=at_s,
            allowed_bytes=allowed,
            delivered_bytes=used,
            wasted_bytes=allowed - used,
            dropped_bytes=1500.0 if used and k % 97 == 0 else 0.0,
            queue_bytes=min(used, 60_000.0),
        )
