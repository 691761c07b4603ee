"""The command line: parses, calls, prints, exits. Nothing else prints."""

from __future__ import annotations

from evomerge.cli.app import main

__all__ = ["main"]
