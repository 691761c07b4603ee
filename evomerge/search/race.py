"""A race: the finalists on fresh items, in rounds; who is clearly behind drops out.

The search score of a candidate that was chosen by it is biased upwards, by as much as it was lucky;
its score on items that nobody chose by is not. Among candidates that are independent draws, the
mean over all items, searched and fresh, ranks best (``studies/finals.py``); those of a search are
not: the longer it goes on, the more it fits its own items (``studies/LOG.md``). So a search races
by fresh items alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Z = 2.0
"""Standard errors of the paired difference behind the leader at which a finalist drops out."""


@dataclass(frozen=True)
class RoundResult:
    """One round.

    Args:
        items: how many items it had.
        fitness: finalist → fitness on them, with several mask seeds their mean.
        errors: finalist → another, later in order → standard error of their paired difference;
            without those of which nobody knows it.
        seeds: finalist → fitness under each mask seed, its own first, where it draws masks.
    """

    items: int
    fitness: Mapping[str, float]
    errors: Mapping[str, Mapping[str, float]]
    seeds: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """Where a race stands; everything follows from the rounds that were run.

    Args:
        searched: finalist → fitness on the search items, in the order that breaks ties.
        search_items: how many those are; 0 leaves them out of account.
        rounds: those that are finished.
    """

    searched: Mapping[str, float]
    search_items: int
    rounds: tuple[RoundResult, ...] = ()

    @property
    def raced(self) -> tuple[str, ...]:
        """Those that are in the last round; all while there is none."""
        last = self.rounds[-1].fitness if self.rounds else self.searched
        return tuple(name for name in self.searched if name in last)

    @property
    def leader(self) -> str:
        """The one with the best mean over all items; the first of several that are equal."""
        return max(self.raced, key=self.pooled)

    @property
    def remaining(self) -> tuple[str, ...]:
        """Those that are not clearly behind the leader."""
        leader = self.leader
        best = self.pooled(leader)
        return tuple(
            name
            for name in self.raced
            if name == leader or best - self.pooled(name) <= Z * self.error(leader, name)
        )

    def fresh(self, name: str) -> float | None:
        """A finalist's fitness on the fresh items that it was scored on; None if there are none."""
        run = [one for one in self.rounds if name in one.fitness]
        items = sum(one.items for one in run)
        return sum(one.items * one.fitness[name] for one in run) / items if items else None

    def pooled(self, name: str) -> float:
        """A finalist's fitness on all the items, searched and fresh."""
        run = [one for one in self.rounds if name in one.fitness]
        fresh = sum(one.items for one in run)
        seen = self.search_items if fresh else max(self.search_items, 1)
        total = seen * self.searched[name] + sum(one.items * one.fitness[name] for one in run)
        return total / (seen + fresh)

    def error(self, a: str, b: str) -> float:
        """The standard error of two finalists' difference over all items; inf if unknown."""
        found = [
            (one.items, error)
            for one in self.rounds
            if (error := one.errors.get(a, {}).get(b, one.errors.get(b, {}).get(a))) is not None
        ]
        fresh = sum(items for items, _ in found)
        if not fresh:
            return math.inf
        per_item = sum(items * items * error**2 for items, error in found) / fresh
        return math.sqrt(per_item / (self.search_items + fresh))

    @property
    def seed_spread(self) -> float | None:
        """Standard deviation of one finalist's fitness over mask seeds, on all the items of the
        race, averaged over those that ran to the end; None where no masks are drawn."""
        variances = []
        for name in self.raced:
            rows = [(one.items, one.seeds[name]) for one in self.rounds if name in one.seeds]
            if len(rows) == len(self.rounds) and rows and len(rows[0][1]) > 1:
                seeds = zip(*([items * value for value in row] for items, row in rows), strict=True)
                total = sum(items for items, _ in rows)
                variances.append(statistics.variance(sum(seed) / total for seed in seeds))
        return math.sqrt(statistics.mean(variances)) if variances else None

    @property
    def spread(self) -> float | None:
        """Standard deviation between those that ran to the end, on the items of the race."""
        fresh = [value for name in self.raced if (value := self.fresh(name)) is not None]
        return statistics.stdev(fresh) if len(fresh) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Race:
        """The inverse of :meth:`to_json`."""
        rounds = tuple(RoundResult(**one) for one in data["rounds"])
        return cls(data["searched"], data["search_items"], rounds)
