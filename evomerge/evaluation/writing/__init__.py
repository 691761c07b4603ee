"""Texts that a live model writes: greedy ones with a batch that is always full."""
