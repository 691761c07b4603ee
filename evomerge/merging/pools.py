"""Threads that share a machine's cores, each with work of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def apart(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads do not share torch's work: they would wait for one another inside of it.

    At the end what has not begun is given up, and threads to come get as many of torch's as before:
    a number of the whole process, so that two of a program's threads must not open pools at once
    (one inside of another does no harm).

    Args:
        threads: how many.
        name: what theirs begin with.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, name, torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:  # a second Ctrl-C
            torch.set_num_threads(before)
