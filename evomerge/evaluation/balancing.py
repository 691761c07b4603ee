"""Items that stand for many: those on which known models score as they do on the whole pool.

Candidates are blends of models whose scores are known, so that a subset which misjudges these
models misjudges the candidates too. Of many random subsets the one is taken on which the known
models' scores are nearest to those on the pool (rejective sampling: Fuller 2009, "Some design
properties of a rejective sampling procedure"; in experiments rerandomisation, Morgan & Rubin 2012,
with their Mahalanobis distance). Every item counts the same, so a score on the subset stays
lm-eval's score.

Not the items on which the models differ most: their scores rank candidates worse than those of
random items do (``studies/LOG.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.evaluation.choosing import DocIds, generator
from evomerge.evaluation.scores import Scores
from evomerge.evaluation.spec import MetricName

_DRAWS = 1000
_BLOCK_VALUES = 1 << 21
"""So many random numbers at a time: 16 MB."""


def choose_balanced(
    pool: Sequence[Scores],
    counts: Mapping[str, int],
    metrics: Mapping[str, Sequence[MetricName]],
    seed: int,
) -> dict[str, DocIds]:
    """The documents of each leaf task that stand for its pool.

    Args:
        pool: known models' scores on the pool, at least one.
        counts: leaf task → how many of its documents to choose; at most the pool's.
        metrics: leaf task → the metrics that are to be balanced.
        seed: of the random subsets.

    Returns:
        leaf task → positions of its documents, ascending.
    """
    chosen = {}
    for name, count in counts.items():
        tasks = [scores.task(name) for scores in pool]
        rows = [
            _as_numbers(task.items[metric])
            for metric in metrics[name]
            for task in tasks
            if metric in task.items
        ]
        documents = np.array(tasks[0].doc_ids)
        known = np.stack(rows) if rows else np.zeros((1, len(documents)))
        places = balanced(known, count, generator(seed, f"balanced {name}"))
        chosen[name] = tuple(sorted(int(document) for document in documents[places]))
    return chosen


def balanced(known: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Of many random subsets the one whose means are nearest to those of the pool.

    Args:
        known: ``[scores, items]``, what is known of each item of the pool.
        count: how many items, 1 to the pool's size.
        random: draws the subsets.

    Returns:
        ``[count]`` the places of the items.
    """
    size = known.shape[1]
    white = _whitened(known - known.mean(axis=1, keepdims=True))
    block = max(1, _BLOCK_VALUES // size)
    best, nearest = np.arange(count), np.inf
    for start in range(0, _DRAWS, block):
        keys = random.random((min(block, _DRAWS - start), size))
        subsets = np.argpartition(keys, count - 1, axis=1)[:, :count]
        distances = np.square(white[:, subsets].mean(axis=2)).sum(axis=0)
        if distances.min() < nearest:
            best, nearest = subsets[distances.argmin()], distances.min()
    return best


def _whitened(centred: np.ndarray) -> np.ndarray:
    """Linear combinations of the rows that vary by 1 and not together; equal rows count once."""
    values, directions = np.linalg.eigh(centred @ centred.T / centred.shape[1])
    kept = values > 1e-9 * max(values.max(), 1e-30)
    return np.asarray((directions[:, kept] / np.sqrt(values[kept])).T @ centred)


def _as_numbers(items: np.ndarray) -> np.ndarray:
    """One number per item: of a pair the likelihood; what was not reported is as the rest is."""
    values = items[:, 0] if items.ndim == 2 else items
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    return np.where(np.isfinite(values), values, np.nanmean(values[np.isfinite(values)]))
