"""The quickstart's own scripts, as modules: its skills, its model, its way of training."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "search_spaces" / "quickstart"

# They are scripts that import each other by their bare names.
sys.path.append(str(FOLDER))
skills = importlib.import_module("skills")
train = importlib.import_module("train")
