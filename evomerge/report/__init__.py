"""Reads studies: tables, words and files. It never runs a trial."""

from __future__ import annotations

from evomerge.report.files import StudyFiles
from evomerge.report.goals import (
    FRONT_HEADERS,
    LEAD_HEADERS,
    front_rows,
    front_words,
    lead_rows,
    limit_words,
)
from evomerge.report.study import StudyReport, open_study
from evomerge.report.words import climb_words, race_words, verdict_words

__all__ = [
    "FRONT_HEADERS",
    "LEAD_HEADERS",
    "StudyFiles",
    "StudyReport",
    "climb_words",
    "front_rows",
    "front_words",
    "lead_rows",
    "limit_words",
    "open_study",
    "race_words",
    "verdict_words",
]
