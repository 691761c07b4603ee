"""The world of the command line's tests, without the command line."""

from __future__ import annotations

from tests.cli.conftest import surroundings, world

__all__ = ["surroundings", "world"]
