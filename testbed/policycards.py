"""`describe_policies`: who the policies of an experiment are, read in a process that runs as the user, because a policy's file is code."""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from controllers.api import AbrSession, CjsSession, Manifest, VpSession
from controllers.describe import Question
from controllers.loader import whole_path
from controllers.stdio import Fault
from players.dash.stock import STOCK
from testbed.controller import LOAD_S
from testbed.errors import TestbedError, UserError
from testbed.spec import Experiment
from testbed.units import s_from_ms
from testbed.user import invoking_user, popen_tied


@dataclass(frozen=True)
class PolicyCard:
    """How a policy is named and shown, the reference that loads it in any process from anywhere, and which file it was."""

    name: str
    label: str
    colour: str
    citation: str
    reference: str
    source_sha256: str = ""
    """Of a user's file; empty for what is ours or the browser's."""
    options_sha256: str = ""
    """See `PolicyFactory.options_sha256`."""
    options: tuple[str, ...] = ()
    """`name=default`, as they are given."""


def describe_policies(
    experiment: Experiment,
    video: Manifest | None = None,
    scheduling: CjsSession | None = None,
    viewing: VpSession | None = None,
) -> tuple[PolicyCard, ...]:
    """Name, label and colour of each policy, read in a process that runs as the user: a policy's file is code.

    Given the `video`, or the `scheduling` or `viewing` session, each policy is made and starts a session once, so that one that can't is
    the user's mistake before anything runs.
    """
    _check_backbone(experiment)
    stock = _stock_cards(experiment, video is not None)
    asked = tuple(with_backbone(reference, experiment.llm) for reference in experiment.policy_references if reference not in stock)
    playing = AbrSession("start", video, experiment.chunks, rtt_s=s_from_ms(experiment.rtt_ms)) if video else None
    question = Question(
        references=asked, session=playing, seed=experiment.seeds[0], task=experiment.task, scheduling=scheduling, viewing=viewing
    )
    loaded = iter(_loaded_cards(question, experiment.llm) if asked else ())
    return tuple(stock.get(reference) or next(loaded) for reference in experiment.policy_references)


def _stock_cards(experiment: Experiment, to_play: bool) -> dict[str, PolicyCard]:
    """Those of the policies that are dash.js's own rules. They decide nowhere but in the browser."""
    named = [reference for reference in experiment.policy_references if reference in STOCK]
    if named and to_play and (experiment.simulate or experiment.player == "headless"):
        how = "--simulate" if experiment.simulate else "--player headless"
        raise UserError(f"policy {named[0]!r} with {how}: it decides inside the browser, wanted --player dashjs")
    return {name: PolicyCard(name, STOCK[name].label, STOCK[name].colour, STOCK[name].citation, name) for name in named}


def _loaded_cards(question: Question, llm: str | None) -> tuple[PolicyCard, ...]:
    command = [sys.executable, "-m", "controllers.describe"]
    with tempfile.TemporaryFile() as said:  # no pipe: a helper that a policy starts would hold it open
        process = popen_tied(invoking_user(), command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        out = _answered(process, question)
        said.seek(0)
        errors = said.read()
    try:
        answer = msgspec.json.decode(out, type=tuple[PolicyCard, ...] | Fault)
    except msgspec.DecodeError:
        told = errors.decode(errors="replace").strip()[-2000:]
        raise TestbedError(f"reading the policies ended with code {process.returncode}: {told}") from None
    if isinstance(answer, Fault):
        raise UserError(answer.sentence)
    return tuple(_named_as_asked(card, llm) for card in answer)


def _answered(process: subprocess.Popen[bytes], question: Question) -> bytes:
    with process:
        try:
            return process.communicate(msgspec.json.encode(question), timeout=LOAD_S)[0]
        except subprocess.TimeoutExpired:
            names = ", ".join(question.references)
            raise UserError(f"policies {names}: importing and starting them took over {LOAD_S:g} s, wanted less") from None
        finally:
            process.kill()


def from_any_folder(experiment: Experiment, policies: Sequence[PolicyCard]) -> Experiment:
    """The experiment with references that lead to these policies and to its backbone from any folder.

    Raises `UserError` for what `--policies` could not name: `experiment.toml` would not run again.
    """
    for card in policies:
        if "," in card.reference:
            told = f"policy {card.name!r} is {card.reference}, whose path has a comma, which parts policies in --policies"
            raise UserError(f"{told}, wanted a path without")
    llm = whole_path(experiment.llm) if experiment.llm else None
    return dataclasses.replace(experiment, policies=",".join(card.reference for card in policies), llm=llm)


def with_backbone(reference: str, llm: str | None) -> str:
    """A policy reference with the experiment's backbone added where it matters."""
    return f"{reference}+llm={llm}" if llm and _is_netllm(reference) and "+llm=" not in reference else reference


def _is_netllm(reference: str) -> bool:
    return reference.partition("+")[0] == "netllm"


def _check_backbone(experiment: Experiment) -> None:
    """Refuse a backbone that no policy would have: a run must not seem to have been made with it."""
    asked = experiment.policy_references
    if experiment.llm and not any(map(_is_netllm, asked)):
        raise UserError(f"--llm is {experiment.llm}, wanted nothing, or netllm among the policies: they are {', '.join(asked)}")


def _named_as_asked(card: PolicyCard, llm: str | None) -> PolicyCard:
    """`--llm` is a setting of the experiment, not part of a policy's name."""
    added = f"+llm={llm}"
    return dataclasses.replace(card, name=card.name.removesuffix(added), label=card.label.removesuffix(added)) if llm else card
