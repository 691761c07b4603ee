"""Every trial's item scores, in one file beside the study.

``items.scores`` is a log: frames that are only ever appended. A frame is its kind, the length and
the CRC-32 of its payload, and the payload. A *layout* frame (JSON) says of which study, tasks,
items and metrics the trials after it are. A *trial* frame holds a trial's number and then, metric
after metric, its value, its standard error and its items' values: a bit each where all are 0 or 1,
else float32. A driver that is killed leaves at most a torn frame at the end, which readers pass
over and which is cut off when the study goes on. A trial that is run again is appended again: the
last one counts.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evomerge.errors import Fault, StudyError
from evomerge.evaluation import MetricName, Scores, TaskScore, Value
from evomerge.search.storage import StudyStore

_HEAD = struct.Struct("<4sII")
_NUMBER, _VALUE = struct.Struct("<I"), struct.Struct("<dd")
_LAYOUT, _TRIAL = b"EMSL", b"EMST"
_BITS, _FLOATS = 0, 1
_KEY = "item_log"

Layout = dict[str, Any]
"""JSON: ``study``, and ``tasks``: name → ``doc_ids``, ``shares`` and ``metrics``: name → [higher is
better, aggregation, numbers per item (0 where the metric has no item values)]."""


@dataclass
class _Found:
    """What a walk over the file has found.

    Args:
        trials: study and number → its layout, and where its values lie in the file.
        layout: the one that holds at the end of the file.
        end: where the last whole frame ends.
    """

    trials: dict[tuple[str, int], tuple[Layout, int, int]] = field(default_factory=dict)
    layout: Layout | None = None
    end: int = 0


def log_key(store: StudyStore) -> str | None:
    """What tells a study's frames from those of others; None where it has kept none."""
    key = store.facts.get(_KEY)
    return None if key is None else str(key)


def item_log(path: Path, store: StudyStore) -> ItemLog:
    """The log of a study, to go on with."""
    if log_key(store) is None:
        store.remember(**{_KEY: uuid.uuid4().hex})
    return ItemLog(path, str(log_key(store)))


class ItemLog:
    """Appends trials' item scores; one at a time, by the driver alone.

    Args:
        path: the file; made with the first trial.
        study: what tells the study from others that may have left frames here.
    """

    def __init__(self, path: Path, study: str) -> None:
        self._path, self._study = path, study
        self._file: BinaryIO | None = None
        self._layout: Layout | None = None

    def append(self, trial: int, scores: Scores) -> None:
        """Keep a trial's scores.

        Raises:
            StudyError: the file cannot be written.
        """
        try:
            file = self._opened()
            layout = _layout(scores, self._study)
            frame = b""
            if layout != self._layout:
                frame = _framed(_LAYOUT, json.dumps(layout, separators=(",", ":")).encode())
            frame += _framed(_TRIAL, _NUMBER.pack(trial) + _packed(scores))
            if file.write(frame) < len(frame):  # a disk that is all but full takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._layout = layout
        except OSError as problem:
            self.close()  # what it left half written is cut off when it is opened again
            reason = problem.strerror or str(problem)
            raise StudyError([Fault(str(self._path), f"cannot be written: {reason}")]) from problem

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            found = _walk(self._path)
            file = self._path.open("ab", buffering=0)
            file.truncate(found.end)
            self._file, self._layout = file, found.layout
        return self._file


class ItemScores(Mapping[int, Scores]):
    """A study's item scores, read: trial number → scores, as :func:`compare` takes them.

    Item values are exact where items are right or wrong, else rounded to float32; the metrics'
    values and standard errors are exact.

    Args:
        path: the study's file; one that is not there holds nothing.
        study: whose trials are read.
    """

    def __init__(self, path: Path, study: str) -> None:
        self._path = path
        self._trials = {
            number: place for (owner, number), place in _walk(path).trials.items() if owner == study
        }

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._trials))

    def __getitem__(self, trial: int) -> Scores:
        layout, start, length = self._trials[trial]
        with self._path.open("rb") as file:
            file.seek(start)
            return _unpacked(layout, memoryview(file.read(length)))


def _walk(path: Path) -> _Found:
    """The frames of a file up to a torn one.

    Raises:
        StudyError: it cannot be read.
    """
    found = _Found()
    try:
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                kind, length, checksum = _HEAD.unpack(head)
                payload = file.read(length)
                if kind not in (_LAYOUT, _TRIAL) or len(payload) < length:
                    break
                _note(found, kind, payload, whole=zlib.crc32(payload) == checksum)
                found.end += _HEAD.size + length
    except FileNotFoundError:
        return found
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise StudyError([Fault(str(path), f"cannot be read: {reason}")]) from problem
    return found


def _note(found: _Found, kind: bytes, payload: bytes, *, whole: bool) -> None:
    """What a frame says; one whose bytes have changed since says nothing."""
    if kind == _LAYOUT:
        found.layout = json.loads(payload) if whole else None
    elif whole and found.layout is not None:
        key = found.layout["study"], _NUMBER.unpack_from(payload)[0]
        start = found.end + _HEAD.size + _NUMBER.size
        found.trials[key] = found.layout, start, len(payload) - _NUMBER.size


def _framed(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload), zlib.crc32(payload)) + payload


def _layout(scores: Scores, study: str) -> Layout:
    tasks = {
        name: {
            "doc_ids": list(score.doc_ids),
            "shares": {str(metric): dict(shares) for metric, shares in score.shares.items()},
            "metrics": {
                str(metric): [v.higher_is_better, v.aggregation, _width(score.items.get(metric))]
                for metric, v in score.metrics.items()
            },
        }
        for name, score in scores.tasks.items()
    }
    return {"study": study, "tasks": tasks}


def _width(items: np.ndarray | None) -> int:
    return 0 if items is None else items.size // max(1, len(items))


def _packed(scores: Scores) -> bytes:
    pieces: list[bytes] = []
    for score in scores.tasks.values():
        for metric, value in score.metrics.items():
            stderr = math.nan if value.stderr is None else value.stderr
            pieces.append(_VALUE.pack(value.value, stderr))
            if metric in score.items:
                pieces += _packed_items(score.items[metric])
    return b"".join(pieces)


def _packed_items(items: np.ndarray) -> tuple[bytes, bytes]:
    binary = items.ndim == 1 and bool(((items == 0) | (items == 1)).all())
    if binary:
        return bytes([_BITS]), np.packbits(items.astype(bool)).tobytes()
    return bytes([_FLOATS]), items.astype("<f4").tobytes()


def _unpacked(layout: Layout, payload: memoryview) -> Scores:
    tasks = {}
    for name, task in layout["tasks"].items():
        metrics: dict[MetricName, Value] = {}
        items: dict[MetricName, np.ndarray] = {}
        for text, (higher_is_better, aggregation, width) in task["metrics"].items():
            metric = MetricName.parse(text)
            value, stderr = _VALUE.unpack_from(payload)
            payload = payload[_VALUE.size :]
            error = None if math.isnan(stderr) else stderr
            metrics[metric] = Value(value, error, higher_is_better, aggregation)
            if width:
                items[metric], payload = _unpacked_items(payload, len(task["doc_ids"]), width)
        shares = {MetricName.parse(text): held for text, held in task["shares"].items()}
        tasks[name] = TaskScore(metrics, items, tuple(task["doc_ids"]), shares)
    return Scores(tasks)


def _unpacked_items(payload: memoryview, count: int, width: int) -> tuple[np.ndarray, memoryview]:
    form, payload = payload[0], payload[1:]
    if form == _BITS:
        size = (count + 7) // 8
        bits = np.unpackbits(np.frombuffer(payload[:size], np.uint8), count=count)
        return bits.astype(np.float64), payload[size:]
    size = 4 * count * width
    values = np.frombuffer(payload[:size], "<f4").astype(np.float64)
    return values if width == 1 else values.reshape(count, width), payload[size:]
