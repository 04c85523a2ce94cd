"""`python -m testbed.bench.cjs_reference NETLLM EXECUTORS JOBS SEED`: NetLLM's published scheduling simulator under its own Fair, measured.

A process of its own, since that code wants to run in its checkout's folder. It imports graph libraries for its neural schedulers at every
start; where they are not installed, something inert stands in for them, which Fair never touches. Prints one line of JSON.
"""

import importlib
import os
import random
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from testbed.clock import thread_cpu_s
from testbed.units import ms_from_s, s_from_ms

FOLDER = "cluster_job_scheduling"
NEURAL = ("torch", "torch_geometric", "torch_sparse", "torch_scatter")


class Played(msgspec.Struct, frozen=True):
    """One episode."""

    decisions: int
    avg_jct_s: float
    cpu_s: float
    """Of the episode."""
    reset_cpu_s: float
    """Of reading and drawing its workload."""


class _Absent(ModuleType):
    """A library that is not installed: whatever is asked of it is a class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Absence(Loader):
    """Finds what nothing else finds of those libraries."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_loader(name, self, is_package=True) if name.partition(".")[0] in NEURAL else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def play_published(checkout: Path, executors: int, jobs: int, seed: int, interarrival_s: float, moving_delay_s: float) -> Played:
    """Play an episode as its `run_baseline.py` does."""
    os.chdir(checkout)
    sys.path.insert(0, str(checkout / FOLDER))
    sys.meta_path.append(_Absence())
    environment = importlib.import_module("spark_sched_sim").SparkSchedSimEnv(
        num_executors=executors,
        job_arrival_cap=jobs,
        job_arrival_rate=1 / ms_from_s(interarrival_s),
        moving_delay=ms_from_s(moving_delay_s),
        warmup_delay=1000.0,
        dataset="tpch",
    )
    scheduler = importlib.import_module("spark_sched_sim.schedulers").RoundRobinScheduler(executors, dynamic_partition=True)
    begin_s = thread_cpu_s()
    observation, _ = environment.reset(seed=seed)
    began_s = thread_cpu_s()
    random.seed(seed)
    np.random.seed(seed)
    over, decisions = False, 0
    while not over:
        observation, _, over, _, _ = environment.step(scheduler(observation))
        decisions += 1
    ended_s = thread_cpu_s()
    jct_s = s_from_ms(np.mean([job.t_completed - job.t_arrival for job in environment.jobs.values()]))
    return Played(decisions, float(jct_s), ended_s - began_s, began_s - begin_s)


def main(arguments: list[str]) -> None:
    """See the module."""
    checkout, executors, jobs, seed, interarrival_s, moving_delay_s = arguments
    out = os.dup(1)
    os.dup2(2, 1)  # what that code prints
    played = play_published(Path(checkout).resolve(), int(executors), int(jobs), int(seed), float(interarrival_s), float(moving_delay_s))
    os.write(out, msgspec.json.encode(played))


if __name__ == "__main__":
    main(sys.argv[1:])
