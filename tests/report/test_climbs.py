"""Whether what was climbed stands for what is searched for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evomerge.report import climb_words
from evomerge.report.climbs import agreement
from evomerge.search.climbing import Place, Walk
from evomerge.search.records import TrialRecord

POINT = np.array([0.5])


def leg(
    number: int, fitness: float | None, smooth: float, climb: int = 0, state: str = "complete"
) -> TrialRecord:
    walk = Walk(Place.start(POINT), POINT, smooth, 4).to_json()
    return TrialRecord(number, "search", state, fitness, leg={"climb": climb}, walk=walk)


def words_of(*trials: TrialRecord) -> str | None:
    study: Any = SimpleNamespace(agreement=agreement(trials), trials=trials)
    return climb_words(study)


def test_a_climb_on_which_both_rise() -> None:
    smooth = [0.41, 0.44, 0.52, 0.55, 0.58]
    legs = [leg(n, 0.5 + 0.02 * n, value) for n, value in enumerate(smooth)]
    found = agreement(legs)
    assert found is not None
    assert (found.legs, found.smooth) == (5, (0.41, 0.58))
    assert found.fitness == pytest.approx((0.5, 0.58))
    assert found.correlation == pytest.approx(1.0)
    words = words_of(*legs)
    assert words is not None
    assert "its 5 legs" in words
    assert "from 0.4100 to 0.5800, the fitness from 0.5000 to 0.5800" in words
    assert words.endswith("(rank correlation +1.00).")


def test_a_climb_that_leads_elsewhere_is_told() -> None:
    legs = [leg(n, 0.5 - 0.02 * n, 0.4 + 0.02 * n) for n in range(6)]
    words = words_of(*legs)
    assert words is not None
    assert words.endswith("-1.00). They disagree: sampler: cmaes searches by the fitness alone.")


def test_the_fitter_climb_is_told_of() -> None:
    first = [leg(0, 0.5, 0.40), leg(1, 0.6, 0.50), leg(2, 0.6, 0.55)]
    second = [leg(3, 0.5, 0.40, climb=1), leg(4, 0.7, 0.60, climb=1)]
    found = agreement([*first, *second])
    assert found is not None
    assert (found.legs, found.smooth, found.fitness) == (2, (0.40, 0.60), (0.5, 0.7))
    broken = [replace(one, constraints={"floor": 0.1}) for one in second]
    kept = agreement([*first, *broken])
    assert kept is not None
    assert (kept.legs, kept.fitness) == (3, (0.5, 0.6)), "the fitter one breaks its floor"


def test_a_climb_of_one_leg_hides_no_other() -> None:
    """A small budget often ends so: the second climb's first leg begins at the best baseline."""
    found = agreement([leg(0, 0.5, 0.4), leg(1, 0.6, 0.5), leg(2, 0.7, 0.6, climb=1)])
    assert found is not None
    assert (found.legs, found.fitness) == (2, (0.5, 0.6))
    assert agreement([leg(0, 0.5, 0.4), leg(1, 0.7, 0.6, climb=1)]) is None


def test_two_climbs_that_both_rise_do_not_disagree() -> None:
    """One begins high in the one and low in the other."""
    rising = [leg(n, 0.5 + n / 100, 0.6 + n / 100) for n in range(6)]
    other = [leg(6 + n, 0.6 + n / 100, 0.4 + n / 100, climb=1) for n in range(6)]
    found = agreement([*rising, *other])
    assert found is not None
    assert found.correlation == pytest.approx(1.0)


def test_a_correlation_by_chance_is_no_disagreement() -> None:
    """Ranks 1 2 3 4 5 6 and 3 1 6 2 5 4 downwards: -0.37 of six legs."""
    fitness = [0.55, 0.53, 0.58, 0.54, 0.57, 0.56][::-1]
    words = words_of(*(leg(n, one, 0.4 + n / 100) for n, one in enumerate(fitness)))
    assert words is not None
    assert words.endswith("(rank correlation -0.37).")


def test_why_there_was_no_climb_is_told() -> None:
    vain = TrialRecord(1, "search", "complete", 0.5, leg={"climb": 0}, no_slope="task own: code")
    assert words_of(TrialRecord(0, "baseline", "complete", 0.4), vain) == (
        "No climb: task own: code."
    )
    drawn = TrialRecord(2, "search", "complete", 0.5)
    assert words_of(vain, drawn) == (
        "No climb: task own: code. CMA-ES searched by the fitness alone."
    )
    assert words_of(leg(0, 0.5, 0.4), vain) is None, "one leg was walked"


def test_nothing_is_told_of_what_was_not_climbed() -> None:
    whole = [TrialRecord(0, "baseline", "complete", 0.4), TrialRecord(1, "search", "complete", 0.5)]
    assert words_of(*whole) is None
    assert words_of(*whole, leg(2, None, 0.4, state="failed"), leg(3, 0.5, 0.4)) is None
    few = agreement([leg(n, 0.5, 0.4 + n / 10) for n in range(4)])
    same = agreement([leg(n, 0.5, 0.4 + n / 10) for n in range(6)])
    assert few is not None
    assert same is not None
    assert few.correlation is same.correlation is None, "too few; and one of the two stands still"
