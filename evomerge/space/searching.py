"""Which sampler reads which of the settings of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evomerge.documents import shown
from evomerge.space.strict import Conflict

if TYPE_CHECKING:
    from evomerge.space.specs import SearchSettings

READERS: Mapping[str, tuple[str, ...]] = {
    "sigma": ("cmaes", "ascent"),
    "population": ("cmaes", "ascent", "nsga2"),
    "n_startup_trials": ("tpe", "gp"),
    "multivariate": ("tpe",),
    "constant_liar": ("tpe",),
    "deterministic_objective": ("gp",),
    "mutation_prob": ("nsga2",),
    "crossover_prob": ("nsga2",),
}
"""Setting → the samplers that read it."""

_OWN = ("sigma", "population")
"""Those that are no setting of one of Optuna's classes."""


def unread_settings(search: Any) -> Iterator[Conflict]:
    """The settings, as a file gives them, that its sampler does not read."""
    if not isinstance(search, Mapping):
        return
    sampler = search.get("sampler", "ascent")
    if not any(sampler in readers for readers in READERS.values()) and sampler != "random":
        return
    for key, readers in READERS.items():
        if search.get(key) is not None and sampler not in readers:
            problem = f"{shown(search[key])} has no effect: {sampler} does not read it; {key} is "
            yield ("search", key), problem + f"read by {', '.join(readers)}"


def read_settings(search: Any) -> Any:
    """A file's settings without those that its sampler does not read: their values are no matter.

    Args:
        search: what the file gives.
    """
    unread = {path[-1] for path, _ in unread_settings(search)}
    return {key: search[key] for key in search if key not in unread} if unread else search


def unfit_layers(fields: Mapping[str, Any]) -> Iterator[Conflict]:
    """``layers: auto`` of a space whose sampler cannot fit so many genes.

    Args:
        fields: the space's, those that are right by themselves.
    """
    sampler = getattr(fields.get("search"), "sampler", "ascent")
    if sampler == "ascent":
        return
    stages = [getattr(stage, "genome", None) for stage in fields.get("stages", ())]
    for place, genome in [(None, fields.get("genome")), *enumerate(stages)]:
        # A genome with other faults is there as plain data.
        layers = getattr(genome, "layers", None)
        if getattr(layers, "groups", None) == "auto":
            where = ("genome", "layers") if place is None else ("stages", place, "genome", "layers")
            problem = f"'auto' needs slopes, and {sampler} takes none; write groups: 1 or 2, or "
            yield where, problem + "sampler: ascent"


def sampler_settings(search: SearchSettings) -> dict[str, Any]:
    """What the sampler is to be made with, of the settings that Optuna's classes have."""
    given = {key: getattr(search, key) for key in READERS if key not in _OWN}
    return {
        key: value
        for key, value in given.items()
        if value is not None and search.sampler in READERS[key]
    }
