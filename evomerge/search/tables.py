"""Trials written into Optuna's tables, any number of them in one transaction.

``RDBStorage`` writes every gene and every attribute in a transaction of its own: a trial of 8 genes
was 22 of them and 45 ms of a core, 2 ms more with each further gene, while a worker waited. What is
written here is what it would have written (``tests/search/test_tables.py`` compares); that the
tables are those of the installed Optuna was checked by ``RDBStorage``, which opens them first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, MetaData, Table, create_engine, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from evomerge.errors import EvomergeError, Fault, StudyError

_TABLES = (
    "trials",
    "trial_params",
    "trial_values",
    "trial_user_attributes",
    "trial_system_attributes",
)


@dataclass(frozen=True)
class _Kept:
    """What the tables hold of an unfinished trial: its id, its genes' names, its attributes."""

    identity: int
    genes: frozenset[str] = frozenset()
    user: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)


class TrialTables:
    """The trials of one study, as they lie in a database.

    Args:
        url: the storage's.
        study: the study's id there.
        unfinished: those of its trials that are not finished, by their ids there.
    """

    def __init__(self, url: str, study: int, unfinished: Mapping[int, FrozenTrial]) -> None:
        self._url, self._study = url, study
        self._engine = create_engine(url, **engine_options(url))
        metadata = MetaData()
        metadata.reflect(self._engine, only=_TABLES)
        tables = (metadata.tables[name] for name in _TABLES)
        self._trials, self._genes, self._values, self._user, self._system = tables
        self._kept = {
            trial.number: _kept(identity, trial) for identity, trial in unfinished.items()
        }

    def write(self, trials: Sequence[FrozenTrial], amended: Sequence[FrozenTrial] = ()) -> None:
        """Write what is new of these trials, all of it or nothing.

        Args:
            trials: those that were begun, told or noted.
            amended: finished ones that were written before, and have got constraints since.

        Raises:
            StudyError: the study was changed by somebody else.
            SQLAlchemyError: the database cannot be written.
        """
        with self._engine.begin() as connection:
            kept = {trial.number: self._write(connection, trial) for trial in trials}
            for trial in amended:
                self._amend(connection, trial)
        self._kept.update(kept)
        for trial in trials:
            if trial.state.is_finished():
                del self._kept[trial.number]

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _write(self, connection: Connection, trial: FrozenTrial) -> _Kept:
        there = self._row(connection, trial)
        now = _kept(there.identity, trial)
        genes = [
            {
                "trial_id": there.identity,
                "param_name": name,
                "param_value": gene.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(gene),
            }
            for name, gene in trial.distributions.items()
            if name not in there.genes
        ]
        if genes:
            connection.execute(insert(self._genes), genes)
        _write_attributes(connection, self._user, there.identity, there.user, now.user)
        _write_attributes(connection, self._system, there.identity, there.system, now.system)
        if trial.values:
            values = [
                {"objective": number, "value": value, "value_type": "FINITE"}
                for number, value in enumerate(trial.values)
            ]
            rows = [{"trial_id": there.identity, **value} for value in values]
            connection.execute(insert(self._values), rows)
        return now

    def _amend(self, connection: Connection, trial: FrozenTrial) -> None:
        mine = (self._trials.c.study_id == self._study) & (self._trials.c.number == trial.number)
        identity = connection.execute(select(self._trials.c.trial_id).where(mine)).scalar_one()
        pairs = select(self._system.c.key, self._system.c.value_json)
        rows = connection.execute(pairs.where(self._system.c.trial_id == identity))
        before = {key: value for key, value in rows.all()}  # noqa: C416 (rows are no pairs)
        now = _kept(identity, trial).system
        _write_attributes(connection, self._system, identity, before, now)

    def _row(self, connection: Connection, trial: FrozenTrial) -> _Kept:
        """The trial's own row, written, and what there was of it before."""
        row = {
            "state": trial.state.name,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        kept = self._kept.get(trial.number)
        if kept is None:
            self._check_last(connection, trial.number - 1)
            begun = {"study_id": self._study, "number": trial.number, **row}
            made = connection.execute(insert(self._trials).values(begun)).inserted_primary_key
            return _Kept(int(made[0]))  # type: ignore[index]  # only without a primary key None
        mine = self._trials.c.trial_id == kept.identity
        if connection.execute(update(self._trials).where(mine).values(row)).rowcount != 1:
            raise self._changed(f"trial {trial.number} is gone")
        return kept

    def _check_last(self, connection: Connection, number: int) -> None:
        """Refuse to number a trial as somebody else's: the tables themselves would let it pass."""
        numbers = select(self._trials.c.number).where(self._trials.c.study_id == self._study)
        last = connection.execute(numbers.order_by(self._trials.c.trial_id.desc()).limit(1))
        found = last.scalar_one_or_none()
        if (-1 if found is None else found) != number:
            raise self._changed("it has trials that this search has not begun")

    def _changed(self, how: str) -> StudyError:
        problem = f"the study was changed by another program while it was searched: {how}"
        return StudyError([Fault(self._url, f"{problem}; run the same command to go on")])


def _kept(identity: int, trial: FrozenTrial) -> _Kept:
    user, system = (
        {key: json.dumps(value) for key, value in attributes.items()}
        for attributes in (trial.user_attrs, trial.system_attrs)
    )
    return _Kept(identity, frozenset(trial.params), user, system)


def _write_attributes(
    connection: Connection,
    table: Table,
    identity: int,
    before: Mapping[str, str],
    now: Mapping[str, str],
) -> None:
    new = {key: value for key, value in now.items() if before.get(key) != value}
    changed = [key for key in new if key in before]
    if changed:
        mine = (table.c.trial_id == identity) & table.c.key.in_(changed)
        connection.execute(delete(table).where(mine))
    if new:
        rows = [{"trial_id": identity, "key": k, "value_json": v} for k, v in new.items()]
        connection.execute(insert(table), rows)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(timezone.utc).replace(tzinfo=None)


def engine_options(url: str) -> dict[str, Any]:
    """How a storage is connected to."""
    # SQLite waits for its lock instead of failing when the dashboard reads.
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


class reading:
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


class writing(reading):
    """The same where it was to be written."""

    verb = "cannot be written (finished trials are kept; mend it and run the same command to go on)"
