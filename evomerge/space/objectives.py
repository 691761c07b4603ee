"""What is searched for: one weighted fitness or several goals, and what goes with several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.documents import shown
from evomerge.space.strict import Conflict

WEIGHTED, PARETO = "weighted", "pareto"

SEVERAL = ("nsga2", "tpe", "gp", "random")
"""The samplers that search several goals at once; the first is taken where none is named."""


def fill_sampler(data: dict[str, Any]) -> None:
    """Name the sampler of a space's data with several goals, where the file names none."""
    if data.get("objective") != PARETO:
        return
    search = data.get("search", {})
    if isinstance(search, Mapping) and "sampler" not in search:
        data["search"] = {**search, "sampler": SEVERAL[0]}


def objective_conflicts(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """What does not go together with several goals.

    Args:
        fields: those of a space that are right by themselves.
    """
    if fields.get("objective") != PARETO:
        return
    tasks = [dict(task) for task in fields.get("tasks", ())]
    goals = [task for task in tasks if task.get("weight", 1.0) != 0]
    if tasks and len(goals) < 2:
        problem = (
            "'pareto' needs at least 2 tasks whose weight is not 0, each of which is a goal; there "
            f"{'is' if len(goals) == 1 else 'are'} {len(goals)}: name more, or write weighted"
        )
        yield ("objective",), problem
    search, finals = dict(fields.get("search", ())), dict(fields.get("finals", ()))
    sampler = search.get("sampler", SEVERAL[0])
    if sampler not in SEVERAL:
        problem = f"{sampler!r} is refused: it searches one goal; objective: pareto takes "
        yield ("search", "sampler"), problem + ", ".join(SEVERAL)
    if isinstance(search.get("rungs", "none"), tuple):
        problem = "no candidate is stopped early under objective: pareto, as one that is behind "
        yield ("search", "rungs"), problem + "in one goal may be ahead in another; write none"
    if search.get("patience") is not None:
        problem = f"{shown(search['patience'])} has no effect under objective: pareto, which has "
        yield ("search", "patience"), problem + "no one fitness to gain; leave it out"
    if finals.get("items") is not None:
        problem = f"{shown(finals['items'])} has no effect under objective: pareto: its points are "
        yield ("finals", "items"), problem + "not raced; leave it out"
