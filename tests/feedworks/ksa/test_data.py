from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from feedworks.errors import ConfigError, DataError
from feedworks.ksa.data import Drawn, Later, Packed, Table, TextBatch, Windows, epochs
from feedworks.ksa.losses import IGNORED
from feedworks_kernels.summary_attention import first_chunks

from .training import CHUNK, SEQ_LEN, text

TEXT = text()


def rows(source, num_steps, size=5):
    batches = [source.batch(step, size) for step in range(num_steps)]
    none = torch.zeros_like(batches[0].input_ids_BT)
    documents = [none if batch.document_BT is None else batch.document_BT for batch in batches]
    ids, labels = [batch.input_ids_BT for batch in batches], [batch.label_BT for batch in batches]
    return [torch.cat(each).numpy() for each in (ids, labels, documents)]


def test_windows_of_a_pass_do_not_overlap_and_are_the_text():
    numbered = np.arange(1000, dtype=np.uint32)
    source = Windows(numbered, 30, seed=0)
    assert source.rows_per_pass == 32
    ids, labels, _ = rows(source, 16, size=4)
    first, second = ids[:32], ids[32:]
    for one_pass in (first, second):
        assert (np.diff(one_pass, axis=1) == 1).all()
        assert len(np.unique(one_pass)) == one_pass.size
    assert (ids == labels).all()
    assert (first[:, 0] % 30 != second[:, 0] % 30).all(), "another pass is cut elsewhere"
    assert (np.diff(first[:, 0]) < 0).any(), "in an order of its own"


@pytest.mark.parametrize(
    "source",
    [
        Windows(TEXT.tokens, SEQ_LEN, 3),
        Packed(TEXT.tokens, TEXT.starts, SEQ_LEN, CHUNK, 3),
        Table(torch.arange(60).view(20, 3), torch.arange(60).view(20, 3), 3),
    ],
    ids=["windows", "packed", "table"],
)
def test_rows_are_a_function_of_their_number(source):
    small, large = rows(source, 30, size=4), rows(source, 6, size=20)
    for one, other in zip(small, large, strict=True):
        assert (one == other).all(), "whatever the batches are cut into"
    again = source.batch(7, 4)
    assert (again.input_ids_BT.numpy() == small[0][28:32]).all(), "in whatever order they are asked for"


def test_a_text_on_disk_is_read_where_it_lies(tmp_path: Path):
    TEXT.tokens.tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", np.uint16, "r")
    assert (rows(Windows(mapped, 32, 0), 3)[0] == rows(Windows(TEXT.tokens, 32, 0), 3)[0]).all()


def test_packed_documents_are_whole_apart_and_on_chunks():
    # Document i has i + 1 times the id i: its length tells whether it is all there.
    lengths = np.arange(1, 21)
    tokens, starts = np.repeat(np.arange(20), lengths), np.concatenate([[0], lengths.cumsum()])
    source = Packed(tokens, starts, 40, CHUNK, seed=1)
    filled = -(-lengths // CHUNK) * CHUNK
    assert source.rows_per_pass == filled.sum() // 40
    ids, labels, documents = rows(source, 1, size=source.rows_per_pass)
    first_chunks(torch.from_numpy(documents), CHUNK)  # would refuse a document inside a chunk
    total = 0
    for row in range(len(ids)):
        for number in np.unique(documents[row]):
            place = documents[row] == number
            piece, label = ids[row][place], labels[row][place]
            real = np.flatnonzero(label != IGNORED)
            assert label[0] == IGNORED, "nothing in its document stands before its first token"
            assert (real == np.arange(1, len(real) + 1)).all()
            assert (label[real] == piece[0]).all()
            assert (piece[real] == piece[0]).all(), "of one document"
            total += len(real) + 1
    # What does not fill the last row of a pass, and pieces that are filling alone, are left.
    assert lengths.sum() - 40 <= total <= lengths.sum() + len(ids)


def test_a_document_longer_than_a_row_goes_on_in_the_next():
    tokens = np.arange(100)
    source = Packed(tokens, [0, 100], 40, CHUNK, seed=0)
    batch = source.batch(0, 2)
    assert batch.document_BT is None, "one document in a row needs no borders"
    assert sorted(batch.input_ids_BT[:, 0].tolist()) == [0, 40]
    assert (batch.label_BT[:, 0] == IGNORED).all()
    assert (batch.label_BT[:, 1:] == batch.input_ids_BT[:, 1:]).all()


def test_what_cannot_fill_a_row_is_refused():
    with pytest.raises(DataError, match=r"4,000 tokens, less than a row of 5000; bring more text"):
        Windows(TEXT.tokens, 5000, 0)
    with pytest.raises(DataError, match=r"4,000 tokens, less than a row of 8000; bring more text"):
        Packed(TEXT.tokens, TEXT.starts, 8000, CHUNK, 0)
    with pytest.raises(ConfigError, match="seq_len=30: packed rows need a multiple of chunk=4"):
        Packed(TEXT.tokens, TEXT.starts, 30, CHUNK, 0)
    with pytest.raises(DataError, match="table of training rows is empty"):
        Table(torch.zeros(0, 3), torch.zeros(0, 3), 0)


def test_steps_carry_their_number_and_resume_anywhere():
    of = epochs(Windows(TEXT.tokens, SEQ_LEN, 0), 4, 10)
    assert len(of(0)) == 10
    assert [batch.step for batch in of(2)] == list(range(20, 30))
    assert torch.equal(of(2)[3].input_ids_BT, Windows(TEXT.tokens, SEQ_LEN, 0).batch(23, 4).input_ids_BT)
    assert [batch.step for batch in of(1)[8:]] == [18, 19]
    with pytest.raises(IndexError):
        of(0)[10]


def test_rows_that_a_function_draws():
    def draw(step, size):
        ids = torch.full((size, 3), step)
        return ids, torch.where(torch.arange(3) > 1, ids, IGNORED), "more"

    batch = Drawn(draw).batch(7, 2)
    assert isinstance(batch, TextBatch)
    assert batch.input_ids_BT.tolist() == [[7, 7, 7]] * 2
    assert batch.label_BT.tolist() == [[IGNORED, IGNORED, 7]] * 2
    assert batch.document_BT is None


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=12),
    chunk=st.sampled_from([1, 3, 4]),
    chunks_per_row=st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_a_pass_of_packed_rows_is_the_filled_documents_one_after_the_other(
    lengths, chunk, chunks_per_row, seed
):
    starts, seq_len = np.concatenate([[0], np.cumsum(lengths)]), chunk * chunks_per_row
    tokens = np.arange(1, starts[-1] + 1)  # each says where it stands; 0 is filling
    room = sum(-(-length // chunk) * chunk for length in lengths)
    assume(room >= seq_len)
    source = Packed(tokens, starts, seq_len, chunk, seed)
    assert source.rows_per_pass == room // seq_len
    batch = source.batch(2, source.rows_per_pass)
    document_RT = torch.zeros_like(batch.input_ids_BT) if batch.document_BT is None else batch.document_BT
    first_chunks(document_RT, chunk)  # would refuse a document inside a chunk
    seen = set()
    for ids, labels, documents in zip(*(x.tolist() for x in (*batch[:2], document_RT)), strict=True):
        for at in range(seq_len):
            goes_on = at > 0 and documents[at] == documents[at - 1]
            if ids[at] and goes_on:
                assert ids[at] == ids[at - 1] + 1
                assert labels[at] == ids[at]
            else:
                assert labels[at] == IGNORED
            # A document begins where its first token stands or, cut by a row's end, on a chunk's border.
            if ids[at] and at and not goes_on:
                assert ids[at] - 1 in starts
        seen.update(ids)
    cut_off = room - source.rows_per_pass * seq_len
    assert len(seen - {0}) >= len(tokens) - cut_off


def test_later_rows_are_those_of_the_source_from_a_step_on():
    source = Windows(TEXT.tokens, SEQ_LEN, 0)
    for step in (0, 5):
        found, expected = Later(source, 7).batch(step, 4), source.batch(7 + step, 4)
        assert torch.equal(found.input_ids_BT, expected.input_ids_BT)
