"""Needles into a haystack: where their sentences lie, and what is left out where there is little room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from feedworks.ksa.needle_tasks import LEAST_COUNTS, Coded, Made, counts

if TYPE_CHECKING:
    from feedworks.ksa.needles import Haystack

IntArray = npt.NDArray[np.int32]


class Part(NamedTuple):
    """A piece of a prompt with its ids; `is_answer` where a model in training is to predict it."""

    text: str
    ids: IntArray
    is_answer: bool = False


class _Laid(NamedTuple):
    """One task's sentences and its question; empty answer for the question that ends the prompt."""

    needed: list[Part]
    others: list[Part]
    question: list[Part]


def apart(made: Made, others: Iterable[Made], count: int) -> list[Made]:
    """The first `count` of the others that tell nothing of what the earlier ones tell of."""
    told = _told(made)
    found: list[Made] = []
    for other in others:
        if len(found) < count and not told & _told(other):
            told |= _told(other)
            found.append(other)
    return found


def hidden(
    haystack: Haystack, made: Sequence[Made], room: int, depth: float, rng: np.random.Generator
) -> list[Part]:
    """A prompt of at most `room` tokens; nothing where they do not hold the first task.

    Args:
        haystack: Where to hide.
        made: The task that the prompt ends with, then others, asked for before it as far as they fit.
        room: Tokens.
        depth: Of the first sentence that the first task needs, as a share of the haystack's sentences.
        rng: Draws all other places.
    """
    first = _encoded(haystack, made[0], last=True)
    # A haystack must be left to search in.
    most = (room - _size(first.question)) // 2 + _size(first.question)
    while len(first.others) > made[0].least_others and _total([first]) > most:
        first.others.pop()
    laid = [first]
    for other in made[1:]:
        candidate = _encoded(haystack, other, last=False)
        if _total([*laid, candidate]) <= most:
            laid.append(candidate)
    hay = haystack.draw(room - _total(laid), rng)
    if not hay:
        return []
    begin = round(depth * len(hay))
    placed = []
    for task in laid:
        # What is needed later lies after it, what is not needed anywhere.
        at = begin if task is first else int(rng.integers(0, len(hay) + 1))
        later = sorted(rng.integers(at, len(hay) + 1, len(task.needed) - 1).tolist())
        anywhere = sorted(rng.integers(0, len(hay) + 1, len(task.others)).tolist())
        placed += [*zip([at, *later], task.needed, strict=True), *zip(anywhere, task.others, strict=True)]
    parts = []
    for place in range(len(hay) + 1):
        parts += [needle for at, needle in placed if at == place]
        parts += hay[place : place + 1]
    return [*parts, *(part for task in reversed(laid) for part in task.question)]


def coded(haystack: Haystack, made: Coded, room: int, rng: np.random.Generator) -> list[Part]:
    """Coded words in random order and the question; nothing where there is no room for the least of them."""
    *words, question = haystack.encode([*(f" {word}" for word in made.words), made.question])
    room -= len(question.ids)

    def drawn(num_words: int) -> list[int]:
        return [i for i, count in enumerate(counts(num_words)) for _ in range(count)]

    num_words = room // max(len(word.ids) for word in words)
    if num_words < sum(LEAST_COUNTS):
        return []
    while sum(len(words[i].ids) for i in drawn(num_words + 1)) <= room:
        num_words += 1
    return [*(words[i] for i in rng.permutation(drawn(num_words)).tolist()), question]


def _encoded(haystack: Haystack, made: Made, *, last: bool) -> _Laid:
    question = haystack.encode([made.question] if last else [made.question, made.target, "."])
    if not last:
        question[1] = question[1]._replace(is_answer=True)
    return _Laid(haystack.encode(made.needed), haystack.encode(made.others), question)


def _told(made: Made) -> set[str]:
    """What its sentences tell of: each up to its last word."""
    return {sentence.rpartition(" ")[0] for sentence in (*made.needed, *made.others)}


def _total(laid: Iterable[_Laid]) -> int:
    return sum(_size([*task.needed, *task.others, *task.question]) for task in laid)


def _size(parts: Iterable[Part]) -> int:
    return sum(len(part.ids) for part in parts)
