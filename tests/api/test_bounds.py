"""Bounds that rounding could step over: ``0.3 + (0.9 - 0.3) > 0.9``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.worlds import World

LOW, HIGH = 0.3, 0.9


def test_the_bounds_are_chosen_to_step_over() -> None:
    assert LOW + (HIGH - LOW) > HIGH


@pytest.mark.parametrize("kind", ["cmaes", "tpe", "random"])
def test_every_draw_is_within_the_bounds(tmp_path: Path, kind: str) -> None:
    """Many genes and a start at the bound: some are clipped to it in every draw."""
    from optuna.distributions import FloatDistribution

    from evomerge.search.sampler import make_sampler
    from evomerge.search.storage import create_store

    genes = {f"weight/{i}": FloatDistribution(LOW, HIGH) for i in range(60)}
    store = create_store("bounds", f"sqlite:///{tmp_path}/study.db")
    store.use(make_sampler(kind, genes, dict.fromkeys(genes, HIGH), seed=0, sigma=0.3))
    for _ in range(4):
        record = store.ask(genes)
        assert set(record.genome) == set(genes)
        assert all(LOW <= value <= HIGH for value in record.genome.values())
        store.tell(record.number, 0.0)


def test_a_space_with_such_bounds_is_prepared(world: World) -> None:
    from evomerge.api import check

    genome = {"weight": [0.1, 0.7], "density": [LOW, HIGH]}
    assert check(world.space(merge_method="ties", genome=genome)).genes
