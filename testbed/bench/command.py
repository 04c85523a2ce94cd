"""`scripts/bench NAME ...`: the benchmarks by name, and exit codes: 0 done, 1 it failed, 2 a user's mistake, 130 after Ctrl-C."""

import os
import sys
from collections.abc import Callable, Sequence

from controllers.learning.start import usage
from testbed.errors import TestbedError, UserError, suggestion
from testbed.host import CHECKOUT


def command(arguments: Sequence[str]) -> int:
    """Run a benchmark; without one, they are told."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage("scripts/bench", {name: about for name, (about, _) in BENCHMARKS.items()}) + "\n")
        return 0
    name, *options = arguments
    try:
        if name not in BENCHMARKS:
            raise UserError(f"unknown benchmark {name!r}, {suggestion(name, BENCHMARKS)}")
        BENCHMARKS[name][1](options)
    except UserError as error:
        return _say(f"error: {error}", 2)
    except TestbedError as error:
        return _say(f"failed: {error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted; what was made is undone", 130)
    return 0


def _cjs_faults(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.cjs_faults import CjsFaultsSettings, cjs_faults

    sys.stdout.write(cjs_faults(tyro.cli(CjsFaultsSettings, prog="scripts/bench cjs-faults", args=arguments)))


def _cjs_sim(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.cjs_sim import CjsSimSettings, cjs_sim

    sys.stdout.write(cjs_sim(tyro.cli(CjsSimSettings, prog="scripts/bench cjs-sim", args=arguments)))


def _dashjs(arguments: list[str]) -> None:
    import tyro
    from rich.console import Console

    from testbed.bench.agreement import AgreementSettings, agreement

    sys.stdout.write(agreement(tyro.cli(AgreementSettings, prog="scripts/bench dashjs", args=arguments), Console(stderr=True)))


def _dtypes(arguments: list[str]) -> None:
    """In this process's place: nothing in this package loads a language model."""
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", "netllm.bench.dtypes", *arguments],
        {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def _links(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.links import LinksSettings, links

    links(tyro.cli(LinksSettings, prog="scripts/bench links", args=arguments))


def _live(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.live import LiveSettings, live

    sys.stdout.write(live(tyro.cli(LiveSettings, prog="scripts/bench live", args=arguments)))


def _netllm(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.netllm import NetllmSettings, netllm

    sys.stdout.write(netllm(tyro.cli(NetllmSettings, prog="scripts/bench netllm", args=arguments)))


def _sim(arguments: list[str]) -> None:
    import tyro

    from testbed.bench.sim import SimSettings, sim

    sys.stdout.write(sim(tyro.cli(SimSettings, prog="scripts/bench sim", args=arguments)))


def _say(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


BENCHMARKS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "cjs-faults": ("inject faults into an emulated cluster; needs root", _cjs_faults),
    "cjs-sim": ("speed of the scheduling simulator, beside NetLLM's", _cjs_sim),
    "dashjs": ("the headless player beside dash.js in Chromium, on the same chunks; needs root", _dashjs),
    "dtypes": ("cost of the language model in bfloat16 and in float32 on this processor", _dtypes),
    "links": ("emulated links beside Mininet's TCLink and Mahimahi; needs root", _links),
    "live": ("emulated runs beside the simulator, from their results", _live),
    "netllm": ("cost of a decision and of training, beside NetLLM's published code", _netllm),
    "sim": ("speed of the bitrate simulator, beside NetLLM's", _sim),
}
"""By name: one line, and what runs it."""
