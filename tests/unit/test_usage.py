"""What commands say of themselves: every task and benchmark, a line each, and where its options are told."""

import pytest

from netllm import command as netllm_command
from netllm.command import COMMANDS
from testbed.bench.command import BENCHMARKS, command

KNOWN = {name: {task: work.about for task, work in tasks.items()} for name, tasks in COMMANDS.items()}
KNOWN["bench"] = {name: about for name, (about, _) in BENCHMARKS.items()}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_all_there_is(name, arguments, capsys):
    run = command if name == "bench" else getattr(netllm_command, f"{name}_command")
    assert run(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"usage: scripts/{name} {{{','.join(KNOWN[name])}}} [options]"
    for task, about in KNOWN[name].items():
        assert [line for line in said if line.split()[:1] == [task] and line.endswith(about)]
    assert said[-1] == f"Options of one: scripts/{name} {next(iter(KNOWN[name]))} --help"


def test_an_unknown_benchmark_is_a_mistake(capsys):
    assert command(["link"]) == 2
    assert "unknown benchmark 'link', did you mean links" in capsys.readouterr().err
