"""Values made before they are asked for, in a thread of their own."""

from __future__ import annotations

import atexit
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from types import TracebackType
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ReadAhead(Generic[Key, Value]):
    """Makes values in the order in which they will be asked for. A context that ends its thread.

    Args:
        wanted: the keys, in order; one may come several times, and is made each time.
        make: a key's value.
        size: a key's bytes.
        room: how many bytes may be made and not taken; one value may exceed it.
    """

    def __init__(
        self,
        wanted: Iterable[Key],
        make: Callable[[Key], Value],
        size: Callable[[Key], int],
        room: int,
    ) -> None:
        self._wanted, self._make, self._size, self._room = tuple(wanted), make, size, room
        self._coming = Counter(self._wanted)
        self._made: defaultdict[Key, deque[Value]] = defaultdict(deque)
        self._held = 0
        self._waited_for: Key | None = None
        self._problem: BaseException | None = None
        self._stopped = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="read-ahead")

    def __enter__(self) -> ReadAhead[Key, Value]:
        self._thread.start()
        # Whoever never leaves the context must not find the thread in torch's code at the end.
        atexit.register(self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        atexit.unregister(self._end)

    def take(self, key: Key) -> Value:
        """A key's value: the one that was made, or is being made, else a new one.

        Raises:
            BaseException: what ``make`` raised, for this key or one before it.
        """
        with self._change:
            while not self._made[key]:
                if self._problem is not None:
                    raise self._problem
                if not self._coming[key]:
                    break
                # Whoever asks out of turn must not wait for room that only he can make.
                self._waited_for = key
                self._change.notify_all()
                self._change.wait()
            self._waited_for = None
            if self._made[key]:
                self._held -= self._size(key)
                self._change.notify_all()
                return self._made[key].popleft()
        return self._make(key)

    def _end(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._thread.join()
        self._made.clear()

    def _run(self) -> None:
        for key in self._wanted:
            with self._change:
                self._change.wait_for(lambda key=key: self._may_make(key))  # type: ignore[misc]
                if self._stopped:
                    return
            try:
                value = self._make(key)
            except BaseException as problem:
                with self._change:
                    self._problem = problem
                    self._change.notify_all()
                return
            with self._change:
                self._made[key].append(value)
                self._coming[key] -= 1
                self._held += self._size(key)
                self._change.notify_all()

    def _may_make(self, key: Key) -> bool:
        fits = self._held == 0 or self._held + self._size(key) <= self._room
        return self._stopped or self._waited_for is not None or fits
