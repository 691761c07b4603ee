"""After which shares of the items a candidate may be stopped."""

from __future__ import annotations

from evomerge.evaluation import ItemSet
from evomerge.evaluation.rungs import means_alone

AUTO = (0.125, 0.25, 0.5)
FEWEST = 20
"""Items of the first rung, at least: fewer hardly ever stop a candidate."""


def rung_shares(wanted: str | tuple[float, ...], items: ItemSet) -> tuple[tuple[float, ...], str]:
    """The shares, ascending; none where candidates are always scored on all items.

    Args:
        wanted: the space's ``search.rungs``.
        items: the search items.

    Returns:
        the shares, and what the user should know: why there are none, or nothing.
    """
    if wanted == "none":
        return (), ""
    shares = AUTO if isinstance(wanted, str) else wanted
    kept = tuple(share for share in shares if share * len(items) >= FEWEST or shares is wanted)
    odd = means_alone(items) if kept else []
    if odd:
        one = len(odd) == 1
        return (), (
            f"no candidate is stopped early, as {', '.join(odd)} {'is' if one else 'are'} no "
            f"{'mean' if one else 'means'} over items (search.rungs: none says so)"
        )
    return kept, ""
