"""What decisions and training of the language models cost, as a page (Markdown): medians, ranges, ratios, goals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.bench.judge import Spread
from testbed.bench.page import MISSING, Row, Rows, shown, table
from testbed.units import ms_from_s

PUBLISHED = ("published_float32", "published_bfloat16")
"""Keys of NetLLM's code, as published and with another type; every other contender is ours."""
GOAL, STRETCH = 6.0, 10.0
"""NetLLM's CPU time over ours."""
LATE = 8
"""Decisions at the end of a session that stand for its steady state: NetLLM's window of 20 steps is full then."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Column:
    """A number of each contender."""

    name: str
    head: str
    scale: Callable[[float], float] = ms_from_s
    digits: int = 1


COSTS = (
    Column("late_cpu_s", "a decision late in a session"),
    Column("session_cpu_s", "mean decision of a session"),
    Column("train_cpu_s", "a decision learnt from"),
)
WALL = (Column("late_wall_s", COSTS[0].head), Column("session_wall_s", COSTS[1].head), Column("train_wall_s", COSTS[2].head))
SIZES = (
    Column("tokens", "tokens a step", float, 0),
    Column("trained", "trained parameters, M", lambda count: count / 1e6, 2),
    Column("deciding_bytes", "most memory, deciding, MiB", lambda size: size / MEBIBYTE, 0),
    Column("training_bytes", "training, MiB", lambda size: size / MEBIBYTE, 0),
)
GOALS = (COSTS[0], COSTS[2])

INTRODUCTION = """\
What the adapted language model costs beside NetLLM's published ABR code, on the same backbone, on the same machine, in the same run. This
page is written by the command below; nothing in it is typed by hand. Every number is a median over repetitions, the range in brackets.

- **The same for all**: the backbone (checked: from the same input all compute the same), LoRA's rank, torch and its threads, the recorded
  sessions. Contenders take turns within a repetition, and ratios are taken within it. CPU time is that of all threads of a process,
  which sleep while they wait for each other.
- **NetLLM's code** runs as it is, in an environment of its own with the packages that it pins: its policy, encoders, LoRA, data set and
  trainer, with windows of 20 steps of 8 tokens, batches of 1, and 32 windows an optimiser step. It computes in float32. *bfloat16* is no
  option of it: there the frozen weights are converted, and what enters and leaves the language model is cast.
- **To its favour**: its features are made before the clock starts, ours after; dropout is off when it decides; and its context is emptied
  before each session, which its own evaluation forgets, so that there all but the first session's decisions cost as much as late ones.
- **Late in a session** are its last {late} decisions, of {chunks} chunks. **A decision learnt from** is a label's share of forward and
  backward pass, clipping and optimiser step; {labels}.
- **Memory** is the most that a process held until it had decided, and until it had trained, loading included.
"""


def markdown(found: Row) -> str:
    """The page."""
    rows = Rows(found["rows"])
    labels = found["contenders"]
    introduction = INTRODUCTION.format(late=LATE, chunks=found["settings"]["chunks"], labels=_labels_at_once(rows))
    parts = ["# What a decision costs", introduction]
    if found["settings"]["quick"]:
        parts.append("**A smoke run**: everything once and briefly; its numbers say little.\n")
    parts.append(table(["", ""], _facts(found)).replace("---:", "---"))
    for title, here in _cases(rows):
        parts += [f"## {title}\n", f"{goals_table(here)}\nCPU time, ms:\n", contender_table(here, labels, COSTS)]
        parts += ["NetLLM's CPU time over ours:\n", ratio_table(here, labels)]
        parts += ["Wall time, ms, which whatever else ran on the machine has its part in:\n", contender_table(here, labels, WALL)]
    parts.append("## Memory\n")
    for rank in rows.known("rank"):
        parts += [f"Rank {rank}:\n", contender_table(rows.where(rank=rank), labels, SIZES)]
    return "\n".join(parts)


def _labels_at_once(rows: Rows) -> str:
    """How many of them a contender learns from in one pass."""
    sizes = {
        "NetLLM": rows.where(contender=PUBLISHED[0]),
        "this testbed": Rows([row for row in rows.rows if row["contender"] not in PUBLISHED]),
    }
    said = (f"{name} learns from {' or '.join(f'{size:,.0f}' for size in here.known('at_once'))} in a pass" for name, here in sizes.items())
    return ", ".join(said)


def _facts(found: Row) -> list[Sequence[str]]:
    host, code = found["host"], found["published"]
    versions = (f"{'NetLLM' if key in PUBLISHED else 'this testbed'}: {_named(each)}" for key, each in found["versions"].items())
    settings = found["settings"]
    return [
        ("command", f"`{found['command']}`"),
        ("when", f"{found['utc']}, took {found['took_s'] / 60:.0f} minutes"),
        ("commit", found["commit"] or MISSING),
        ("NetLLM's commit", (code["commit"] or MISSING) + (", **changed**" if code["changed"] else ", unchanged")),
        ("versions", "; ".join(dict.fromkeys(versions))),
        ("backbone", settings["llm"]),
        ("sessions", f"on {settings['trace']}; repetitions: {settings['repetitions']}, in each of which all decide the same session"),
        ("host", f"{host['os']}, kernel {host['kernel']}, {host['cores']} cores of {host['cpu_model']}"),
        ("load average, 1 min", f"{host['load_1min']:.2f} before, {found['load_after']:.2f} after, this benchmark's own part included"),
    ]


def _named(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cases(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """(title, rows) of each rank and number of threads."""
    for rank in rows.known("rank"):
        for threads in rows.where(rank=rank).known("threads"):
            yield f"Rank {rank}, {threads} thread{'s' if threads > 1 else ''}", rows.where(rank=rank, threads=threads)


def ours(rows: Rows) -> list[str]:
    """Our contenders, the default one first."""
    return [key for key in rows.known("contender") if key not in PUBLISHED]


def contender_table(rows: Rows, labels: dict[str, str], columns: Sequence[Column]) -> str:
    """A line a contender."""
    lines = (
        [labels[key], *(shown(rows.where(contender=key).spread(each.name, each.scale), each.digits) for each in columns)]
        for key in rows.known("contender")
    )
    return table(["", *(each.head for each in columns)], lines)


def ratio_table(rows: Rows, labels: dict[str, str]) -> str:
    """How many times less CPU time each of ours takes than NetLLM's code, of which both types have a column."""
    present = [key for key in PUBLISHED if key in rows.known("contender")]
    heads = [f"{each.head}: {'as published' if key == PUBLISHED[0] else 'in bfloat16'}" for each in COSTS for key in present]
    lines = ([labels[key], *(shown(rows.ratios(each.name, other, key), 2) for each in COSTS for other in present)] for key in ours(rows))
    return table(["", *heads], lines)


def goals_table(rows: Rows) -> str:
    """Goals, and what our default contender reached."""
    best = ours(rows)[0]
    lines = []
    for each in GOALS:
        for other in PUBLISHED:
            if reached := rows.ratios(each.name, other, best):
                over = "as published (float32)" if other == PUBLISHED[0] else "in bfloat16"
                lines.append([f"{each.head}, NetLLM's code {over}", f"at least {GOAL:g}", shown(reached, 2), verdict(reached)])
    return table(["NetLLM's CPU time over ours", "goal", "reached", ""], lines)


def verdict(reached: Spread) -> str:
    """By the median."""
    if reached.median >= STRETCH:
        return f"met, {STRETCH:g}, too"
    return "met" if reached.median >= GOAL else "**missed**"
