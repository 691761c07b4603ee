"""Loads the quickstart's items for lm-eval, from beside this file, whatever the current folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

ITEMS = Path(__file__).resolve().parent / "items"


def load(items: str, **_metadata: Any) -> DatasetDict:
    """The items of `items`.jsonl as the split "test".

    lm-eval passes the task's `metadata` (its version) along with `dataset_kwargs`.
    """
    lines = (ITEMS / f"{items}.jsonl").read_text(encoding="utf-8").splitlines()
    return DatasetDict(test=Dataset.from_list([json.loads(line) for line in lines]))
