"""What merging models once takes, made ahead of the merge on the other cores, and kept by nobody.

Reading, looking for NaN, thresholds and ranks are numpy's and torch's single-threaded work: several
tensors have it done at once, each on a thread of its own, while the kernels merge those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from evomerge.merging.pools import apart
from evomerge.merging.taskvectors import Memory, Sized

_S = TypeVar("_S", bound=Sized)
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Ready:
    """A merge's inputs, and what was found out about them.

    Args:
        base: the base's tensor, if it has part.
        inputs: the contributions'.
        memory: what they were looked through for.
    """

    base: torch.Tensor | None
    inputs: Sequence[torch.Tensor]
    memory: Memory


class Once(Memory):
    """A memory for a single merge of a single tensor: of what it needs, all is kept."""

    def __init__(self) -> None:
        super().__init__(0)
        self._ours: dict[Hashable, Sized] = {}

    def large(self, key: Hashable, compute: Callable[[], _S]) -> _S:
        if key not in self._ours:
            self._ours[key] = compute()
        return self._ours[key]  # type: ignore[return-value]


def made_ahead(
    items: Sequence[_Item],
    make: Callable[[_Item], _Made],
    size: Callable[[_Item], int],
    room: int,
    threads: int,
) -> Iterator[tuple[_Item, _Made]]:
    """Items and what is made of them, in their order, made in threads before it is asked for.

    Args:
        items: the items.
        make: makes something of one.
        size: its bytes.
        room: how many bytes may be made or in the making; one item may exceed it.
        threads: how many are made at once.

    Raises:
        BaseException: what ``make`` raised, when its item's turn comes.
    """

    def made_of(item: _Item) -> _Made:
        # One that takes more than half of the room leaves others idle, and has all of torch's.
        torch.set_num_threads(threads if size(item) * 2 > room else 1)
        return make(item)

    coming: deque[tuple[_Item, Future[_Made], int]] = deque()
    held, following = 0, iter(items)
    waiting = next(following, None)
    with apart(threads, "ahead") as pool:
        while coming or waiting is not None:
            while waiting is not None and (not coming or held + size(waiting) <= room):
                coming.append((waiting, pool.submit(made_of, waiting), size(waiting)))
                held += size(waiting)
                waiting = next(following, None)
            item, made, nbytes = coming.popleft()
            yield item, made.result()
            held -= nbytes
            del made
