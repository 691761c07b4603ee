"""The durable study: what was tried, what came of it, and what is still to be done.

Optuna's storage is the only truth. Everything that is needed to go on, to report and to export
stands in it, so that a study kept elsewhere (``--storage``) needs nothing else.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from evomerge.errors import EvomergeError, Fault, StudyError
from evomerge.search.records import PlannedBaseline, TrialRecord
from evomerge.search.sampler import BASELINE, KIND, SEARCH, TOLD

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class StudyStore:
    """A study in an Optuna storage. Open one with :func:`open_store` or :func:`create_store`."""

    def __init__(self, study: optuna.Study, storage: RDBStorage, url: str) -> None:
        self._study, self._storage, self.url = study, storage, url
        self._study_id = storage.get_study_id_from_name(study.study_name)

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
        with _writing(self.url):
            for key, value in facts.items():
                self._study.set_user_attr(key, value)

    def use(self, sampler: BaseSampler) -> None:
        """Draw candidates from this sampler from now on."""
        self._study.sampler = sampler

    def records(self) -> list[TrialRecord]:
        """All the trials, by number."""
        with _reading(self.url):
            return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def plan(self, baselines: Iterable[PlannedBaseline]) -> None:
        """Queue the baselines that the study does not have yet.

        Those that are still to be run name the models where they lie now.
        """
        known = {record.label: record for record in self.records() if record.kind == BASELINE}
        with _writing(self.url):
            for baseline in baselines:
                record = known.get(baseline.label)
                if record is not None:
                    if not record.finished and record.recipe != baseline.recipe:
                        self._annotate(record.number, {"recipe": baseline.recipe})
                    continue
                attributes = {
                    KIND: BASELINE,
                    "label": baseline.label,
                    "recipe": baseline.recipe,
                    "in_genome": baseline.genome is not None,
                }
                self._study.enqueue_trial(dict(baseline.genome or {}), user_attrs=attributes)

    def ask(self, distributions: Mapping[str, FloatDistribution]) -> TrialRecord:
        """The next trial: a queued baseline if there is one, else a draw of the sampler."""
        with _writing(self.url):
            return self._drawn(self._study.ask(), distributions)

    def _drawn(
        self, trial: optuna.Trial, distributions: Mapping[str, FloatDistribution]
    ) -> TrialRecord:
        attributes = trial.user_attrs
        if attributes.get(KIND) != BASELINE:
            trial.set_user_attr(KIND, SEARCH)
        genome = {
            name: trial.suggest_float(name, gene.low, gene.high)
            for name, gene in distributions.items()
            if attributes.get("in_genome", True)
        }
        return TrialRecord(
            number=trial.number,
            kind=attributes.get(KIND, SEARCH),
            state="running",
            genome=genome,
            label=attributes.get("label"),
            recipe=attributes.get("recipe"),
        )

    def interrupted(self, distributions: Mapping[str, FloatDistribution]) -> list[TrialRecord]:
        """The trials that an earlier run had begun: to be run again, under their own numbers.

        Where the genome was still being written, the rest is drawn now: as every draw hangs on the
        seed, the trial's number and the results before it, the trial is the one that it would have
        been.
        """
        with _writing(self.url):
            states = (TrialState.RUNNING,)
            begun = self._study.get_trials(deepcopy=False, states=states)
            identities = [
                self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
                for trial in begun
            ]
            return [
                self._drawn(optuna.Trial(self._study, identity), distributions)
                for identity in identities
            ]

    def tell(self, number: int, fitness: float, **facts: Any) -> None:
        """Record a finished trial. The value is written last: a trial is either whole or not told.

        Args:
            number: the trial's.
            fitness: the value to maximise.
            facts: ``recipe``, ``scores``, ``seconds``: what :class:`TrialRecord` keeps.
        """
        with _writing(self.url):
            self._annotate(number, {**facts, TOLD: self._next_told()})
            self._study.tell(number, fitness)

    def fail(self, number: int, reason: str, **facts: Any) -> None:
        """Record a trial as failed, with its reason."""
        with _writing(self.url):
            self._annotate(number, {**facts, "failure": reason, TOLD: self._next_told()})
            self._study.tell(number, state=TrialState.FAIL)

    def _next_told(self) -> int:
        trials = self._study.get_trials(deepcopy=False)
        return 1 + max((t.user_attrs.get(TOLD, -1) for t in trials), default=-1)

    def _annotate(self, number: int, facts: Mapping[str, Any]) -> None:
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        for key, value in facts.items():
            self._storage.set_trial_user_attr(trial, key, value)


def create_store(name: str, url: str) -> StudyStore:
    """Open a study for a search, creating it where there is none.

    Raises:
        StudyError: the storage cannot be opened or written.
    """
    storage = _storage(url)
    with _writing(url):
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
    return StudyStore(study, storage, url)


def open_store(name: str, url: str) -> StudyStore:
    """Open a study that exists.

    Raises:
        StudyError: there is no such study; the message lists the storage's studies.
    """
    _refuse_missing_file(url)
    storage = _storage(url)
    with _reading(url):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise StudyError.at(url, f"holds no study {name!r}; it has: {known}")
        study = optuna.load_study(study_name=name, storage=storage)
    return StudyStore(study, storage, url)


def _refuse_missing_file(url: str) -> None:
    # SQLite would make an empty database of a misspelt name.
    with _reading(url):
        place = make_url(url)
    file = place.database
    named = file and not file.startswith((":memory:", "file:"))
    if place.get_backend_name() == "sqlite" and named and not Path(str(file)).is_file():
        raise StudyError.at(url, "there is no such file")


def rename_study(name: str, to: str, url: str) -> None:
    """Give a study another name in its storage; its trials go with it."""
    storage = _storage(url)
    with _writing(url):
        optuna.copy_study(
            from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=to
        )
        optuna.delete_study(study_name=name, storage=storage)


def delete_study(name: str, url: str) -> None:
    """Remove a study from its storage."""
    with _writing(url):
        optuna.delete_study(study_name=name, storage=_storage(url))


def study_names(url: str) -> list[str]:
    """The names of a storage's studies, sorted."""
    with _reading(url):
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


def _storage(url: str) -> RDBStorage:
    # SQLite waits for its lock instead of failing when the dashboard reads.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    with _reading(url):
        return RDBStorage(url, engine_kwargs=options)


class _reading:
    """Turn a storage's errors into ours, naming the storage."""

    verb = "cannot be read"

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        if isinstance(problem, EvomergeError) or problem is None:
            return
        causes = (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError, ImportError)
        if isinstance(problem, causes):
            cause = problem.__cause__ or problem
            text = str(getattr(cause, "orig", None) or cause).splitlines()[0]
            raise StudyError([Fault(self._url, f"{self.verb}: {text}")]) from problem


class _writing(_reading):
    verb = "cannot be written (finished trials are kept; mend it and run the same command to go on)"


def _record(trial: FrozenTrial) -> TrialRecord:
    facts = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        kind=facts.get(KIND, SEARCH),
        state=_STATES[trial.state],
        fitness=trial.values[0] if trial.values else None,
        genome=dict(trial.params),
        label=facts.get("label"),
        recipe=facts.get("recipe"),
        scores=_mapping(facts.get("scores")),
        seconds=_mapping(facts.get("seconds")),
        failure=facts.get("failure"),
        told=facts.get(TOLD),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        return dict(json.loads(value))
    return dict(value or {})
