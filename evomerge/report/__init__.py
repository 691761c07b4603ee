"""Reads studies: tables, words and files. It never runs a trial."""

from __future__ import annotations

from evomerge.report.files import StudyFiles
from evomerge.report.study import StudyReport, open_study
from evomerge.report.words import race_words, verdict_words

__all__ = ["StudyFiles", "StudyReport", "open_study", "race_words", "verdict_words"]
