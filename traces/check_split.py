"""The command `scripts/check_split TRAIN TEST`: a table of what two sets of traces share; see `traces/leakage.py`."""

import argparse
import sys
from collections.abc import Sequence

from testbed.errors import UserError
from traces.leakage import RUN, Leak, find_leaks
from traces.store import TraceSet, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a split; exit code 0 when clean, 1 when something leaks, 2 when the input can't be used, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="check_split", description="Do training and test traces share anything?")
    parser.add_argument("train", help="a catalogued split (fcc/train), a file or a folder")
    parser.add_argument("test", help="likewise")
    parser.add_argument("--run", type=int, default=RUN, help=f"equal consecutive samples that count as a leak (default {RUN})")
    options = parser.parse_args(arguments)
    try:
        train, test = _measured(options.train), _measured(options.test)
        leaks = find_leaks(train.traces, test.traces, options.run)
    except (UserError, OSError) as error:
        sys.stderr.write(f"check_split: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("check_split: interrupted\n")
        return 130
    _say(_report(train, test, leaks))
    return 1 if leaks else 0


def _measured(reference: str) -> TraceSet:
    found = resolve(reference)
    if found.source == "model":
        raise UserError(f"{found.note}, wanted the measured ones: run scripts/fetch_data {found.name}")
    return found


def _report(train: TraceSet, test: TraceSet, leaks: Sequence[Leak]) -> str:
    pair = f"{len(train.traces)} training traces against {len(test.traces)} test traces"
    if not leaks:
        return f"clean: {pair} share no content, run, unit or log"
    tainted = f"{len({leak.train for leak in leaks})} training and {len({leak.test for leak in leaks})} test traces"
    wide = max(len(leak.train) for leak in leaks), max(len(leak.test) for leak in leaks)
    head = f"{'leak':<8} {'train':<{wide[0]}} {'test':<{wide[1]}} what"
    rows = [f"{leak.kind:<8} {leak.train:<{wide[0]}} {leak.test:<{wide[1]}} {leak.detail}" for leak in leaks]
    return "\n".join([head, *rows, f"leaks: {pair}: {len(leaks)} findings in {tainted}"])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
