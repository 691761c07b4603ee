"""What a search is going to score, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.search.spending import Spending


def spending_words(plan: Spending, items: int | None) -> str:
    """How the scored items are shared out; empty where there is nothing to say.

    Args:
        plan: of the search.
        items: what ``--items`` says.
    """
    return " ".join(filter(None, [_shared(plan, items), _besides(plan, items)]))


def _shared(plan: Spending, items: int | None) -> str:
    if items is None:
        return ""
    raced = f" ({plan.raced} were scored by earlier races)" if plan.raced else ""
    if not plan.whole:
        return f"The search may score {plan.search} of {items} items{raced}."
    words = f"The search may score {plan.search} of {items} items{raced}, then the race of the "
    words += f"finalists has {plan.race}"
    if plan.search is not None and plan.search < plan.first:
        return (
            f"{words}, less what the baselines and the first searched trial, up to {plan.first}, "
            "take of them."
        )
    if plan.race < plan.whole:
        return f"{words}: fewer than the {plan.whole} that all of them might need, so not all run."
    return f"{words} at least, which is enough for all of them."


def _besides(plan: Spending, items: int | None) -> str:
    parts = []
    if items is None and plan.whole:
        parts.append(f"the race of the finalists scores up to {plan.whole} items")
    if plan.holdout:
        top = "" if items is None else ", which do not count"
        parts.append(f"the comparison scores up to {plan.holdout} held-out items{top}")
    return f"After the search {' and '.join(parts)}." if parts else ""
