"""Every trial's item scores: kept whatever dies, and read back as they were."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from evomerge.errors import StudyError
from evomerge.evaluation import MetricName, Scores, TaskRequest, TaskScore, Value, compare
from evomerge.search.budget import Budget
from evomerge.search.itemscores import ItemLog, ItemScores, item_log, log_key
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import LocalPool
from evomerge.search.storage import StudyStore, create_store
from tests.search.conftest import AnalyticEvaluator, AnalyticProblem, failing, make_store
from tests.search.landscapes import sphere

ACC, PROB, BITS = (MetricName(name, "none") for name in ("acc", "gold_prob", "bits_per_byte"))


def scores_of(seed: int, items: int = 13) -> Scores:
    """A task with one metric of each kind, and a group over it."""
    rng = np.random.default_rng(seed)
    right = rng.integers(2, size=items).astype(float)
    prob = rng.random(items).astype(np.float32).astype(float)
    pairs = np.stack([-np.arange(items) - seed, np.arange(items) + 1.0], axis=1)
    metrics = {
        ACC: Value(float(right.mean()), 0.1 / 3),
        PROB: Value(float(prob.mean()), None),
        BITS: Value(1 / 3, None, False, "bits_per_byte"),
        MetricName("bleu", "none"): Value(7.0, None, True, "bleu"),
    }
    ids = tuple(range(2, 2 + items))
    leaf = TaskScore(metrics, {ACC: right, PROB: prob, BITS: pairs}, ids)
    group = TaskScore({ACC: metrics[ACC]}, shares={ACC: {"leaf": 1.0}})
    return Scores({"leaf": leaf, "group": group})


def assert_same(mine: Scores, theirs: Scores) -> None:
    assert mine.tasks.keys() == theirs.tasks.keys()
    for name, score in mine.tasks.items():
        other = theirs.tasks[name]
        assert (score.metrics, score.doc_ids) == (other.metrics, other.doc_ids)
        assert score.shares == other.shares
        assert score.items.keys() == other.items.keys()
        for metric, values in score.items.items():
            np.testing.assert_array_equal(values, other.items[metric])


def keep(path: Path, trials: dict[int, Scores], study: str = "s") -> None:
    log = ItemLog(path, study)
    for number, scores in trials.items():
        log.append(number, scores)
    log.close()


arrays = st.integers(0, 20).flatmap(
    lambda count: st.one_of(
        npst.arrays(np.float32, count, elements=st.sampled_from([0.0, 1.0])),
        npst.arrays(np.float32, count, elements=st.floats(width=32)),
        npst.arrays(np.float32, (count, 2), elements=st.floats(width=32)),
    )
)


@settings(max_examples=50)
@given(st.lists(st.lists(arrays, min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_was_kept_is_read(
    tmp_path_factory: pytest.TempPathFactory, trials: list[list[np.ndarray]]
) -> None:
    kept = {
        number: Scores(
            {
                f"task {i}": TaskScore(
                    {ACC: Value(number / 3, None if i else 0.25)},
                    {ACC: array.astype(float)} if len(array) else {},
                    tuple(range(len(array))),
                )
                for i, array in enumerate(tasks)
            }
        )
        for number, tasks in enumerate(trials)
    }
    path = tmp_path_factory.mktemp("kept") / "items.scores"
    keep(path, kept)
    found = ItemScores(path, "s")
    assert list(found) == list(kept)
    for number, scores in kept.items():
        assert_same(found[number], scores)


def test_a_bit_for_right_or_wrong_and_four_bytes_for_the_rest(tmp_path: Path) -> None:
    right = np.tile([0.0, 1.0], 500)
    path = tmp_path / "items.scores"
    log = ItemLog(path, "s")
    sizes = []
    for number in range(3):
        items = {ACC: right, PROB: right / 3}
        log.append(
            number,
            Scores({"t": TaskScore(dict.fromkeys(items, Value(0.5)), items, (*range(1000),))}),
        )
        sizes.append(path.stat().st_size)
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] < 125 + 4000 + 60


def test_a_file_cut_at_any_byte_holds_the_whole_trials_before_and_is_gone_on_with(
    tmp_path: Path,
) -> None:
    """What kill -9 leaves of a write is some beginning of it."""
    path, cut = tmp_path / "items.scores", tmp_path / "cut"
    whole = {number: scores_of(number) for number in range(4)}
    ends = [0]
    for number in whole:
        keep(path, {number: whole[number]})
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        survived = sum(end <= length for end in ends[1:])
        assert list(ItemScores(cut, "s")) == list(range(survived))
        if length % 7 == 0:
            keep(cut, {number: whole[number] for number in range(survived, 4)})
            found = ItemScores(cut, "s")
            assert list(found) == list(whole)
            for number, scores in whole.items():
                assert_same(found[number], scores)


def test_a_changed_byte_costs_one_trial(tmp_path: Path) -> None:
    path = tmp_path / "items.scores"
    sizes = []
    for number in range(3):
        keep(path, {number: scores_of(number)})
        sizes.append(path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[(sizes[0] + sizes[1]) // 2] ^= 0xFF
    path.write_bytes(data)
    assert list(ItemScores(path, "s")) == [0, 2]
    keep(path, {3: scores_of(3)})
    assert list(ItemScores(path, "s")) == [0, 2, 3]


def test_a_trial_that_is_run_again_counts_last_and_another_study_s_not(tmp_path: Path) -> None:
    path = tmp_path / "items.scores"
    keep(path, {0: scores_of(0), 1: scores_of(1)}, study="before")
    keep(path, {0: scores_of(5, items=9), 1: scores_of(6, items=9)})
    keep(path, {1: scores_of(7, items=9)})
    found = ItemScores(path, "s")
    assert_same(found[0], scores_of(5, items=9))
    assert_same(found[1], scores_of(7, items=9))
    assert_same(ItemScores(path, "before")[1], scores_of(1))
    with pytest.raises(KeyError):
        found[2]
    assert len(ItemScores(tmp_path / "nothing", "s")) == 0


def test_two_trials_are_compared_as_they_would_have_been_at_once(tmp_path: Path) -> None:
    a, b = scores_of(0, 60), scores_of(1, 60)
    keep(tmp_path / "items.scores", {0: a, 1: b})
    found = ItemScores(tmp_path / "items.scores", "s")
    requests = [TaskRequest("group", ACC), TaskRequest("leaf", PROB), TaskRequest("leaf", BITS)]
    assert compare(found[0], found[1], requests) == compare(a, b, requests)


def search(store: StudyStore, problem: AnalyticProblem, path: Path, trials: int) -> None:
    log = item_log(path, store)
    evaluator = AnalyticEvaluator(failing(sphere(), lambda call: call % 4 == 3))
    loop = SearchLoop(store, problem, Budget(trials), keep=log.append)
    loop.run(LocalPool(lambda: evaluator))
    log.close()


def test_a_search_keeps_every_trial_that_succeeded(
    tmp_path: Path, problem: AnalyticProblem
) -> None:
    path = tmp_path / "items.scores"
    search(make_store(tmp_path / "study.db", problem), problem, path, 6)
    with path.open("r+b") as file:  # the driver dies while it writes
        file.truncate(path.stat().st_size - 3)
    store = make_store(tmp_path / "study.db", problem)
    search(store, problem, path, 14)
    complete = [record for record in store.records() if record.state == "complete"]
    assert 0 < len(complete) < 14
    lost = max(record.number for record in complete if record.number < 6)
    found = ItemScores(path, str(log_key(store)))
    assert list(found) == [record.number for record in complete if record.number != lost]
    for number, scores in found.items():
        assert scores.value("landscape", ACC).value == store.records()[number].fitness


def test_nothing_is_told_that_was_not_kept(
    tmp_path: Path, problem: AnalyticProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "items.scores"
    store = make_store(tmp_path / "study.db", problem)
    search(store, problem, path, 5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StudyError, match=r"items.scores: cannot be .*No space left on device"):
        search(store, problem, path, 9)
    monkeypatch.undo()
    assert sum(record.finished for record in store.records()) == 5
    again = make_store(tmp_path / "study.db", problem)
    search(again, problem, path, 9)
    complete = [r.number for r in again.records() if r.state == "complete"]
    assert list(ItemScores(path, str(log_key(again)))) == complete


def test_a_full_disk_is_told_and_costs_no_trial_but_its_own(tmp_path: Path) -> None:
    """What a disk takes of a write before it is full is no success."""
    path = tmp_path / "items.scores"
    keep(path, {0: scores_of(0), 1: scores_of(1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = ItemLog(path, "s")
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, hard))
    try:
        with pytest.raises(StudyError, match="cannot be written"):
            log.append(2, scores_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append(3, scores_of(3))
    log.close()
    assert list(ItemScores(path, "s")) == [0, 1, 3]
    assert_same(ItemScores(path, "s")[3], scores_of(3))


def test_a_study_knows_its_frames(tmp_path: Path) -> None:
    first = create_store("a", f"sqlite:///{tmp_path}/study.db")
    second = create_store("b", f"sqlite:///{tmp_path}/study.db")
    assert log_key(first) is None
    item_log(tmp_path / "items.scores", first)
    item_log(tmp_path / "items.scores", second)
    assert log_key(first) is not None
    assert log_key(first) == log_key(create_store("a", f"sqlite:///{tmp_path}/study.db"))
    assert log_key(first) != log_key(second)
