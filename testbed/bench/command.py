"""`scripts/bench NAME ...`: the benchmarks by name, and exit codes: 0 done, 1 it failed, 2 a user's mistake, 130 after Ctrl-C."""

import sys
from collections.abc import Callable, Sequence

from testbed.errors import TestbedError, UserError, suggestion


def command(arguments: Sequence[str]) -> int:
    """Run a benchmark."""
    known: dict[str, Callable[[list[str]], object]] = {
        "cjs-faults": _cjs_faults,
        "cjs-sim": _cjs_sim,
        "links": _links,
        "live": _live,
        "netllm": _netllm,
        "sim": _sim,
    }
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UserError(f"which benchmark is not said, wanted one of {', '.join(known)}; each has a --help")
        if arguments[0] not in known:
            raise UserError(f"unknown benchmark {arguments[0]!r}, {suggestion(arguments[0], known)}")
        known[arguments[0]](list(arguments[1:]))
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
