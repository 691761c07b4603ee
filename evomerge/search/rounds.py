"""Rounds of the race: finalists on fresh items, under several seeds where masks are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from evomerge.evaluation import Scores, TaskRequest, compare, fitness
from evomerge.search.finalists import draws_masks, under_seed
from evomerge.search.pool import Job, Outcome
from evomerge.search.preparation import Preparation
from evomerge.search.race import RoundResult
from evomerge.search.records import TrialRecord
from evomerge.search.spending import items_of_round

_RESAMPLES = 1000  # an error to drop out by need not be exact


class Rounds:
    """Runs rounds of a space's race.

    Args:
        prepared: the space; it has race items.
        score: runs jobs, as many at once as there are workers.
    """

    def __init__(
        self,
        prepared: Preparation,
        score: Callable[[Sequence[Job]], Mapping[int | str, Outcome]],
    ) -> None:
        self._prepared, self._score = prepared, score

    def cost(self, record: TrialRecord) -> int:
        """Items that a finalist is scored on in a round, at most."""
        items = self._prepared.race_items
        return 0 if items is None else items_of_round(items) * self._runs(record)

    def run(self, part: str, entrants: Mapping[str, TrialRecord]) -> tuple[RoundResult, int]:
        """Score entrants on a round's items, under several seeds where they draw masks.

        Args:
            part: which round, as for :class:`~evomerge.search.pool.Job`.
            entrants: by name.

        Returns:
            The round without those that failed, and how many items were scored.
        """
        jobs, keys = [], {}
        for name, record in entrants.items():
            recipe = record.recipe or ""
            keys[name] = [f"{name} {step}" for step in range(self._runs(record))]
            jobs += [
                Job(key, under_seed(recipe, step), part) for step, key in enumerate(keys[name])
            ]
        outcomes = self._score(jobs)
        found = {
            name: [scores for key in own if (scores := outcomes[key].scores) is not None]
            for name, own in keys.items()
        }
        whole = {name: scores for name, scores in found.items() if len(scores) == len(keys[name])}
        items = [outcome.items for outcome in outcomes.values()]
        return self._result(max(items), whole), sum(items)

    def _result(self, items: int, scores: Mapping[str, Sequence[Scores]]) -> RoundResult:
        values = {name: [self._fitness(one) for one in of] for name, of in scores.items()}
        values = {name: of for name, of in values.items() if all(map(math.isfinite, of))}
        names = list(values)
        errors = {
            a: {
                b: error
                for b in names[place + 1 :]
                if (error := self._error(scores[a], scores[b])) is not None
            }
            for place, a in enumerate(names)
        }
        return RoundResult(
            items,
            {name: sum(of) / len(of) for name, of in values.items()},
            errors,
            {name: of for name, of in values.items() if len(of) > 1},
        )

    def _error(self, a: Sequence[Scores], b: Sequence[Scores]) -> float | None:
        """The standard error of the paired difference, seed by seed: a bound for their means'."""
        found = []
        for step in range(max(len(a), len(b))):
            of_a, of_b = a[step % len(a)], b[step % len(b)]
            difference = compare(
                of_a,
                of_b,
                self._requests,
                plain_sum=self._prepared.space.plain_sum,
                resamples=_RESAMPLES,
            )
            if difference.low is None or difference.high is None:
                return None
            found.append((difference.high - difference.low) / (2 * 1.96))
        return math.sqrt(sum(error**2 for error in found) / len(found))

    def _runs(self, record: TrialRecord) -> int:
        """How often a finalist is scored on each item."""
        drawn = draws_masks(record.recipe or "")
        return self._prepared.space.finals.mask_seeds if drawn else 1

    def _fitness(self, scores: Scores) -> float:
        return fitness(scores, self._requests, plain_sum=self._prepared.space.plain_sum)

    @property
    def _requests(self) -> Sequence[TaskRequest]:
        items = self._prepared.race_items
        return () if items is None else items.requests
