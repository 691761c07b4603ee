"""CMA-ES as the search needs it: solutions from elsewhere are welcome, but cannot throw it off.

The algorithm is cmaes' (Hansen, arXiv 1604.00772). What is added is the treatment of injected
solutions (Hansen, arXiv 1110.4181): results that arrive late were drawn from an older distribution,
and their steps are shortened to what the present one could have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA

Solution = tuple[np.ndarray, float]


class InjectableCMA(CMA):
    """``cmaes.CMA`` whose :meth:`tell` takes solutions that it did not draw itself.

    Every step is shortened to at most c_y = √n + 3 standard deviations (arXiv 1110.4181, sect. 2).
    The length of a step drawn from the present distribution is about √n ± 1/√2, so that such a one
    is longer once in some ten thousand draws, and the plain algorithm stays as it was. (The paper's
    own c_y = √n + 2n/(n + 2) would shorten one in thirty of them at n = 3.)
    """

    @property
    def longest_step(self) -> float:
        """c_y, in standard deviations (Mahalanobis length)."""
        return math.sqrt(self.dim) + 3

    def step_length(self, x: np.ndarray) -> float:
        """Mahalanobis length ‖C^(-1/2)(x − m)‖/σ of a solution's step from the mean."""
        axes, scales = self._eigen_decomposition()
        step = (x - self._mean) / self._sigma
        return float(np.linalg.norm((axes.T @ step) / np.maximum(scales, 1e-12)))

    def tell(self, solutions: list[Solution]) -> None:
        """Update the distribution from exactly ``population_size`` solutions (minimised)."""
        super().tell([(self._within_reach(x), value) for x, value in solutions])

    def _within_reach(self, x: np.ndarray) -> np.ndarray:
        length = self.step_length(x)
        if length <= self.longest_step:
            return x
        return self._mean + (x - self._mean) * (self.longest_step / length)


class Replay:
    """The optimizer's state as a function of its start and of the solutions told, in order.

    Nothing of the state is stored: after a restart, the same solutions told in the same order give
    the same distribution. The part that was already replayed is kept, so that asking again costs
    only the new generations.

    Args:
        low, high: the bounds of the genes, shape ``[genes]``; inside, they are scaled to [0, 1].
        sigma: initial standard deviation as a share of a gene's range.
        seed: of the study.
        population: solutions per generation; None is cmaes' default 4 + ⌊3 ln n⌋.
    """

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        *,
        sigma: float,
        seed: int,
        population: int | None = None,
    ) -> None:
        self._low, self._high, self._range = low, high, high - low
        self._sigma, self._seed, self._population = sigma, seed, population
        self._start: np.ndarray | None = None
        self._told: list[Solution] = []
        self._optimizer: InjectableCMA | None = None

    @property
    def population(self) -> int:
        """Solutions per generation."""
        return self._population or 4 + math.floor(3 * math.log(len(self._low)))

    def ask(self, start: np.ndarray, told: Sequence[Solution], draw: int) -> np.ndarray:
        """One point within the bounds.

        Args:
            start: the initial mean, in the genes' units.
            told: all the finished solutions (point, value to minimise), in the order of finishing.
            draw: which draw this is; the same draw from the same state is the same point.
        """
        optimizer = self._at(start, told)
        seed = np.random.SeedSequence((self._seed, draw)).generate_state(1)[0]
        optimizer.reseed_rng(int(seed))
        return self._scaled(optimizer.ask())

    def mean(self, start: np.ndarray, told: Sequence[Solution]) -> np.ndarray:
        """The distribution's mean after these solutions, in the genes' units."""
        return self._scaled(self._at(start, told).mean)

    def _at(self, start: np.ndarray, told: Sequence[Solution]) -> InjectableCMA:
        generations = len(told) // self.population
        wanted = list(told[: generations * self.population])
        if self._optimizer is None or not self._continues(start, wanted):
            self._start, self._told = start, []
            self._optimizer = self._new(start)
        for at in range(len(self._told), len(wanted), self.population):
            batch = wanted[at : at + self.population]
            self._optimizer.tell([(self._unit(x), value) for x, value in batch])
        self._told = wanted
        return self._optimizer

    def _continues(self, start: np.ndarray, wanted: Sequence[Solution]) -> bool:
        if self._start is None or not np.array_equal(start, self._start):
            return False
        if len(wanted) < len(self._told):
            return False
        return all(
            mine is theirs or (mine[1] == theirs[1] and np.array_equal(mine[0], theirs[0]))
            for mine, theirs in zip(self._told, wanted, strict=False)
        )

    def _new(self, start: np.ndarray) -> InjectableCMA:
        dimensions = len(self._low)
        # A mean on a bound draws half of its samples outside; a tenth of a step inside is enough.
        inset = min(0.1 * self._sigma, 0.5)
        return InjectableCMA(
            mean=np.clip(self._unit(start), inset, 1 - inset),
            sigma=self._sigma,
            bounds=np.tile([0.0, 1.0], (dimensions, 1)),
            n_max_resampling=10 * dimensions,
            seed=self._seed,
            population_size=self.population,
        )

    def _scaled(self, unit: np.ndarray) -> np.ndarray:
        # Rounding: 0.3 + 0.6 · 1 is above 0.9, which would be outside of the gene's bounds.
        return np.clip(self._low + self._range * unit, self._low, self._high)

    def _unit(self, x: np.ndarray) -> np.ndarray:
        return (x - self._low) / self._range
