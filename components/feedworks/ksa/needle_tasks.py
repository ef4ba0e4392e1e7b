"""What each needle task hides and asks; `feedworks.ksa.needles` lays it into a haystack."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_ADJECTIVES = """
amber bitter broad calm clever dusty eager early faint gentle golden hollow
humble idle little narrow pale quiet rapid silent sober tall tender yellow
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
_NOUNS = """
anchor badger barrel beacon bishop candle castle dancer falcon fox garden hammer
heron island lantern meadow mirror orchard parrot pilot ribbon saddle tower willow
"""
NOUNS = tuple(_NOUNS.split())
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
NUM_VALUES = 3  # of multi_value
NUM_OTHERS = 3  # other things that have a code
CHAIN = 3  # variables of a chain
MOST_FREQUENT = 3
NUM_CODED = 10  # different words of `frequent`
ALPHA = 2.0  # of the power law, as in RULER
LEAST_COUNTS = (4, 3, 2)


class Made(NamedTuple):
    """One draw of a task.

    Attributes:
        needed: sentences without which the question cannot be answered, in the order of the text.
        others: sentences that look like them; where there is little room the last of them are left out.
        least_others: how many of them must stay.
        question: asks at the end; like every sentence it begins with a space, where tokenizers cut.
        target: the continuation, with the space before it.
        answers: what the continuation must hold.
    """

    needed: tuple[str, ...]
    others: tuple[str, ...]
    least_others: int
    question: str
    target: str
    answers: tuple[str, ...]


class Coded(NamedTuple):
    """Coded words by falling frequency; the first `MOST_FREQUENT` are asked for."""

    words: tuple[str, ...]
    question: str
    target: str
    answers: tuple[str, ...]


def single(rng: np.random.Generator) -> Made:
    """One thing has a code."""
    (key,), (value,) = _keys(rng, 1), _values(rng, 1)
    return _code(key, value, ())


def multi_key(rng: np.random.Generator) -> Made:
    """Several things have codes, one is asked for."""
    keys, values = _keys(rng, 1 + NUM_OTHERS), _values(rng, 1 + NUM_OTHERS)
    others = tuple(_statement(key, value) for key, value in zip(keys[1:], values[1:], strict=True))
    return _code(keys[0], values[0], others)


def multi_value(rng: np.random.Generator) -> Made:
    """One thing has several codes, all are asked for in the order of the text."""
    (key,), values = _keys(rng, 1), _values(rng, NUM_VALUES)
    return Made(
        needed=tuple(f" A code of the {key} is {value}." for value in values),
        others=(),
        least_others=0,
        question=f" Remember: the codes of the {key} are",
        target=" " + ", ".join(values),
        answers=values,
    )


def tracking(rng: np.random.Generator) -> Made:
    """Variables take over a value one from the other; a second chain has a value of its own."""
    names, (value, other) = _words(rng, 2 * CHAIN), _values(rng, 2)
    asked, unasked = names[:CHAIN], names[CHAIN:]
    return Made(
        needed=_chain(asked, value),
        others=_chain(unasked, other),
        least_others=0,
        question=f" Remember: equal to {value} are",
        target=" " + ", ".join(asked),
        answers=asked,
    )


def frequent(rng: np.random.Generator) -> Coded:
    """Coded words, no haystack: which occur most often?"""
    words = _words(rng, NUM_CODED)
    asked = words[:MOST_FREQUENT]
    return Coded(words, " Remember: seen most are", " " + ", ".join(asked), asked)


def counts(num_words: int) -> list[int]:
    """How often each of the `NUM_CODED` words occurs among `num_words`, at least 9, by about a power law.

    The first three differ from each other and occur more often than all others.
    """
    rest = num_words - sum(LEAST_COUNTS)
    weight_N = np.arange(1, NUM_CODED + 1) ** -ALPHA
    count_N = np.floor(rest * weight_N / weight_N.sum()).astype(int)
    count_N[0] += rest - count_N.sum()
    count_N[: len(LEAST_COUNTS)] += LEAST_COUNTS
    return [int(count) for count in count_N]


HIDDEN: dict[str, Callable[[np.random.Generator], Made]] = {
    "single": single,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "tracking": tracking,
}
FREQUENT = "frequent"
TASKS = (*HIDDEN, FREQUENT)


def _code(key: str, value: str, others: tuple[str, ...]) -> Made:
    statement = _statement(key, value)
    # The question is the statement again, up to the value: what is asked for needs no understanding.
    question = " Remember: the" + statement.removeprefix(" The").removesuffix(f" {value}.")
    return Made((statement,), others, min(1, len(others)), question, f" {value}", (value,))


def _statement(key: str, value: str) -> str:
    return f" The code of the {key} is {value}."


def _chain(names: tuple[str, ...], value: str) -> tuple[str, ...]:
    sources = (value, *names)
    return tuple(f" Let {name} be {source}." for name, source in zip(names, sources, strict=False))


def _keys(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    drawn = rng.choice(len(ADJECTIVES) * len(NOUNS), count, replace=False).tolist()
    return tuple(f"{ADJECTIVES[i // len(NOUNS)]} {NOUNS[i % len(NOUNS)]}" for i in drawn)


def _values(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    return tuple(str(1000 + i) for i in rng.choice(9000, count, replace=False).tolist())


def _words(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Invented words of two syllables, all different."""
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    size = len(syllables)
    drawn = rng.choice(size**2, count, replace=False).tolist()
    return tuple(syllables[i // size] + syllables[i % size] for i in drawn)
