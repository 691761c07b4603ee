"""Workers in Ray actors: they start once, die, are replaced; their errors arrive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from evomerge.errors import TaskError
from evomerge.search.budget import Budget
from evomerge.search.loop import SearchLoop
from evomerge.search.pool import Job, Outcome
from evomerge.search.workers import ATTEMPTS, RayPool, Resources, WorkerError
from tests.search.conftest import AnalyticProblem, make_store
from tests.search.scripted import Die, Height, Make, Refuse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster that happens to run on this machine; its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[RayPool]:
    pool = RayPool(Make(folder), Resources(workers=2))
    yield pool
    pool.close()


def run_all(pool: RayPool, jobs: list[Job]) -> dict[int | str, Outcome]:
    waiting, outcomes = list(jobs), {}
    deadline = time.monotonic() + 120
    while len(outcomes) < len(jobs) and time.monotonic() < deadline:
        while waiting and (pool.busy < pool.size or pool.queues):
            pool.submit(waiting.pop(0))
        outcomes.update({outcome.job.key: outcome for outcome in pool.wait(1.0)})
    return outcomes


def job(key: int, part: str = "search") -> Job:
    return Job(key, "{weight/0: 0.7}", part)


def test_evaluators_are_built_once_per_worker(pool: RayPool, folder: Path) -> None:
    outcomes = run_all(pool, [job(i) for i in range(12)])
    assert all(outcome.scores for outcome in outcomes.values())
    assert len({path.name.split("-")[1] for path in folder.glob("started-*")}) <= 2


def test_nobody_waits_for_the_slowest(pool: RayPool, folder: Path) -> None:
    began = time.monotonic()
    pool.submit(job(100, "slow"))
    done: list[int | str] = []
    number = 10_000
    while 100 not in done and time.monotonic() - began < 60:
        if pool.busy < pool.size:
            pool.submit(job(number))
            number += 1
        done += [outcome.job.key for outcome in pool.wait(1.0)]
    assert done[-1] == 100
    assert len(done) > 10, "the other worker went on meanwhile"
    run_all(pool, [])
    while pool.busy:
        pool.wait(1.0)


def test_worker_that_dies_is_replaced_and_its_job_run_again(pool: RayPool, folder: Path) -> None:
    outcomes = run_all(pool, [job(200, "die-once"), job(201), job(202)])
    assert outcomes[200].failure is None
    assert outcomes[200].scores is not None
    assert len(list(folder.glob("ran-200-*"))) == 2
    assert outcomes[201].scores is not None


def test_job_that_kills_every_worker_is_given_up(pool: RayPool, folder: Path) -> None:
    outcomes = run_all(pool, [job(300, "die"), job(301)])
    assert f"killed its worker {ATTEMPTS} times" in (outcomes[300].failure or "")
    assert len(list(folder.glob("ran-300-*"))) == ATTEMPTS
    assert run_all(pool, [job(302)])[302].scores is not None


def test_a_job_behind_one_that_kills_is_not_blamed(pool: RayPool, folder: Path) -> None:
    outcomes = run_all(pool, [job(350, "die"), job(351, "slow"), job(352), job(353)])
    assert "killed its worker" in (outcomes[350].failure or "")
    assert all(outcomes[key].scores for key in (351, 352, 353))
    assert len(list(folder.glob("ran-352-*"))) == 1, "it waited behind the first"


def test_exception_is_the_outcomes_reason(pool: RayPool) -> None:
    outcome = run_all(pool, [job(400, "memory")])[400]
    assert outcome.failure == "out of memory: cannot allocate 16 GiB"
    assert "Traceback" in outcome.detail


def test_worker_with_a_broken_device_is_replaced(pool: RayPool, folder: Path) -> None:
    before = len(list(folder.glob("started-*")))
    outcome = run_all(pool, [job(500, "poison")])[500]
    assert "device-side assert" in (outcome.failure or "")
    assert all(o.scores for o in run_all(pool, [job(501), job(502), job(503)]).values())
    assert len(list(folder.glob("started-*"))) == before + 1


class Heights(AnalyticProblem):
    """The fitness is the height that the scripted evaluator found."""

    def fitness(self, scores: object) -> float:
        assert isinstance(scores, Height)
        return scores.value

    def error(self, scores: object) -> float | None:
        return None


def test_search_survives_dying_workers(pool: RayPool, tmp_path: Path) -> None:
    problem = Heights()
    store = make_store(tmp_path / "study.db", problem)
    loop = SearchLoop(store, problem, Budget(20))
    pids = iter(sorted(pool.processes))

    def victim() -> int:
        return next(pids)

    class Killing:
        """The pool, with a worker killed under two of the trials."""

        size = pool.size

        @property
        def busy(self) -> int:
            return pool.busy

        @property
        def queues(self) -> bool:
            return pool.queues

        def submit(self, submitted: Job) -> None:
            pool.submit(submitted)
            if submitted.key in (7, 13):
                os.kill(victim(), signal.SIGKILL)

        def wait(self, timeout: float) -> list[Outcome]:
            return pool.wait(timeout)

        def close(self) -> None:
            return None

    progress = loop.run(Killing())
    assert progress.finished == 20
    assert [record.state for record in store.records()] == ["complete"] * 20


def test_input_that_a_worker_refuses_arrives_as_it_is(pool: RayPool) -> None:
    pool.close()
    with pytest.raises(TaskError, match=r"space.yaml:3: .*'arc_esay' is unknown"):
        RayPool(Refuse(), Resources(workers=1))


def test_worker_that_dies_while_it_starts_is_told() -> None:
    with pytest.raises(WorkerError, match=r"died while it loaded the models.*--workers"):
        RayPool(Die(), Resources(workers=1))


def test_cluster_that_is_not_there_is_told() -> None:
    with pytest.raises(WorkerError, match=r"127.0.0.1:1"):
        RayPool(Refuse(), Resources(workers=1), address="127.0.0.1:1")


def test_more_gpus_than_there_are_is_told_at_once(cluster: str) -> None:
    """On this machine, though a cluster runs there that nobody has named."""
    import torch

    count = torch.cuda.device_count()
    with pytest.raises(WorkerError, match=rf"{count + 1} GPU; this machine has {count}"):
        RayPool(Refuse(), Resources(workers=1, gpus=count + 1))
