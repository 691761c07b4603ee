"""The best candidate so far, item by item: what others are compared with while they are scored.

Where every metric is a mean over items, a candidate's fitness is a sum over items, and so is its
difference to the incumbent's. Some of the items therefore say, without bias, how large it is on all
of them, and how sure that is: each task's items are a stratum of which some are drawn without
replacement (Cochran 1977, "Sampling techniques", eq. 5.6 and 2.20).
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.evaluation.scores import Scores
from evomerge.evaluation.spec import MetricName, TaskRequest

CONFIDENCE_Z = 1.645
"""A candidate is stopped when it is worse with a confidence of 95 % (one-sided, normal)."""

CERTAIN_Z, NEW_Z = 3.0, 2.0
"""Where a false stop costs more than the items saved, it has to be worse by so many standard errors
on the items that all are scored on, and by so many on others like them. Of less than five ninths of
the items the first implies the second; when few are left to be scored it does not."""

_ROUNDING = 1e-6
"""What is no evidence, in a metric's unit: the same answers in other batches differ by rounding."""

_FEWEST = 8
"""Items, beyond one per task, below which their spread is not worth knowing."""

Weights = Mapping[str, Mapping[str, float]]
Seen = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A candidate's fitness minus the incumbent's, on all items, from those that were seen.

    Args:
        value: the estimate; unbiased over draws of the items, but too low on average where it led
            to a stop, which selects the unlucky draws.
        stderr: of it as a guess of the difference on all the items; 0 once all were seen.
        noise: of it as a guess of the difference on items like these.
    """

    value: float
    stderr: float
    noise: float

    @property
    def hopeless(self) -> bool:
        """Whether the candidate is not going to win on all the items."""
        return self.value + CONFIDENCE_Z * self.stderr < 0

    @property
    def surely_hopeless(self) -> bool:
        """Whether it almost certainly is not, nor on others like them."""
        return self.value + CERTAIN_Z * self.stderr < 0 and self.value + NEW_Z * self.noise < 0


@dataclass(frozen=True)
class Incumbent:
    """The fittest candidate so far.

    Args:
        trial: its number.
        fitness: on all the items.
        weights: leaf task → metric → what the metric's mean adds to the fitness, per unit; without
            tasks that add nothing.
        values: leaf task → float32 ``[items]``, what each item adds, the share of one item in the
            mean left out: the sum of their means over the tasks is the fitness.
        lenient: whether only what is almost certainly worse is stopped.
    """

    trial: int
    fitness: float
    weights: Weights
    values: Mapping[str, np.ndarray]
    lenient: bool = False

    @classmethod
    def of(
        cls, trial: int, fitness: float, scores: Scores, requests: Sequence[TaskRequest], **how: Any
    ) -> Incumbent | None:
        """A candidate that was scored on all the items; None unless its fitness is a sum over them.

        Args:
            trial: its number.
            fitness: of ``scores``.
            scores: on all the items.
            requests: the item set's own.
            how: ``plain_sum``, as in :func:`~evomerge.evaluation.fitness`.
        """
        weights = _weights(scores, requests, **how)
        values = None if weights is None else _values(scores, weights)
        return None if weights is None or values is None else cls(trial, fitness, weights, values)

    def leniently(self) -> Incumbent:
        """The same, but only what is almost certainly worse is stopped."""
        return replace(self, lenient=True)

    def stops(self, difference: Difference) -> bool:
        """Whether a candidate that is so much fitter, or less, is not scored any further."""
        return difference.surely_hopeless if self.lenient else difference.hopeless

    def difference(self, scores: Scores, seen: Seen | None = None) -> Difference | None:
        """How much fitter another candidate is.

        Args:
            scores: of the other; those of items that were not seen are not looked at.
            seen: leaf task → positions of the items that were; None is all of them.

        Returns:
            None where that cannot be told: values that are not numbers, or too few of them.
        """
        other = _values(scores, self.weights)
        if other is None:
            return None
        rows = {leaf: slice(None) if seen is None else seen[leaf] for leaf in self.values}
        gains = {
            leaf: (other[leaf][rows[leaf]].astype(float) - mine[rows[leaf]])
            for leaf, mine in self.values.items()
        }
        scales = {leaf: sum(map(abs, of.values())) or 1.0 for leaf, of in self.weights.items()}
        spread = _spread(gains, scales)
        value = float(sum(gain.mean() for gain in gains.values()))
        if spread is None or not math.isfinite(value):
            return None
        sizes = {leaf: len(mine) for leaf, mine in self.values.items()}
        unseen = sum(spread[leaf] * (1 - len(gains[leaf]) / sizes[leaf]) for leaf in gains)
        return Difference(value, math.sqrt(unseen), math.sqrt(sum(spread.values())))

    def to_json(self) -> dict[str, Any]:
        """Plain data, compact; :meth:`from_json` gives it back to the last bit."""
        packed = {
            leaf: base64.b64encode(zlib.compress(one.astype("<f4").tobytes(), 9)).decode()
            for leaf, one in self.values.items()
        }
        weights = {leaf: dict(of) for leaf, of in self.weights.items()}
        return {"fitness": self.fitness, "weights": weights, "values": packed}

    @classmethod
    def from_json(cls, trial: int, data: Mapping[str, Any]) -> Incumbent:
        """The inverse of :meth:`to_json`; the trial's number is kept by the trial itself."""
        values = {
            leaf: np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4")
            for leaf, text in data["values"].items()
        }
        return cls(trial, float(data["fitness"]), data["weights"], values)


def _weights(
    scores: Scores, requests: Sequence[TaskRequest], *, plain_sum: bool = False
) -> Weights | None:
    """What each leaf task's metrics add to the fitness; None if one of them is no mean of items."""
    total = sum(abs(request.weight) for request in requests)
    weights: dict[str, dict[str, float]] = {}
    for request in requests:
        metric = scores.task(request.task).find(request.metric)
        better = scores.value(request.task, metric).higher_is_better
        unit = request.weight if plain_sum else request.weight / total * (1 if better else -1)
        for leaf, share in scores.shares(request.task, metric).items():
            if scores.task(leaf).metrics[metric].aggregation != "mean":
                return None
            if request.weight == 0:  # it is there for its floor, and must be known on some items
                continue
            of = weights.setdefault(leaf, {})
            of[str(metric)] = of.get(str(metric), 0.0) + unit * share
    return weights


def _values(scores: Scores, weights: Weights) -> dict[str, np.ndarray] | None:
    """Leaf task → what each item adds; rounded, so that equal answers stay equal when kept."""
    values: dict[str, np.ndarray] = {}
    for leaf, of in weights.items():
        items = scores.task(leaf).items
        pieces = [
            weight * items[MetricName.parse(metric)]
            for metric, weight in of.items()
            if MetricName.parse(metric) in items
        ]
        if len(pieces) < len(of):
            return None
        values[leaf] = np.sum(pieces, axis=0).astype(np.float32)
    return values


def _spread(
    gains: Mapping[str, np.ndarray], scales: Mapping[str, float]
) -> dict[str, float] | None:
    """Leaf task → the variance of its items' mean gain.

    A task of a few items may show no spread by chance: each task's is taken together with one item
    of the average spread, in the tasks' own units. None is less than rounding may make it.
    """
    squares = {
        leaf: float(np.sum((gain - gain.mean()) ** 2)) / scales[leaf] ** 2
        for leaf, gain in gains.items()
    }
    freedom = sum(len(gain) - 1 for gain in gains.values())
    if freedom < _FEWEST:
        return None
    average = sum(squares.values()) / freedom
    return {
        leaf: scales[leaf] ** 2 * ((squares[leaf] + average) / len(gain) ** 2 + _ROUNDING**2)
        for leaf, gain in gains.items()
    }
