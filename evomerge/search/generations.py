"""NSGA-II whose generations are cut from the order of arrival.

Optuna's (5.0) notes each trial's generation when it is drawn, and its parents as ids when they are
first needed. With several workers results of a generation arrive after its parents were chosen and
count for nothing; and a study that is resumed chooses its parents anew, with those results among
them. Here, as for our CMA-ES, so many searched results as a population has are a generation, in
the order in which they arrived. Baselines with a genome compete as results of the generation in
which they arrive, and need not be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.search.seeded import BASELINE, KIND, with_genome


class Generations:
    """A study's searched results cut into generations, and the parents that each came to.

    Args:
        genes: the genes' names; trials without them are left out.
        size: searched results per generation.
    """

    def __init__(self, genes: Mapping[str, Any], size: int) -> None:
        self._genes, self.size = genes, size
        self._study: optuna.Study | None = None  # the one that was looked at last
        self.parents: dict[int, list[FrozenTrial]] = {}

    def look(self, study: optuna.Study) -> list[list[FrozenTrial]]:
        """The generations, the last of them unfinished; baselines where they arrived."""
        if study is not self._study:
            self._study, self.parents = study, {}
        generations: list[list[FrozenTrial]] = [[]]
        searched = 0
        for trial in with_genome(study, self._genes, (TrialState.COMPLETE,)):
            generations[-1].append(trial)
            searched += trial.user_attrs.get(KIND) != BASELINE
            if searched == self.size:
                generations.append([])
                searched = 0
        return generations


class ArrivalNSGAII(NSGAIISampler):
    """NSGA-II (Deb et al. 2002) over these generations.

    Args:
        generations: of the study; keeps what was chosen between draws.
        further: of ``NSGAIISampler``: ``mutation_prob``, ``crossover_prob``, ``seed`` …
    """

    def __init__(self, generations: Generations, **further: Any) -> None:
        super().__init__(population_size=generations.size, **further)
        self._generations = generations

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        return len(self._generations.look(study)) - 1

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return self._generations.look(study)[generation]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The fittest of all before this generation; none before the first."""
        known = self._generations.parents
        for earlier in range(1, generation + 1):
            if earlier not in known:
                known[earlier] = self.select_parent(study, earlier)
        return known[generation] if generation else []
