"""The maths of merging, the engine that merges into a live model, and writing a merged model."""

from __future__ import annotations

from evomerge.merging.dtypes import DTYPES
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import MergeSummary, staged_engine, write_merge
from evomerge.merging.layout import layout_of, make_layout
from evomerge.merging.masks import uniform
from evomerge.merging.methods import merge
from evomerge.merging.placing import devices_of, needs_of
from evomerge.merging.pullback import Pullback
from evomerge.merging.residency import Needs, ResidencyPlan, Room, plan_residency
from evomerge.merging.sources import MergedModel
from evomerge.merging.stages import StagedEngine
from evomerge.merging.vocabularies import Target

__all__ = [
    "DTYPES",
    "MergeEngine",
    "MergeSummary",
    "MergedModel",
    "Needs",
    "Pullback",
    "ResidencyPlan",
    "Room",
    "StagedEngine",
    "Target",
    "devices_of",
    "layout_of",
    "make_layout",
    "merge",
    "needs_of",
    "plan_residency",
    "staged_engine",
    "uniform",
    "write_merge",
]
