"""``order: balanced``: chosen once, remembered, never what is held out."""

from __future__ import annotations

import pytest

import evomerge
from tests.cli.worlds import World

HELD = {"items": 200}


def test_balanced_items_are_part_of_the_study(world: World) -> None:
    from evomerge.errors import StudyError

    add, most = "quickstart_add", "quickstart_most"
    tasks = [
        {"task": add, "items": 15, "order": "balanced"},
        {"task": most, "items": 10, "metric": "gold_prob"},
    ]
    space = world.space(tasks=tasks, holdout=HELD)
    study = evomerge.search(space, trials=5).study
    items = {name: score.doc_ids for name, score in study.item_scores[4].tasks.items()}
    assert list(items[add]) == study.facts["balanced_items"][add]
    assert (len(items[add]), len(items[most])) == (15, 10)
    # Another choice would make scores that cannot be compared: the study keeps to its own.
    again = evomerge.search(space, trials=6).study
    assert again.item_scores[5].tasks[add].doc_ids == items[add]
    assert list(again.facts["balanced_items"]) == [add]
    random = world.space("random", tasks=[{**tasks[0], "order": "random"}, tasks[1]], holdout=HELD)
    with pytest.raises(StudyError, match="order"):
        evomerge.search(random, trials=6, study="small")
