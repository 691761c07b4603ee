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
    done = [f"its trials have scored {plan.scored}" if plan.scored else ""]
    done += [f"earlier races {plan.raced}" if plan.raced else ""]
    told = ", ".join(filter(None, done))
    words = f"The search may score {plan.search} of {items} items{told and f' ({told})'}"
    words += f", its last trial up to {plan.beyond} more" if plan.beyond else ""
    if not plan.whole:
        return f"{words}."
    words += f"; the race of the finalists has the rest, at least {plan.least}"
    if plan.least < plan.whole:
        return f"{words}: all of them might need {plan.whole}, so some may not run."
    return f"{words} (all of them might need {plan.whole})."


def _besides(plan: Spending, items: int | None) -> str:
    parts = []
    if items is None and plan.whole:
        parts.append(f"the race of the finalists scores up to {plan.whole} items")
    if plan.holdout:
        top = "" if items is None else ", which do not count"
        parts.append(f"the comparison scores up to {plan.holdout} held-out items{top}")
    return f"After the search {' and '.join(parts)}." if parts else ""
