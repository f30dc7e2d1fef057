"""Work in threads: in the order of the items, and each with a share of torch's processors.

Torch is imported where it is used, so that a search which needs no model can do without.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event, Thread
from typing import TypeVar

MOST = 8  # threads; more of them hold more memory, and fewer share more processors each
_AHEAD = 64  # results that are ready before they are taken, beside those of the threads
_LEAST = 8  # images; of fewer at once a model takes longer for each

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def computing_threads() -> int:
    """Return how many threads share the processors that torch may use."""
    import torch

    return min(MOST, torch.get_num_threads())


def images_at_once(batch_size: int, threads: int) -> int:
    """Return how many images of a batch each of several threads takes at once.

    All of them together then hold as many as one batch has, or little more.
    """
    return min(batch_size, max(_LEAST, -(-batch_size // threads)))


@contextmanager
def sharing_threads(count: int) -> Generator[ThreadPoolExecutor, None, None]:
    """Give threads in which torch computes with a share of the processors.

    By itself torch computes with all of them in each thread. Several threads at once would then
    wait for each other all the time.

    Args:
        count: of the threads.

    Example:
        with sharing_threads(computing_threads()) as threads:
            features = list(threads.map(encode, batches))
    """
    import torch

    share = max(1, torch.get_num_threads() // count)
    with ThreadPoolExecutor(1) as new:  # this thread may have a number of its own
        every = new.submit(torch.get_num_threads).result()
    with ThreadPoolExecutor(count, initializer=_take_share, initargs=(share, every)) as threads:
        yield threads


def _take_share(share: int, every: int) -> None:
    """Have torch compute with `share` processors in this thread, and in no other."""
    import torch

    torch.get_num_threads()  # the first question of a thread sets it to the number of the process
    # The number of the process, which threads get that begin later, changes with that of a thread.
    # Another thread sets it back. It begins before, so that there is one when it is needed.
    is_changed = Event()

    def set_back() -> None:
        is_changed.wait()
        torch.set_num_threads(every)

    other = Thread(target=set_back)
    other.start()
    try:
        torch.set_num_threads(share)
    finally:
        is_changed.set()
        other.join()


@contextmanager
def reading_ahead(
    count: int, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[Iterator[_Result], None, None]:
    """Give what `work` makes of each item, in order, which threads do ahead of who takes it.

    Args:
        count: of the threads.
        work: what they do, such as to read and prepare an image.
        items: what they do it with.
    """
    with ThreadPoolExecutor(count) as threads:
        results = in_order(threads, work, items, ahead=count + _AHEAD)
        with closing(results):
            yield results


def in_order(
    threads: ThreadPoolExecutor,
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Generator[_Result, None, None]:
    """Yield what `work` makes of each item, in the order of the items.

    Args:
        threads: to work in.
        work: what they do.
        items: what they do it with.
        ahead: items that are begun before the result of the first is taken.
    """
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
