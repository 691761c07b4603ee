"""A study, read: its best trial, its baselines, its table, its recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import Fault, StudyError
from evomerge.evaluation import Comparison, Scores, compare
from evomerge.recipe import Recipe, read_recipes
from evomerge.report.climbs import Agreement, agreement
from evomerge.report.rows import json_of, race_json, row_of
from evomerge.search.budget import best_of
from evomerge.search.finalists import MEAN, MEAN_LABEL, RACE, Decision, decided, race_of
from evomerge.search.folder import ROOT, StudyFolder
from evomerge.search.goals import front, goal_names
from evomerge.search.itemscores import ItemScores, log_key
from evomerge.search.race import Race
from evomerge.search.records import TrialRecord
from evomerge.search.storage import StudyStore, open_store, study_names
from evomerge.search.tradeoffs import FrontVerdict, known_front
from evomerge.search.verdict import Verdict, known_verdict

if TYPE_CHECKING:
    import pandas

    from evomerge.space import SearchSpace


def open_study(study: str | Path, storage: str | None = None) -> StudyReport:
    """Open a study by its name, its folder, or its name in a storage elsewhere.

    Args:
        study: ``quickstart`` (in ``studies/``), a path to a study's folder, or, with ``storage``,
            the name in that storage.
        storage: an Optuna storage URL.

    Raises:
        StudyError: there is no such study.
    """
    if storage is not None:
        return StudyReport(open_store(str(study), storage), StudyFolder(ROOT / study))
    folder = _folder(study)
    if not folder.database.is_file():
        known = sorted(path.parent.name for path in ROOT.glob("*/study.db"))
        listed = ", ".join(known) or "none"
        problem = f"no study there; studies below {ROOT}/: {listed}"
        raise StudyError([Fault(str(folder.path), problem)])
    # A folder that was renamed or set aside holds its study under the old name.
    names = study_names(folder.url)
    name = names[0] if len(names) == 1 else folder.path.resolve().name
    return StudyReport(open_store(name, folder.url), folder)


def _folder(study: str | Path) -> StudyFolder:
    path = Path(study)
    try:
        found = StudyFolder(path if (path / "study.db").is_file() else ROOT / path)
        found.database.is_file()
        return found
    except OSError as problem:  # a name that no folder can have
        raise StudyError([Fault(str(study)[:80], f"is no study: {problem.strerror}")]) from problem


class StudyReport:
    """What a study says, read when it is first asked for.

    Args:
        store: the study.
        folder: its files; None where they are not at hand.
    """

    def __init__(self, store: StudyStore, folder: StudyFolder | None = None) -> None:
        self._store, self._folder = store, folder

    @property
    def name(self) -> str:
        """The study's name."""
        return self._store.name

    @property
    def url(self) -> str:
        """The Optuna storage that the study lies in."""
        return self._store.url

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was recorded of the study as a whole: space, provenance."""
        return self._store.facts

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """All the trials, by number."""
        return self._store.records()

    @cached_property
    def item_scores(self) -> Mapping[int, Scores]:
        """Trial number → its scores, item by item, on the search items.

        Raises:
            StudyError: the file in the study's folder cannot be read.
        """
        key = log_key(self._store)
        if self._folder is None or key is None:
            return {}
        return ItemScores(self._folder.items, key)

    def compare(self, a: int, b: int) -> Comparison:
        """How much better trial b is than trial a, paired item by item, on the search items.

        An optimistic number where one of the two was chosen by these items.

        Raises:
            StudyError: there is no such trial, or its item scores were not kept.
        """
        a, b = self._scored(a), self._scored(b)
        from evomerge.search.plans import task_requests

        space = self.space
        first, second = self.item_scores[a], self.item_scores[b]
        return compare(first, second, task_requests(space), plain_sum=space.plain_sum)

    def _scored(self, number: int) -> int:
        """The trial, or the twin, whose item scores were kept, on all the items."""
        trial = self.trial(number)
        place = trial.number if trial.twin is None else trial.twin
        if trial.state == "pruned":
            items = self.trial(place).items
            problem = f"trial {number} was pruned: it was scored on {items} items only"
            raise StudyError.at(self.name, problem)
        if place not in self.item_scores:
            where = "" if self._folder is None else f" in {self._folder.items}"
            raise StudyError.at(self.name, f"trial {number} has no item scores{where}")
        return place

    @property
    def best(self) -> TrialRecord | None:
        """The fittest trial on the search items, baselines included; None while none succeeded."""
        return best_of([trial for trial in self.trials if trial.state == "complete"])

    @property
    def best_baseline(self) -> TrialRecord | None:
        """The fittest baseline."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return best_of([trial for trial in complete if trial.kind == "baseline"])

    @property
    def verdict(self) -> Verdict | None:
        """The held-out comparison of what the search comes to now, if it was made."""
        return known_verdict(self.facts, self.decision, self.trials)

    @cached_property
    def decision(self) -> Decision | None:
        """What the search comes to now; None while no trial has succeeded."""
        return decided(self.trials, self.facts)

    @property
    def choice(self) -> TrialRecord | None:
        """What is shipped: after the race its winner, before it the best trial so far."""
        return None if self.decision is None else self.decision.choice

    @cached_property
    def space(self) -> SearchSpace:
        """The space that was searched."""
        from evomerge.space import SearchSpace

        return SearchSpace.model_validate_json(self.facts["space"])

    @property
    def goals(self) -> tuple[str, ...]:
        """The names of the goals, where there are several; else none."""
        several = "space" in self.facts and self.space.several_goals
        return goal_names(self.space) if several else ()

    @property
    def front(self) -> list[TrialRecord]:
        """The trials that no other beats in all goals at once; empty where there is one goal."""
        return front(self.trials) if self.goals else []

    @property
    def front_verdict(self) -> FrontVerdict | None:
        """What points of the front came to on the held-out items, if they were judged."""
        return known_front(self.facts, self.trials) if self.goals else None

    @property
    def agreement(self) -> Agreement | None:
        """How the smooth fitness that was climbed goes with the fitness; None without a climb."""
        return agreement(self.trials)

    @property
    def race(self) -> Race | None:
        """The race after the last trial; None if it was not run, or not to its end."""
        found = race_of(self.trials, self.facts)
        return None if found is None else found[0]

    @property
    def race_items(self) -> int:
        """How many items the last race has scored."""
        return int(self.facts.get(RACE, {}).get("items", 0))

    def finalist(self, name: str) -> str:
        """What a finalist of the race is called."""
        if name == MEAN:
            return MEAN_LABEL
        return self.trial(int(name)).label or f"trial {name}"

    @property
    def counts(self) -> dict[str, int]:
        """State → number of trials."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def items(self) -> int:
        """How many items were scored for all the trials whose cost was kept."""
        return sum(trial.items or 0 for trial in self.trials)

    def trial(self, number: int | None = None) -> TrialRecord:
        """A trial by its number, or what is shipped (see :attr:`choice`).

        Raises:
            StudyError: there is no such trial, or no trial that succeeded.
        """
        if number is None:
            if self.choice is None:
                raise StudyError.at(self.name, f"has no successful trial yet; {self.counts}")
            return self.choice
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise StudyError.at(
            self.name, f"has no trial {number}; allowed: 0 to {len(self.trials) - 1}"
        )

    def recipes(self, number: int | None = None) -> tuple[Recipe, ...]:
        """The recipe of a trial (what is shipped by default): one, or the stages of a staged one.

        Raises:
            StudyError: there is no such trial, or it never got as far as a recipe.
        """
        trial = self.trial(number)
        if trial.recipe is None:
            raise StudyError.at(self.name, f"trial {trial.number} has no recipe ({trial.state})")
        return read_recipes(trial.recipe)

    def recipe(self, number: int | None = None) -> Recipe:
        """The recipe of a trial whose space has one stage.

        Raises:
            StudyError: as ``recipes``, or the recipe has several stages.
        """
        found = self.recipes(number)
        if len(found) > 1:
            raise StudyError.at(self.name, f"its recipes have {len(found)} stages: use recipes()")
        return found[0]

    def table(self) -> pandas.DataFrame:
        """One row per trial: state, fitness, items, scores, genome, seconds, reason of failure."""
        import pandas

        goals, on_front = self.goals, {trial.number for trial in self.front}
        rows = [row_of(trial, goals) for trial in self.trials]
        for row in rows if goals else ():
            row["front"] = row["trial"] in on_front
        return pandas.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """The summary that ``evomerge best --json`` prints."""
        best, baseline, verdict = self.best, self.best_baseline, self.verdict
        judged, climbed = self.front_verdict, self.agreement
        return {
            "study": self.name,
            "trials": self.counts,
            "items": self.items,
            "race_items": self.race_items,
            "choice": json_of(self.choice),
            "best": json_of(best),
            "best_baseline": json_of(baseline),
            "climb": climbed.to_json() if climbed else None,
            "race": race_json(self.race, self.finalist),
            "verdict": verdict.to_json() if verdict else None,
            "front": [json_of(trial, self.goals) for trial in self.front],
            "front_verdict": judged.to_json() if judged else None,
        }
