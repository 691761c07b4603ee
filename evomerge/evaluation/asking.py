"""A task's requests for chosen documents, built by lm-eval itself as its ``evaluate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jinja2

from evomerge.evaluation.spec import Setting
from evomerge.evaluation.tasks import quiet


def build_requests(task: Any, doc_ids: Sequence[int], setting: Setting, tokenizer: Any) -> None:
    """Fill ``task.instances``.

    Args:
        task: lm-eval's, its split and its examples set.
        doc_ids: which documents; at least one.
        setting: how questions are put.
        tokenizer: whose chat template is used.

    Raises:
        Exception: whatever the task's own templates and functions raise.
    """
    chat = setting.apply_chat_template
    with quiet():
        task.build_all_requests(
            samples=list(doc_ids),
            rank=0,
            world_size=1,
            system_instruction=setting.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=setting.fewshot_as_multiturn,
            chat_template=partial(_render_chat, tokenizer) if chat else None,
            tokenizer_name=str(tokenizer.name_or_path) if chat else "",
        )


def _render_chat(
    tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """A conversation as text; templates that know no system turn get none, as in lm-eval."""
    render = partial(
        tokenizer.apply_chat_template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
    try:
        return str(render(history))
    except jinja2.exceptions.TemplateError:
        return str(render([turn for turn in history if turn["role"] != "system"]))
