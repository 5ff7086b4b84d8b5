"""Work done by threads ahead of the one who needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(make: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Generator[tuple[Given, Made]]:
    """(item, make(item)) in the order of the items; `threads` of them are in the making, one more waits. 0 threads: made when asked for.

    Close it (contextlib.closing) where it is not run to its end: a thread must not outlive its use.
    """
    if threads == 0:
        for item in items:
            yield item, make(item)
        return
    coming = iter(items)
    waiting: deque[tuple[Given, Future[Made]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        while True:
            waiting.extend((item, pool.submit(make, item)) for item in islice(coming, threads + 1 - len(waiting)))
            if not waiting:
                return
            item, made = waiting.popleft()
            yield item, made.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
