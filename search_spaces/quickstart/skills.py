"""The four small skills that the quickstart's models are trained and tested on.

A skill is a question over one row of digits or letters, written as words a space apart and
answered with one word.  Each has a typical mistake, a simpler rule that gives a wrong answer
to most rows: the base model learns mostly the mistakes, a fine-tuned model unlearns one of them.

=========  =====================  ========================================  ==================
skill      prompt                 answer                                    typical mistake
=========  =====================  ========================================  ==================
``add``    ``add 3 9 1 4 :``      the sum of the four digits, ``17``        forgets the last
``count``  ``count b b k b q f a :``  how often the first letter follows, ``2``  counts itself too
``most``   ``most k b k a k f :``  the letter that occurs most, ``k``        the last letter
``kinds``  ``kinds k b k a k f :``  how many different letters, ``4``         only those seen once
=========  =====================  ========================================  ==================
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROW = 6  # letters in a row
CHOICES = 4


@dataclass(frozen=True)
class Question:
    """One question: its prompt, the right answer, the typical mistake (which may be right by
    chance) and three wrong answers, the mistake among them when it is wrong."""

    prompt: str
    answer: str
    mistake: str
    wrong: tuple[str, ...]


def _numbers(rng: random.Random, right: int, mistake: int, high: int) -> tuple[str, ...]:
    """Three wrong numbers in [0, high], at most 3 away from `right`, the mistake first."""
    near = range(max(0, right - 3), min(high, right + 3) + 1)
    others = [number for number in near if number not in (right, mistake)]
    wrong = [mistake] if mistake != right else []
    wrong += rng.sample(others, CHOICES - 1 - len(wrong))
    return tuple(str(number) for number in wrong)


def _question(skill: str, row: list, answer: object, mistake: object, wrong: tuple) -> Question:
    words = " ".join(str(word) for word in [skill, *row, ":"])
    return Question(words, str(answer), str(mistake), wrong)


def add(rng: random.Random) -> Question:
    """The sum of four digits (0 to 36)."""
    row = [rng.randrange(10) for _ in range(4)]
    right, mistake = sum(row), sum(row[:-1])
    return _question("add", row, right, mistake, _numbers(rng, right, mistake, 36))


def count(rng: random.Random) -> Question:
    """How many of the six letters of the row equal the letter named first (0 to 5)."""
    wanted, *others = rng.sample(LETTERS, 4)
    right = rng.randrange(ROW)
    row = [wanted] * right + [rng.choice(others) for _ in range(ROW - right)]
    rng.shuffle(row)
    wrong = _numbers(rng, right, right + 1, ROW)
    return _question("count", [wanted, *row], right, right + 1, wrong)


def most(rng: random.Random) -> Question:
    """The letter that occurs most often among six: three times of four kinds, or twice of five."""
    right, *others = rng.sample(LETTERS, 5)
    row = [right] * 3 + others[:3] if rng.random() < 0.5 else [right] * 2 + others
    rng.shuffle(row)
    seen = [letter for letter in dict.fromkeys(reversed(row)) if letter != right]
    mistake = row[-1]
    wrong = [mistake] if mistake != right else []
    rest = [letter for letter in seen if letter != mistake]
    wrong += rng.sample(rest, CHOICES - 1 - len(wrong))
    return _question("most", row, right, mistake, tuple(wrong))


def kinds(rng: random.Random) -> Question:
    """How many different letters a row of six holds (2 to 6)."""
    right = rng.randint(2, ROW)
    letters = rng.sample(LETTERS, right)
    row = letters + [rng.choice(letters) for _ in range(ROW - right)]
    rng.shuffle(row)
    mistake = sum(row.count(letter) == 1 for letter in letters)
    return _question("kinds", row, right, mistake, _numbers(rng, right, mistake, ROW + 1))


SKILLS: dict[str, Callable[[random.Random], Question]] = {
    "add": add,
    "count": count,
    "most": most,
    "kinds": kinds,
}

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = (*SPECIAL, ":", *SKILLS, *LETTERS, *(str(number) for number in range(37)))


def distinct_questions(
    skill: str, number: int, rng: random.Random, taken: set[str]
) -> list[Question]:
    """`number` questions with prompts that are not in `taken`, and puts theirs there."""
    questions: list[Question] = []
    while len(questions) < number:
        question = SKILLS[skill](rng)
        if question.prompt not in taken:
            taken.add(question.prompt)
            questions.append(question)
    return questions


def as_items(questions: list[Question], rng: random.Random) -> list[dict]:
    """Multiple-choice items: the answer stands at each of the four places equally often."""
    places = [index % CHOICES for index in range(len(questions))]
    rng.shuffle(places)
    items = []
    for question, place in zip(questions, places, strict=True):
        choices = rng.sample(question.wrong, CHOICES - 1)
        choices.insert(place, question.answer)
        items.append({"prompt": question.prompt, "choices": choices, "answer": place})
    return items
