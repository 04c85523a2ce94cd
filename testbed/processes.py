"""Work in several processes at once, with an end that leaves none behind."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from testbed.errors import UserError
from testbed.user import die_with_parent

Key = TypeVar("Key")
Task = TypeVar("Task")
Result = TypeVar("Result")
CTRL_C_S = 0.5
"""Ctrl-C is looked for this often: the kernel may give the signal to a thread of polars, which wakes nobody."""


def in_processes(call: Callable[[Task], Result], tasks: Mapping[Key, Task], processes: int) -> Iterator[tuple[Key, Result]]:
    """Results as they come, of at most `processes` tasks at once. Ctrl-C, or a task that fails, ends the processes; so does losing one.

    A kill -9 of this process ends them, too; so does the end of the thread that asks for results, for it is the one that starts them.
    `call` and tasks are pickled; the program's own file must be importable (`if __name__ == "__main__"`).
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would share numba's and torch's threads
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin, initargs=(os.getpid(),)) as pool:
        running: dict[Future[Result], Key] = {}
        waiting = list(tasks.items())
        try:
            while running or waiting:
                while waiting and len(running) < processes:
                    key, task = waiting.pop(0)
                    running[pool.submit(call, task)] = key
                for future in wait(running, CTRL_C_S, FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError("a process was killed (out of memory?), wanted it to end: try fewer of them at once") from error
            raise


def _begin(parent_pid: int) -> None:
    """In a process: Ctrl-C is left to the parent."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
