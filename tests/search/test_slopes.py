"""The slope along every gene, as a worker takes it: against differences of the smooth fitness."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.evaluation import MetricName
from evomerge.search.baselines import decode
from evomerge.search.climbing import Place, Walk, genome_at
from evomerge.search.evaluator import CandidateEvaluator
from evomerge.search.pool import Evaluator, Job, Outcome
from evomerge.search.preparation import Preparation, prepare
from evomerge.search.slopes import STEP
from evomerge.space import load_space
from tests.evaluation.worlds import TaskFolder, metrics
from tests.merging.worlds import WORDS, Family, write_family

DENSE = {"density": [0.2, 0.9]}
SMALL = ("blocks and filters", "shared", "whole")
"""Cases with masks: in tensors of a few hundred elements each element that comes or goes shows."""
CASES: dict[str, dict[str, Any]] = {
    "smooth": {"genome": {"layers": {"groups": 3, "smooth": True}, "weight": [-0.5, 1.5]}},
    "scaled": {"genome": {"weight": [-0.5, 1.5], "lambda": [0.5, 2.0]}},
    "blocks": {"genome": {"layers": {"groups": 3}, "filters": ["mlp"], "weight": [-0.5, 1.5]}},
    "blocks and filters": {
        "merge_method": "dare_ties",
        "genome": {"layers": {"groups": 2}, "filters": ["mlp"], "weight": [0.0, 1.0], **DENSE},
    },
    "shared": {
        "merge_method": "della_linear",
        "genome": {"weight": [0.2, 1.0], **DENSE, "epsilon": {"share": [0, 1]}, "lambda": [0, 2]},
    },
    "whole": {
        "merge_method": "ties",
        "variant": "paper",
        "genome": {**DENSE, "lambda": [0, 2]},
    },
    "normalised": {"merge_method": "linear", "genome": {"weight": [0.1, 1.0]}},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    torch.set_num_threads(1)
    return write_family(tmp_path_factory.mktemp("models"), num_hidden_layers=3)


def prepared(tmp_path: Path, family: Family, **changes: Any) -> Preparation:
    tasks = tmp_path / "tasks"
    tasks.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    rows = [
        {"text": " ".join(draw.choice(WORDS[3:], 5)), "label": int(draw.integers(4))}
        for _ in range(60)
    ]
    TaskFolder(tasks).add(
        "words",
        {"test": rows},
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_target="label",
        doc_to_choice=["w3", "w5 w1", "w9 w2", "w20"],
        metric_list=metrics("acc"),
    )
    data = {
        "base_model": str(family.base),
        "models": [str(path) for path in family.tuned],
        "merge_method": "task_arithmetic",
        "dtype": "float32",
        "include_path": [str(tasks)],
        "tasks": [{"task": "words", "metric": "gold_prob", "items": 40}],
        "search": {"sampler": "ascent"},
        **changes,
    }
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(data))
    return prepare(load_space(path), hold_out="holdout" in data)


def middle(preparation: Preparation) -> dict[str, float]:
    """A point inside the bounds, every gene at another place."""
    return {
        gene.name: gene.low + (gene.high - gene.low) * (0.3 + 0.4 * number / 10 % 0.4)
        for number, gene in enumerate(preparation.genes)
    }


def worker_of(preparation: Preparation) -> CandidateEvaluator:
    worker = pickle.loads(pickle.dumps(preparation.plan))()
    assert isinstance(worker, CandidateEvaluator)
    return worker


def leg_at(worker: Evaluator, preparation: Preparation, genome: Mapping[str, float]) -> Outcome:
    """A leg of the climb that begins at a genome."""
    ranges = {gene.name: (gene.low, gene.high) for gene in preparation.genes}
    shares = [(genome[name] - low) / (high - low) for name, (low, high) in ranges.items()]
    place = Place.start(np.array(shares))
    recipe = decode(preparation.space, genome, preparation.num_layers)
    return worker.run(Job(0, recipe, leg=place.to_json()))


def smooth_at(worker: Evaluator, preparation: Preparation, genome: Mapping[str, float]) -> float:
    """The smooth fitness, from the items' scores."""
    scores = worker.run(Job(0, decode(preparation.space, genome, preparation.num_layers))).scores
    assert scores is not None
    return scores.value("words", MetricName("gold_prob", "none")).value


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_those_of_the_smooth_fitness(case: str, tmp_path: Path, family: Family) -> None:
    """On average over the blocks, which cut the search items where there are no others."""
    preparation = prepared(tmp_path, family, **CASES[case])
    worker = worker_of(preparation)
    here = middle(preparation)
    taken = worker.slopes()
    assert taken.blocks == 4
    assert list(taken.ranges) == [gene.name for gene in preparation.genes]
    found = [taken.at(here, block) for block in range(4)]
    assert all(list(one.genes) == [gene.name for gene in preparation.genes] for one in found)
    value = np.mean([one.value for one in found])
    assert value == pytest.approx(smooth_at(worker, preparation, here), rel=1e-5)
    slopes, differences = [], []
    for gene in list(preparation.genes)[:: max(1, len(preparation.genes) // 4)]:
        half = STEP * (gene.high - gene.low)
        ends = [
            smooth_at(worker, preparation, {**here, gene.name: here[gene.name] + sign * half})
            for sign in (1, -1)
        ]
        differences.append((ends[0] - ends[1]) / (2 * half))
        slopes.append(np.mean([one.genes[gene.name] for one in found]))
    largest = max(map(abs, differences))
    assert largest > 1e-3, "a flat fitness shows nothing"
    off = 0.15 if case in SMALL else 0.005
    assert slopes == pytest.approx(differences, rel=off, abs=off * largest)


def test_a_leg_raises_the_smooth_fitness(tmp_path: Path, family: Family) -> None:
    preparation = prepared(tmp_path, family, **CASES["smooth"])
    worker = worker_of(preparation)
    outcome = leg_at(worker, preparation, middle(preparation))
    assert outcome.walk is not None
    assert outcome.items == 4 * 40, "a slope counts as three times its items"
    walked = Walk.from_json(outcome.walk)
    assert (walked.steps, walked.end.steps) == (4, 4)
    ranges = {gene.name: (gene.low, gene.high) for gene in preparation.genes}
    ends = [genome_at(ranges, point) for point in (walked.end.point, walked.mean)]
    before, end, mean = (
        smooth_at(worker, preparation, one) for one in (middle(preparation), *ends)
    )
    assert before < mean < end
    assert before < walked.smooth < end
    again = leg_at(worker, preparation, middle(preparation))
    assert again.walk == outcome.walk, "nothing is left of the first one"


LEG = """
import json, sys
from pathlib import Path
import torch
from evomerge.search.preparation import prepare
from evomerge.space import load_space
from tests.search.test_slopes import leg_at, middle, worker_of
torch.set_num_threads(1)
preparation = prepare(load_space(Path(sys.argv[1])), hold_out=False)
print(json.dumps(leg_at(worker_of(preparation), preparation, middle(preparation)).walk))
"""


def test_a_leg_is_the_same_in_every_process(tmp_path: Path, family: Family) -> None:
    """To the last bit, whatever order Python's sets have there."""
    prepared(tmp_path, family, **CASES["shared"])
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LEG, str(tmp_path / "space.yaml")]
    walks = set()
    for seed in ("1", "2", "3"):
        known = {"PYTHONHASHSEED": seed, "EVOMERGE_COMPILE": "never", "PYTHONPATH": str(root)}
        done = subprocess.run(
            command, env={**os.environ, **known}, capture_output=True, text=True, check=True
        )
        walks.add(done.stdout.splitlines()[-1])
    assert len(walks) == 1
    assert json.loads(walks.pop())["steps"] == 4


def test_legs_take_items_that_no_other_part_uses(tmp_path: Path, family: Family) -> None:
    """Of 60 documents 10 are searched on, 10 raced and 15 held out; 25 more teach the climb."""
    tasks = [{"task": "words", "metric": "gold_prob", "items": 10}]
    preparation = prepared(tmp_path, family, tasks=tasks, holdout={"items": 15})
    worker = worker_of(preparation)
    assert worker.slopes().blocks == 4 * 35 // 10
    outcome = leg_at(worker, preparation, middle(preparation))
    assert outcome.items == 4 * 10, "a leg's blocks hold as many items as a trial scores"


def test_bounds_methods_and_stages(tmp_path: Path, family: Family) -> None:
    """One-sided at a bound; the gene that chooses the method has no slope; inert genes have 0."""
    changes = {"merge_method": ["task_arithmetic", "ties"], "genome": DENSE}
    preparation = prepared(tmp_path, family, **changes)
    here = {gene.name: gene.low for gene in preparation.genes}
    genes = worker_of(preparation).slopes().at(here).genes
    assert genes.keys() == here.keys() - {"merge_method"}
    inert = [value for name, value in genes.items() if name.startswith("density")]
    assert inert == [0.0] * 3, "task arithmetic reads no density"
    assert all(value for name, value in genes.items() if name.startswith("weight"))


def test_scores_are_kept_where_no_slope_can_be_had(
    tmp_path: Path, family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    preparation = prepared(tmp_path, family, tasks=[{"task": "words", "items": 40}])
    file = tmp_path / "tasks" / "words.yaml"
    file.write_text(file.read_text() + "process_results: !function own.judge\n")
    own = "def judge(doc, results):\n    return {'acc': float(results[0][0] > results[1][0])}\n"
    (tmp_path / "tasks" / "own.py").write_text(own)
    with caplog.at_level(logging.WARNING):
        outcome = leg_at(worker_of(preparation), preparation, middle(preparation))
    assert outcome.scores is not None
    assert (outcome.walk, outcome.items) == (None, 40)
    assert "code of its own" in caplog.text
    assert outcome.no_slope is not None
    assert "code of its own" in outcome.no_slope


def test_scores_are_kept_whatever_a_leg_runs_into(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("2 GiB more are wanted")

    preparation = prepared(tmp_path, family)
    worker = worker_of(preparation)
    monkeypatch.setattr("evomerge.merging.pullback._dot", never)
    outcome = leg_at(worker, preparation, middle(preparation))
    assert outcome.scores is not None
    assert (outcome.walk, outcome.no_slope) == (None, "out of memory: 2 GiB more are wanted")
    monkeypatch.undo()
    assert leg_at(worker, preparation, middle(preparation)).walk is not None


def test_a_slope_that_is_no_number_is_no_step(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation = prepared(
        tmp_path, family, merge_method="ties", genome={"weight": [0.1, 1.0], "density": 0.5}
    )
    worker, at = worker_of(preparation), middle(preparation)
    numbers = iter([math.inf, -math.inf, math.nan] * 1000)
    monkeypatch.setattr("evomerge.merging.pullback._dot", lambda *_: next(numbers))
    outcome = leg_at(worker, preparation, at)
    assert outcome.scores is not None
    assert outcome.walk is None
    assert outcome.no_slope is not None
    assert re.fullmatch(r"the slope along weight/\w+ is nan, no finite number", outcome.no_slope)


def test_a_model_in_bfloat16(tmp_path: Path, family: Family) -> None:
    """Its slopes are those of the float32 model, to its own rounding."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        preparation = prepared(tmp_path, family, dtype=dtype)
        taken = worker_of(preparation).slopes()
        slopes = [taken.at(middle(preparation), block).genes for block in range(taken.blocks)]
        found[dtype] = np.mean([list(one.values()) for one in slopes], axis=0)
    error = np.linalg.norm(found["bfloat16"] - found["float32"])
    assert error < 0.1 * np.linalg.norm(found["float32"])
