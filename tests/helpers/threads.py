"""Run the same work in many threads at once, as close together as can be."""

import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

THREADS = 16


@contextmanager
def _switching_often() -> Generator[None]:
    """Let Python change threads after every few instructions, where races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(work: Callable[[int], Any], items: int, rounds: int = 2) -> list[list[Any]]:
    """Return what `work` makes of each item in each of 16 threads, (16 x rounds) lists of them.

    All threads begin together, each with another item. An error in a thread is raised.

    Args:
        work: takes the number of an item.
        items: how many there are.
        rounds: how often each thread goes through them.
    """
    barrier = threading.Barrier(THREADS)

    def run(thread: int) -> list[list[Any]]:
        barrier.wait()
        found: list[list[Any]] = []
        for _ in range(rounds):
            order = [(thread + i) % items for i in range(items)]
            results = {item: work(item) for item in order}
            found.append([results[item] for item in range(items)])
        return found

    with _switching_often(), ThreadPoolExecutor(THREADS) as pool:
        return [one for found in pool.map(run, range(THREADS)) for one in found]
