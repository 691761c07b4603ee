"""Whole searches, compared at equal numbers of scored items."""
