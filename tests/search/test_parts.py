"""Parts of the items that are not apart: told before anything is searched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.errors import InputError
from evomerge.search.preparation import Preparation, prepare
from evomerge.space import load_space
from tests.evaluation.worlds import TaskFolder, add_writing, metrics
from tests.merging.worlds import WORDS, Family, write_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return write_family(tmp_path_factory.mktemp("models"), num_hidden_layers=2)


def prepared(
    tmp_path: Path,
    family: Family,
    other: int,
    tasks: list[str],
    judged: Sequence[str] = (),
    holdout: int = 20,
    metric: str = "acc",
    broken: Collection[int] = (),
) -> Preparation:
    """``words`` has 60 documents; ``other`` those of the draw that begins there.

    ``judged`` are tasks that judge answers with code of their own, which has no slope; ``broken``
    are documents of which no prompt can be made.
    """
    draw = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(draw.choice(WORDS[3:], 6)),
            "label": int(draw.integers(4)),
            "whole": int(place not in broken),
        }
        for place in range(200)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir(exist_ok=True)
    for name, first in (("words", 0), ("other", other)):
        TaskFolder(folder).add(
            name,
            {"test": rows[first : first + 60]},
            output_type="multiple_choice",
            doc_to_text="{{text if 1 / whole else text}}",
            doc_to_target="label",
            doc_to_choice=["w3", "w5 w1", "w9 w2", "w20"],
            metric_list=metrics(metric),
        )
    (folder / "own.py").write_text("def judge(doc, results):\n    return {'acc': 1.0}\n")
    for name in judged:
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("process_results: !function own.judge\n")
    more = {"holdout_task": "other"} if len(tasks) == 1 else {}
    requests = [{"task": task, "items": 20, "metric": metric, **more} for task in tasks]
    keys = {"include_path": [str(folder)], "tasks": requests, "holdout": {"items": holdout}}
    return prepare(load_space(written(tmp_path, family, **keys)))


def written(tmp_path: Path, family: Family, **keys: object) -> Path:
    """A space's file."""
    data = {
        "base_model": str(family.base),
        "models": [str(path) for path in family.tuned],
        "merge_method": "task_arithmetic",
        "dtype": "float32",
        "genome": {"weight": [0.0, 1.0]},
        **keys,
    }
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(data))
    return space


def told(preparation: Preparation) -> list[str]:
    return [note for note in preparation.notes if "also among the search items" in note]


def test_a_holdout_task_of_the_same_documents_is_told(tmp_path: Path, family: Family) -> None:
    preparation = prepared(tmp_path, family, 0, ["words"])
    (note,) = told(preparation)
    again = int(note.split(" of the 20 held-out items are also")[0])
    assert preparation.holdout_items is not None
    searched = set(map(repr, preparation.search_items.queries))
    held_out = list(map(repr, preparation.holdout_items.queries))
    alone = sum(query in searched for query in held_out) / 4  # choices
    assert 0 < alone < again, "those that the climb learns from count too"
    assert "holdout_task" in note


def test_two_tasks_of_the_same_documents_are_told(tmp_path: Path, family: Family) -> None:
    notes = told(prepared(tmp_path, family, 0, ["words", "other"]))
    assert sum("held-out items are also" in note for note in notes) == 1


@pytest.mark.parametrize("tasks", [["words"], ["words", "other"]])
def test_nothing_is_told_of_other_documents(
    tmp_path: Path, family: Family, tasks: list[str]
) -> None:
    preparation = prepared(tmp_path, family, 100, tasks)
    assert preparation.holdout_items is not None
    assert told(preparation) == []


@pytest.mark.parametrize("metric", ["gold_loglikelihood", "exact_match,whole"])
@pytest.mark.parametrize("sampler", ["ascent", "cmaes"])
def test_written_answers_are_told_apart_by_what_is_asked(
    tmp_path: Path, family: Family, metric: str, sampler: str
) -> None:
    """A smooth metric asks for the gold solution besides, which is no question of the task."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    name = add_writing(TaskFolder(folder), "writing", 60)
    tasks = [{"task": name, "items": 15, "metric": metric}]
    more = {"include_path": [str(folder)], "tasks": tasks, "holdout": {"items": 15}}
    preparation = prepare(
        load_space(written(tmp_path, family, **more, search={"sampler": sampler}))
    )
    assert len(preparation.holdout_items or ()) == len(preparation.race_items or ()) == 15
    notes = told(preparation)  # the few prompts there are come again and again
    assert len(notes) == 2
    assert all(("the climb learns from" in one) == (sampler == "ascent") for one in notes)


def test_tasks_that_the_slope_does_not_see_are_told(tmp_path: Path, family: Family) -> None:
    notes = prepared(tmp_path, family, 100, ["words", "other"], judged=["other"]).notes
    (note,) = [one for one in notes if "slope" in one]
    assert note.startswith("the slope is taken without task other: ")
    assert "code of its own" in note


def test_a_fitness_without_a_slope_is_told(tmp_path: Path, family: Family) -> None:
    notes = prepared(tmp_path, family, 100, ["words"], judged=["words"]).notes
    (note,) = [one for one in notes if "slope" in one]
    assert note.startswith("the fitness has no slope: task words: ")
    assert note.endswith("CMA-ES searches by the fitness alone")


def test_too_many_held_out_items_are_refused_where_they_are_asked_for(
    tmp_path: Path, family: Family
) -> None:
    """Of a holdout_task all documents may be drawn, and no more."""
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, family, 100, ["words"], holdout=61)
    (fault,) = caught.value.faults
    assert "holdout.items" in fault.place
    assert "task other: 61 items, but there are 60 documents" in fault.problem


def test_choices_that_are_asked_without_a_context_are_no_questions(
    tmp_path: Path, family: Family
) -> None:
    """acc_mutual_info asks for each choice alone as well: the same in every item."""
    preparation = prepared(tmp_path, family, 100, ["words"], metric="acc_mutual_info")
    assert preparation.holdout_items is not None
    assert len(preparation.holdout_items.queries) == 2 * 4 * 20
    assert told(preparation) == []


def test_where_the_climbs_own_items_cannot_be_built_the_search_goes_on(
    tmp_path: Path, family: Family
) -> None:
    """Documents that only the climb would use are no reason to refuse a space."""
    whole = prepared(tmp_path, family, 100, ["words"])
    assert not any("slope" in note for note in whole.notes)
    assert whole.race_items is not None
    parts = (whole.search_items, whole.race_items)
    used = {place for part in parts for place in part.samples["words"]}
    assert len(used) == 40
    spare = set(range(1, 60)) - used  # lm-eval tries the first one as it loads a task
    notes = prepared(tmp_path, family, 100, ["words"], broken=spare).notes
    (note,) = [one for one in notes if "slope" in one]
    assert note.startswith("no slope can be taken: task words: requests could not be built: ")
    assert note.endswith("CMA-ES searches by the fitness alone")
