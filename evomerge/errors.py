"""The tree of exceptions, and the shape of a message.

A message names the place (file, line, key), the value that was found and what is allowed. Faults of
one input are gathered and raised together, so that a user mends a file once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input.

    Args:
        place: where, as a person would look for it: ``space.yaml:12: genome.density``.
        problem: the value found and what is allowed instead.
    """

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" if self.place else self.problem


class EvomergeError(Exception):
    """The root: whatever evomerge raises on purpose is one of these."""


class InputError(EvomergeError):
    """An input is wrong; ``faults`` lists everything that is wrong with it."""

    subject = "input"

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    @classmethod
    def at(cls, place: str, problem: str) -> InputError:
        """The error of a single fault."""
        return cls([Fault(place, problem)])

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Fault, ...]]]:
        # Exceptions cross process borders (Ray); the default would rebuild from the message.
        return type(self), (self.faults,)


class SpaceError(InputError):
    """A search space is wrong."""

    subject = "search space"


class RecipeError(InputError):
    """A recipe is wrong, or does not fit the models that it names."""

    subject = "recipe"


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable, or unlike the ones that it is to be merged with."""

    subject = "checkpoint"


class TaskError(InputError):
    """A task is unknown, has too few items, or does not report the metric that is asked for."""

    subject = "task"


class StudyError(InputError):
    """A study is missing, or was made from something else than what it is asked to go on with."""

    subject = "study"


class EvomergeWarning(UserWarning):
    """Something in an input that is allowed but probably not meant; the command line prints it."""


class TrialError(EvomergeError):
    """One candidate could not be merged or scored; the search goes on without it."""
