"""Where a text ends: lm-eval's stop texts and the model's own end-of-sequence tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lm_eval.models.utils import postprocess_generated_text

from evomerge.evaluation.queries import Rules

_KNOWN_ENDS = 1 << 16
"""Of so many last tokens it is remembered whether they hold a stop text."""


class Ending:
    """Tells where texts end, and what of their tokens counts.

    Args:
        tokenizer: turns tokens back into text; never encodes here.
        rules: whose stop texts.
        model: whose generation configuration names the tokens that end a text.
    """

    def __init__(self, tokenizer: Any, rules: Rules, model: Any) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        ending = model.generation_config.eos_token_id
        self._tokens = frozenset(ending if isinstance(ending, list) else [ending])
        # Texts repeat themselves and one another, and decoding takes longer than looking up.
        self._known = lru_cache(_KNOWN_ENDS)(self._has_stop)

    def stops(self, written: Sequence[int]) -> bool:
        """Whether a stop text has appeared.

        lm-eval looks at the last tokens only, special ones included; so does this.
        """
        return self._known(tuple(written[-self._rules.lookback :]))

    def _has_stop(self, tokens: tuple[int, ...]) -> bool:
        text = self._tokenizer.decode(list(tokens))
        return any(stop in text for stop in self._rules.stop)

    def ends(self, written: Sequence[int]) -> bool:
        """Whether the text is complete: its last token ends it, or a stop text has appeared."""
        return written[-1] in self._tokens or self.stops(written)

    def text(self, written: Sequence[int]) -> str:
        """What was written, up to the first token that ends it and the first stop text."""
        ends = (number + 1 for number, token in enumerate(written) if token in self._tokens)
        # What follows is padding, and a padding token need not be a special one.
        tokens = list(written[: next(ends, len(written))])
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(
            postprocess_generated_text(text, stop=list(self._rules.stop), think_end_token=None)
        )
