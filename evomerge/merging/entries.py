"""The rows of the two small tables that a kernel gets: which number stands where."""

from __future__ import annotations

from enum import IntEnum


class F(IntEnum):
    """Rows of ``floats``."""

    COEFFICIENT = 0  # what a kept element is multiplied by: weight × rescale …
    WEIGHT = 1  # what an agreeing model adds to the divisor
    LIMIT = 2  # the smallest magnitude that is kept, up to the element ints' LAST
    OUTLIER = 3  # the smallest magnitude that is an outlier, and removed; the same
    UNIT = 4  # a power of two: sums are of integers, |δ| × unit rounded
    RESCALE = 5  # of kept elements, where the fine-tuned weights themselves are masked
    SHARED = 6  # column 0: λ
    LATER = 7  # LIMIT, for the elements behind LAST
    OUTLIER_LATER = 8  # OUTLIER, for those behind OUTLIER_LAST


class I(IntEnum):  # noqa: E742 - beside F, as the tables are beside each other
    """Rows of ``ints``."""

    KEY = 0  # the model's key
    MULTIPLIER = 1  # the model's multiplier, odd
    LIMIT = 2  # the largest drawn integer that is kept, at rank 0
    STEP = 3  # by how much LIMIT grows with each rank
    COUNTER = 4  # the tensor's first key
    SECOND = 5  # the tensor's second key
    SHARED = 6  # column 0: −1, 0, 1, the sign where a sum of task vectors is 0 (TIES paper)
    LAST = 7  # the last element that is kept where its magnitude equals LIMIT
    OUTLIER_LAST = 8  # the last that is an outlier where its magnitude equals OUTLIER
