"""The durable study: what was tried, what came of it, and what is still to be done.

Optuna's storage is the only truth. Everything that is needed to go on, to report and to export
stands in it, so that a study kept elsewhere (``--storage``) needs nothing else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from evomerge.errors import StudyError
from evomerge.search.driven import DrivenStudy, record_of
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.seeded import BASELINE, KIND
from evomerge.search.tables import TrialTables, engine_options, reading, writing


class StudyStore:
    """A study in an Optuna storage. Open one with :func:`open_store` or :func:`create_store`.

    One driver searches a study, so that what it asks and tells is kept in memory, where the sampler
    looks, and only written to the storage: each call by itself, or those of a :meth:`batch`
    together.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, url: str) -> None:
        self._study, self._storage, self.url = study, storage, url
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._sampler: BaseSampler | None = None
        self._driven: DrivenStudy | None = None
        self._batches = 0

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study_name

    @property
    def facts(self) -> dict[str, Any]:
        """What was recorded of the study as a whole."""
        return dict(self._study.user_attrs)

    def remember(self, **facts: Any) -> None:
        """Record facts of the study as a whole (JSON values)."""
        with writing(self.url):
            for key, value in facts.items():
                self._study.set_user_attr(key, value)

    def use(self, sampler: BaseSampler) -> None:
        """Draw candidates from this sampler from now on."""
        self._sampler = sampler
        self._forget()

    def records(self) -> list[TrialRecord]:
        """All the trials, by number."""
        if self._driven is not None:
            return [record_of(trial) for trial in self._driven.trials()]
        with reading(self.url):
            return [record_of(trial) for trial in self._study.get_trials(deepcopy=False)]

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write what is asked and told meanwhile at the end, all of it or nothing.

        Raises:
            StudyError: it cannot be written; :meth:`save` tries again.
        """
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            self.save()

    def save(self) -> None:
        """Write what was asked and told and is not written yet; nothing within a batch."""
        if self._driven is not None and not self._batches:
            with writing(self.url):
                self._driven.save()

    def _searched(self) -> DrivenStudy:
        if self._driven is None:
            with reading(self.url):
                trials = self._study.get_trials(deepcopy=False)
                unfinished = {
                    self._identity(trial.number): trial
                    for trial in trials
                    if not trial.state.is_finished()
                }
                tables = TrialTables(self.url, self._study_id, unfinished)
            self._driven = DrivenStudy(trials, tables, self._sampler, len(self._study.directions))
        return self._driven

    def _forget(self) -> None:
        if self._driven is not None:
            self._driven.close()
            self._driven = None

    def plan(self, baselines: Iterable[PlannedBaseline]) -> None:
        """Queue the baselines that the study does not have yet, unless it has searched already.

        What an earlier version began goes on as it was: a baseline that came later would move the
        start of what was drawn. Those that are still to be run name the models where they lie now.
        """
        records = self.records()
        known = {record.label: record for record in records if record.kind == BASELINE}
        searched = any(record.kind != BASELINE for record in records)
        with writing(self.url):
            for baseline in baselines:
                record = known.get(baseline.label)
                moved = record is not None and record.recipe != baseline.recipe
                if record is not None and moved and not record.finished:
                    self._annotate(record.number, "recipe", baseline.recipe)
                if record is not None or searched:
                    continue
                attributes = {
                    KIND: BASELINE,
                    "label": baseline.label,
                    "recipe": baseline.recipe,
                    "in_genome": baseline.genome is not None,
                }
                self._study.enqueue_trial(dict(baseline.genome or {}), user_attrs=attributes)
        self._forget()

    def _annotate(self, number: int, key: str, value: str) -> None:
        self._storage.set_trial_user_attr(self._identity(number), key, value)

    def _identity(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def ask(self, distributions: Mapping[str, FloatDistribution]) -> TrialRecord:
        """The next trial: a queued baseline if there is one, else a draw of the sampler.

        Raises:
            StudyError: the storage cannot be written.
        """
        record = self._searched().drawn(None, distributions)
        self.save()
        return record

    def foresees(self) -> bool:
        """Whether the next draw is the same whatever the running trials come to."""
        return self._searched().foresees()

    def climbs(self) -> bool:
        """Whether the next draw takes a leg of a climb, which costs its slopes too."""
        return self._searched().climbs()

    def mean(self) -> dict[str, float] | None:
        """The mean of the sampler's distribution, gene by gene; None where it keeps none."""
        return self._searched().mean()

    def interrupted(self, distributions: Mapping[str, FloatDistribution]) -> list[TrialRecord]:
        """The trials that an earlier run had begun: to be run again, under their own numbers.

        Where the genome was still being written, the rest is drawn now: as every draw hangs on the
        seed, the trial's number and the results before it, the trial is the one that it would have
        been.
        """
        driven = self._searched()
        begun = [trial.number for trial in driven.trials((TrialState.RUNNING,))]
        records = [driven.drawn(number, distributions) for number in begun]
        self.save()
        return records

    def tell(self, number: int, fitness: float, **facts: Any) -> None:
        """Record a finished trial: a trial is either whole in the storage or not told.

        Args:
            number: the trial's.
            fitness: the value to maximise, finite.
            facts: ``recipe``, ``scores``, ``seconds``, ``items``: what :class:`TrialRecord` keeps.
                With ``estimate``, which is then the fitness, the trial was pruned; ``values``
                are the goals, where there are several, and ``constraints`` what the scores lack of
                their floors.

        Raises:
            StudyError: the storage cannot be written.
        """
        self._searched().tell(number, facts, fitness)
        self.save()

    def note(self, number: int, **facts: Any) -> None:
        """Record facts of a trial that was begun (JSON values).

        Raises:
            StudyError: the storage cannot be written.
        """
        self._searched().note(number, **facts)
        self.save()

    def constrain(self, constraints: Mapping[int, Mapping[str, float]]) -> None:
        """Record what the scores of finished trials lack of floors that were not known then.

        Args:
            constraints: trial number → floor → what it lacks; 0 or less keeps it.

        Raises:
            StudyError: the storage cannot be written.
        """
        self._searched().constrain(constraints)
        self.save()

    def fail(self, number: int, reason: str, **facts: Any) -> None:
        """Record a trial as failed, with its reason.

        Raises:
            StudyError: the storage cannot be written.
        """
        self._searched().tell(number, {**facts, "failure": reason})
        self.save()


def create_store(name: str, url: str, goals: Sequence[str] = ("fitness",)) -> StudyStore:
    """Open a study for a search, creating it where there is none.

    Args:
        name: the study's.
        url: the storage's.
        goals: names of the numbers that a trial of a new study is told with, each to be maximised.

    Raises:
        StudyError: the storage cannot be opened or written.
    """
    storage = _storage(url)
    with writing(url):
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize"] * len(goals),
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        if len(goals) > 1 and study.metric_names is None and not study.get_trials(deepcopy=False):
            study.set_metric_names(list(goals))
    return StudyStore(study, storage, url)


def open_store(name: str, url: str) -> StudyStore:
    """Open a study that exists.

    Raises:
        StudyError: there is no such study; the message lists the storage's studies.
    """
    _refuse_missing_file(url)
    storage = _storage(url)
    with reading(url):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise StudyError.at(url, f"holds no study {name!r}; it has: {known}")
        study = optuna.load_study(study_name=name, storage=storage)
    return StudyStore(study, storage, url)


def _refuse_missing_file(url: str) -> None:
    # SQLite would make an empty database of a misspelt name.
    with reading(url):
        place = make_url(url)
    file = place.database
    named = file and not file.startswith((":memory:", "file:"))
    if place.get_backend_name() == "sqlite" and named and not Path(str(file)).is_file():
        raise StudyError.at(url, "there is no such file")


def rename_study(name: str, to: str, url: str) -> None:
    """Give a study another name in its storage; its trials go with it."""
    storage = _storage(url)
    with writing(url):
        optuna.copy_study(
            from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=to
        )
        optuna.delete_study(study_name=name, storage=storage)


def delete_study(name: str, url: str) -> None:
    """Remove a study from its storage."""
    with writing(url):
        optuna.delete_study(study_name=name, storage=_storage(url))


def study_names(url: str) -> list[str]:
    """The names of a storage's studies, sorted."""
    with reading(url):
        return sorted(optuna.get_all_study_names(_storage(url)))


def has_study(name: str, url: str) -> bool:
    """Whether the storage has a study of this name."""
    return name in study_names(url)


def distributions(genes: Sequence[Any]) -> dict[str, FloatDistribution]:
    """Optuna's distributions of the genes, by name."""
    return {gene.name: FloatDistribution(gene.low, gene.high) for gene in genes}


def quiet() -> None:
    """Keep Optuna's own log lines out of our output."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # All that this one says is that the GP is slower without greenlet, when it is imported.
    logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)


def _storage(url: str) -> RDBStorage:
    with reading(url):
        return RDBStorage(url, engine_kwargs=engine_options(url))
