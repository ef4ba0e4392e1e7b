"""Seeded documents with planted structure: what a name means is said once, early, and needed again far on.

A document is a small tale. It begins with its people, one sentence for each: where they come from, what they
carry, whom they seek, each drawn from 24 words. Then come scenes, sentences drawn from a few forms, and in
about every third one a person is named together with one of these facts. The word of the fact can be known
from the beginning of the same document and from nothing else: of the rest of the corpus it is independent.

    Orwenmi of Tarsk carries the copper lantern and seeks the miller. ...
    The road was long and the rain was cold. ... Orwenmi lifted the copper lantern. ...

So a model with a short window pays `ln 24`, about 3.2 nats, for such a word where the beginning lies outside
of it, and one that remembers pays almost nothing. Everything else, the forms, can be learned from any few
sentences. `facts` finds these words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.text import DOCUMENTS, SPLITS
from feedworks.errors import ConfigError

VALUES = 24
SYLLABLES = ("or", "wen", "tal", "mi", "ras", "ul", "ben", "ka", "dor", "lis", "fen", "ga", "hol", "vi")
_TOWNS = """
tarsk dunvik morel abbey lorn stave quill hask ridge ember fallow graye
holt isen jarrow kelm lund mirra norwen oster pell rosk sable tine
"""
TOWNS = tuple(_TOWNS.split())
_METALS = """
copper silver iron golden tin bronze steel leaden ivory wooden glass stone
clay silken linen leather amber jade pearl coral horn paper woollen marble
"""
METALS = tuple(_METALS.split())
_TRADES = """
miller smith baker weaver potter tanner cooper fisher hunter shepherd mason carpenter
sailor cook scribe singer healer brewer thatcher glover dyer tinker barber herald
"""
TRADES = tuple(_TRADES.split())
THINGS = ("lantern", "key", "ring", "box", "bell", "comb")
PLAIN = (
    "The road was long and the rain was cold.",
    "Nobody spoke until the fire had burned low.",
    "A dog barked behind the wall and then was still.",
    "They walked on and did not look back.",
    "In the morning the fields were white with frost.",
    "The old bridge held, and they crossed it one by one.",
    "There was bread on the table and nothing else.",
    "The wind turned in the night.",
)
# The name stands before what must be remembered of it.
FORMS = (
    "{name} lifted the {metal} {thing}.",
    "{name} was far from {town} that day.",
    "{name} asked again for the {trade}.",
)
PEOPLE = 6
FACT_SHARE = 0.35
SHORTEST = 10 * PEOPLE


class Fact(NamedTuple):
    """A word that only the beginning of its document tells: its place in the text, and where it was told."""

    word: str
    start: int
    told: int


class _Person(NamedTuple):
    name: str
    town: str
    metal: str
    thing: str
    trade: str


def write_synthetic_text(
    out_dir: Path, *, num_documents: int = 60, num_words: int = 1_500, seed: int = 0
) -> Path:
    """Writes a text data folder of invented tales; equal arguments give equal bytes.

    Every tenth document is for validation, the one before it for testing, all others for training.

    Args:
        out_dir: Folder to write into; made if it does not exist.
        num_documents: Documents, at least 10.
        num_words: About the words of each document, at least 60.
        seed: Any non-negative integer.

    Raises:
        ConfigError: An argument is out of its range.
    """
    for name, value, least in (
        ("num_documents", num_documents, 10),
        ("num_words", num_words, SHORTEST),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"synthetic text: {name} is {value}, it must be at least {least}")
    tales = [_tale(np.random.default_rng([seed, i]), num_words) for i in range(num_documents)]
    rows = {
        "document_id": np.arange(num_documents),
        "title": [f"The tale of {tale.partition(' ')[0]}, {i + 1}" for i, tale in enumerate(tales)],
        "split": [_split(i) for i in range(num_documents)],
        "text": pa.array(tales, pa.large_string()),
    }
    write_table(DOCUMENTS, pa.table(rows), out_dir)
    return out_dir


def facts(text: str) -> Iterator[Fact]:
    """The words of a tale that are told at its beginning and needed later, in the order of the text."""
    told: dict[tuple[str, int], int] = {}
    kinds = {word: kind for kind, words in enumerate((TOWNS, METALS, TRADES)) for word in words}
    for sentence in re.finditer(r"[^.]+\.", text):
        words = [(m.group(), sentence.start() + m.start()) for m in re.finditer(r"\w+", sentence.group())]
        name = words[0][0]
        for word, start in words:
            if word.lower() not in kinds:
                continue
            key = (name, kinds[word.lower()])
            if key in told:
                yield Fact(word, start, told[key])
            else:
                told[key] = start


def _split(place: int) -> str:
    train, valid, test = SPLITS
    return {8: test, 9: valid}.get(place % 10, train)


def _tale(rng: np.random.Generator, num_words: int) -> str:
    people = [_person(name, rng) for name in _names(rng)]
    sentences = [
        f"{p.name} of {p.town} carries the {p.metal} {p.thing} and seeks the {p.trade}." for p in people
    ]
    count = sum(sentence.count(" ") + 1 for sentence in sentences)
    while count < num_words:
        if rng.random() < FACT_SHARE:
            person = people[rng.integers(PEOPLE)]
            sentence = FORMS[rng.integers(len(FORMS))].format(**person._asdict())
        else:
            sentence = PLAIN[rng.integers(len(PLAIN))]
        count += sentence.count(" ") + 1
        sentences.append(sentence)
    paragraphs = [" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8)]
    return "\n".join(paragraphs) + "\n"


def _names(rng: np.random.Generator) -> list[str]:
    """Different names of three syllables, drawn for this document alone."""
    size = len(SYLLABLES)
    drawn = rng.choice(size**3, PEOPLE, replace=False)
    return [
        "".join(SYLLABLES[number // size**place % size] for place in range(3)).title() for number in drawn
    ]


def _person(name: str, rng: np.random.Generator) -> _Person:
    return _Person(
        name=name,
        town=TOWNS[rng.integers(VALUES)].title(),
        metal=METALS[rng.integers(VALUES)],
        thing=THINGS[rng.integers(len(THINGS))],
        trade=TRADES[rng.integers(VALUES)],
    )
