"""One evaluation from beginning to end: `test` plays what is missing, works out the tables and writes them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from netllm.abr.suite import markdown, page, paper, terminal
from netllm.abr.suite.analysis import Analysis, Cells, analyse
from netllm.abr.suite.cells import CELL, CellStore, write_results
from netllm.abr.suite.contenders import NETLLM, SHIPPED, Contender, contenders
from netllm.abr.suite.header import Header, header
from netllm.abr.suite.play import OPTIMUM, Task, play_all
from netllm.abr.suite.settings import DEFAULT, SETTINGS, UNSEEN, Prepared, chosen, prepare
from netllm.abr.suite.table import as_dict
from netllm.evaluation.tables import roomy
from netllm.identity import CHECKOUT
from testbed.drawing.typography import FORMATS
from testbed.errors import UserError

QUICK_SAMPLES = 3
DOCS = CHECKOUT / "docs"


@dataclass(frozen=True)
class EvaluateSettings:
    """What to measure."""

    settings: tuple[str, ...] = (DEFAULT, UNSEEN)
    """`default`, `unseen` (all the others), names of settings, or TRACES@VIDEO of your own (fcc/valid@video1)."""
    policies: tuple[str, ...] = ()
    """Policies as run.py takes them, or NAME=REFERENCE,REFERENCE for training seeds; default: netllm and all that the folder holds."""
    adapters: tuple[str, ...] = ()
    """Ablations, NAME=FOLDER or NAME=FOLDER,FOLDER (one per training seed), measured against the reference."""
    reference: str = NETLLM
    """What ablations are measured against: netllm or one of the adapters' names."""
    adapter: Path | None = None
    """Adapter of policy netllm; default: the one that ships."""
    llm: str = ""
    """Its backbone; default: the one the adapter was trained with."""
    dtype: str = ""
    """bfloat16 or float32; default: the quicker one here."""
    quick: bool = False
    """A few traces of each set and three sampling seeds: to see that all works."""
    samples: int = 20
    """Sampling seeds of policies that draw random numbers."""
    processes: int = 1
    """Processes for everything but language models."""
    threads: int = 1
    """CPU threads of language models."""
    batch: int = 100
    """Sessions that a language model decides together."""
    out: Path = Path("results/evaluate-abr")
    """Folder of the results. Given again, only what is missing or has changed is played."""
    figures: str = ""
    """Also write figures for a paper: pdf, png or svg."""
    write: bool = False
    """Also write docs/abr.md and its figure; with `adapters` docs/abr_ablations.md instead."""
    card: bool = False
    """Also put the results into the model card of `adapter`, which must be the main policy: the first language model that is named."""


def test(settings: EvaluateSettings | None = None, console: Console | None = None) -> Analysis:
    """Measure policies and adapters; prints a table and writes `report.html`, `summary.json` and `results.parquet` into `settings.out`."""
    settings = settings or EvaluateSettings()
    console = console or roomy()
    _check(settings)
    named = chosen(settings.settings)
    who, notes = contenders(settings.policies, settings.adapters, str(settings.adapter or ""), settings.llm, settings.dtype)
    if settings.adapters and settings.reference not in (each.name for each in who):
        raise UserError(f"--reference is {settings.reference!r}, wanted one of {', '.join(each.name for each in who)}")
    if settings.card:
        _check_card(settings.adapter or SHIPPED, who[0])
    _check_read(settings)
    prepared = [prepare(each, settings.quick) for each in named]
    if any(each.kind == NETLLM for each in who):
        _set_threads(settings.threads)
    cells = _play(settings, prepared, who, console)
    analysis = analyse(prepared, who, cells, settings.reference)
    samples = QUICK_SAMPLES if settings.quick else settings.samples
    facts = header(prepared, who, samples, settings.quick, notes, _seconds(cells))
    _write(settings, analysis, facts, cells)
    terminal.show(analysis, facts, console)
    console.print(f"report: {settings.out / 'report.html'}", markup=False, soft_wrap=True)
    return analysis


def _check(settings: EvaluateSettings) -> None:
    for name in ("samples", "processes", "threads", "batch"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} is {getattr(settings, name)}, wanted at least 1")
    if settings.figures and settings.figures not in FORMATS:
        raise UserError(f"--figures is {settings.figures}, wanted one of {', '.join(FORMATS)}")
    if settings.quick and (settings.write or settings.card):
        raise UserError("--quick is no result, wanted without --write and --card")
    if (settings.write or settings.card) and (own := [each.name for each in chosen(settings.settings) if each.name not in SETTINGS]):
        raise UserError(f"--write and --card are for test traces, seen --settings {own[0]}, wanted some of {', '.join(SETTINGS)}")
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(f"{settings.out}: is a file, wanted a folder for the results")


def _check_read(settings: EvaluateSettings) -> None:
    """Refuse what nobody reads: an evaluation must not seem to have been made with it."""
    plain = not settings.policies or NETLLM in settings.policies
    read = {"adapter": plain or settings.card, "llm": plain or settings.adapters, "dtype": plain or settings.adapters}
    if given := [name for name, by in read.items() if getattr(settings, name) and not by]:
        wanted = f"wanted nothing, or {NETLLM} without options among the policies: they are {', '.join(settings.policies)}"
        raise UserError(f"--{given[0]} is {getattr(settings, given[0])}, {wanted}")
    if settings.reference != NETLLM and not settings.adapters:
        raise UserError(f"--reference is {settings.reference}, wanted nothing without --adapters, which are measured against it")


def _check_card(folder: Path, main: Contender) -> None:
    """No adapter's card tells the results of another policy."""
    measured = [each.adapter.resolve() for each in main.members] if main.kind == NETLLM else []
    if measured != [folder.expanduser().resolve()]:
        raise UserError(
            f"--card is for the card of adapter {folder}, seen {main.name} as the main policy, wanted policy netllm with that adapter"
        )


def _set_threads(threads: int) -> None:
    import torch  # takes seconds: only who measures a language model pays

    torch.set_num_threads(threads)


def _play(settings: EvaluateSettings, prepared: Sequence[Prepared], who: Sequence[Contender], console: Console) -> Cells:
    samples = QUICK_SAMPLES if settings.quick else settings.samples
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task("evaluate")

        def told(task: Task, done: int, total: int) -> None:
            bar.update(row, completed=done, total=total, description=escape(f"{task.setting.name}: {task.policy}"))

        store = CellStore(settings.out / "cells")
        asked = [each.setting for each in prepared]
        return play_all(store, asked, who, settings.quick, samples, settings.processes, settings.batch, told)


def _seconds(cells: Cells) -> dict[str, float]:
    """CPU time per policy."""
    found: dict[str, float] = defaultdict(float)
    for (_, policy, _, _), cell in cells.items():
        found[policy] += cell.seconds
    return {name: round(value, 1) for name, value in found.items()}


def _write(settings: EvaluateSettings, analysis: Analysis, facts: Header, cells: Cells) -> None:
    out = settings.out
    write_results(out / "results.parquet", _rows(analysis, cells), facts.as_json())
    (out / "summary.json").write_text(json.dumps(as_dict(analysis, facts), indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page.render(analysis, facts), encoding="utf-8")
    if settings.figures:
        paper.export(analysis, out / "figures", settings.figures)
    if settings.write and settings.adapters:
        (DOCS / "abr_ablations.md").write_text(markdown.ablations_document(analysis, facts), encoding="utf-8")
    elif settings.write:
        (DOCS / "abr.md").write_text(markdown.document(analysis, facts), encoding="utf-8")
        paper.overview(analysis, DOCS / "abr.svg")
    if settings.card:
        markdown.put_into_card(settings.adapter or SHIPPED, analysis, facts)


def _rows(analysis: Analysis, cells: Cells) -> list[dict[str, Any]]:
    """One row a session."""
    prepared = {each.name: each.prepared for each in analysis.settings}
    rows = []
    for (setting, policy, member, seed), cell in cells.items():
        best = cells[setting, OPTIMUM, 0, 0].sessions
        for playback, session, upper in zip(prepared[setting].playbacks, cell.sessions, best, strict=False):
            rows.append(
                {
                    "setting": setting, "policy": policy, "member": member, "seed": seed, "unit": playback.unit, "group": playback.group,
                    "trace": playback.trace.name, "trace_sha256": playback.trace.sha256, "offset_s": playback.offset_s,
                    **dict(zip(CELL, session, strict=True)), "optimum": upper[0],
                }
            )  # fmt: skip
    return rows
