import itertools
import math
import time

import numpy as np
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.synthetic_text import (
    METALS,
    PEOPLE,
    TOWNS,
    TRADES,
    VALUES,
    facts,
    write_synthetic_text,
)
from feedworks.contracts.text import DOCUMENTS
from feedworks.errors import ConfigError
from feedworks.validation.gate import require_valid


def test_equal_arguments_give_equal_bytes_and_other_seeds_other_tales(tmp_path):
    files = [
        write_synthetic_text(tmp_path / name, num_documents=10, seed=seed) / DOCUMENTS.file_name
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, same, other = (path.read_bytes() for path in files)
    assert first == same
    assert first != other


def test_the_data_pass_the_gate_and_have_all_splits(tmp_path):
    begin_s = time.monotonic()
    folder = write_synthetic_text(tmp_path)
    assert time.monotonic() - begin_s < 3
    assert not require_valid(folder, kind="text").warnings
    splits = read_table(DOCUMENTS, folder)["split"].to_pylist()
    assert [splits.count(split) for split in ("train", "valid", "test")] == [48, 6, 6]


def test_facts_are_told_at_the_beginning_and_recur_far_on(tmp_path):
    texts = read_table(DOCUMENTS, write_synthetic_text(tmp_path, num_documents=10))["text"].to_pylist()
    for text in texts:
        found = list(facts(text))
        assert len(found) > 30
        people = text.split(". ")[:PEOPLE]
        told_before = sum(map(len, people)) + 2 * PEOPLE
        for fact in found:
            # The same word stands where it was told, which is in the sentences about the people.
            assert text[fact.told :].startswith(fact.word)
            assert text[fact.start :].startswith(fact.word)
            assert fact.told < told_before <= fact.start
        assert np.mean([fact.start - fact.told for fact in found]) > 2_000


def test_a_fact_cannot_be_guessed_from_other_documents(tmp_path):
    """Over many tales each word is as likely as any: its entropy is that of the whole list."""
    folder = write_synthetic_text(tmp_path, num_documents=400, num_words=60)
    texts = read_table(DOCUMENTS, folder)["text"].to_pylist()
    for words in (tuple(town.title() for town in TOWNS), METALS, TRADES):
        assert len(set(words)) == VALUES
        told = [
            word for text in texts for word in text.split(".\n")[0].replace(".", "").split() if word in words
        ]
        share = np.array([told.count(word) for word in words]) / len(told)
        assert -(share * np.log(share)).sum() > math.log(VALUES) - 0.02


def test_the_name_stands_before_what_must_be_remembered_of_it(tmp_path):
    text = read_table(DOCUMENTS, write_synthetic_text(tmp_path, num_documents=10))["text"][0].as_py()
    names = [sentence.split()[0] for sentence in text.split(". ")[:PEOPLE]]
    assert len(set(names)) == PEOPLE
    for fact in facts(text):
        sentence = text[: fact.start].rpartition(".")[2]
        assert any(name in sentence for name in names)


@pytest.mark.parametrize(
    "wrong", [{"num_documents": 9}, {"num_words": 59}, {"seed": -1}], ids=["few", "short", "seed"]
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="it must be at least"):
        write_synthetic_text(tmp_path / "data", **wrong)
    assert not (tmp_path / "data").exists()


def test_ids_rise(tmp_path):
    ids = read_table(DOCUMENTS, write_synthetic_text(tmp_path, num_documents=12))["document_id"].to_pylist()
    assert all(a < b for a, b in itertools.pairwise(ids))
