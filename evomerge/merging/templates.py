"""Chat templates by name, and the one that most models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from evomerge.checkpoints import MergedTokenizer
from evomerge.errors import Fault, RecipeError
from evomerge.recipe import Recipe

# Written from the formats' public descriptions. chatml and mistral render what mergekit's templates
# of these names render; its llama3 puts a line break between turns, and its alpaca none before the
# answer, which those formats do not.
TEMPLATES = {
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
        "{% else %}### Response:\n{{ message['content'] }}\n\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "[|{{ message['role'] }}|]{{ message['content'] }}"
        "{% if message['role'] != 'user' %}[|endofturn|]{% endif %}{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% set start = namespace(text='') %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set start.text = message['content'] + '\n\n' %}"
        "{% elif message['role'] == 'user' %}"
        " [INST] {{ start.text }}{{ message['content'] }} [/INST]{% set start.text = '' %}"
        "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}


def chat_template(
    recipe: Recipe, tokenizers: Callable[[], Sequence[MergedTokenizer]]
) -> str | None:
    """The text of the chat template that a recipe says.

    Args:
        recipe: the recipe. ``auto`` is what most of its models have, the first of equals; a name
            stands for one of ``TEMPLATES``; anything with a brace is the text itself.
        tokenizers: gives the tokenizers of the models that it names; asked only for ``auto``.

    Returns:
        None where the merged model keeps the template of its tokenizer.

    Raises:
        RecipeError: it names a template that we do not have.
    """
    problem = template_problem(recipe)
    if problem:
        raise RecipeError([Fault(f"{recipe.place}: chat_template", problem)])
    said = recipe.chat_template
    if said != "auto":
        return said if said is None else TEMPLATES.get(said, said)
    found: Counter[str] = Counter()
    for tokenizer in tokenizers():
        text = _text(tokenizer)
        found.update([text.strip()] if text else [])
    return found.most_common(1)[0][0] if found else None


def template_problem(recipe: Recipe) -> str | None:
    """What is wrong with a recipe's chat template, or None."""
    said = recipe.chat_template
    if said is None or said == "auto" or said in TEMPLATES or "{" in said:
        return None
    names = ", ".join(TEMPLATES)
    return f"{said!r} is no template's text and no name; allowed: auto, {names}, or a text"


def _text(tokenizer: MergedTokenizer) -> str | None:
    if tokenizer.table is None:
        return None
    template = tokenizer.load().chat_template
    return template.get("default") if isinstance(template, dict) else template
