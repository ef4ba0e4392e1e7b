"""Who reads whom in summary_attention: by hand, by counting, and the bounds of loops by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks_kernels import first_chunks
from feedworks_kernels.summary_attention import reference
from feedworks_kernels.summary_attention.pattern import Pattern

CHUNKS, SUMMARIES = st.sampled_from([1, 2, 3, 4, 8, 32]), st.sampled_from([1, 2, 3])
WINDOWS, LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 40]), st.integers(1, 60)


def mask_of(pattern, num_text, unfinished=True):
    chunks = pattern.num_chunks(num_text) if unfinished else num_text // pattern.chunk
    kinds = reference.kinds(pattern, num_text, chunks * pattern.summaries)
    return reference.mask(pattern, *kinds)


def test_hand_drawn():
    """Chunks of 2, one summary each, window 1: columns are text rows 0 .. 6, then summaries a .. d."""
    drawn = """
    #...... ....
    ##..... ....
    ###.... ....
    ####... ....
    ..###.. #...
    ..####. #...
    ....### ##..
    ##..... #...
    ..##... .#..
    ....##. ..#.
    ......# ...#
    """
    rows = [line.replace(" ", "") for line in drawn.split("\n") if line.strip()]
    mask = mask_of(Pattern(2, 1, 1, 1.0), 7)[0]
    assert ["".join(".#"[int(x)] for x in row) for row in mask] == rows


def test_hand_drawn_with_two_summaries_and_two_documents():
    """Chunks of 1, two summaries each, window 0; the second document starts at chunk 2."""
    drawn = """
    #... ........
    .#.. ##......
    ..#. ........
    ...# ....##..
    #... #.......
    #... ##......
    .#.. ..#.....
    .#.. ..##....
    ..#. ....#...
    ..#. ....##..
    ...# ......#.
    ...# ......##
    """
    rows = [line.replace(" ", "") for line in drawn.split("\n") if line.strip()]
    first = torch.tensor([[0, 0, 2, 2]], dtype=torch.int32)
    mask = mask_of(Pattern(1, 0, 2, 1.0, first), 4)[0]
    assert ["".join(".#"[int(x)] for x in row) for row in mask] == rows


@settings(max_examples=60, deadline=None)
@given(chunk=CHUNKS, summaries=SUMMARIES, window=WINDOWS, num_text=LENGTHS)
def test_every_past_chunk_is_read_once_raw_or_by_its_summaries(chunk, summaries, window, num_text):
    pattern = Pattern(chunk, window, summaries, 1.0)
    mask = mask_of(pattern, num_text)[0]
    kinds, _ = reference.kinds(pattern, num_text, pattern.num_chunks(num_text) * summaries)
    for row in range(num_text):
        own = row // chunk
        for past in range(pattern.num_chunks(num_text)):
            raw = mask[row, :num_text][kinds[:num_text] == past]
            summed = mask[row, num_text:][kinds[num_text:] == past]
            if past > own:
                assert not raw.any()
                assert not summed.any()
            elif past == own:
                assert raw.sum() == row % chunk + 1
                assert not summed.any()
            else:
                assert (raw.all() and not summed.any()) or (summed.all() and not raw.any())
                assert raw.all() == (own - past <= window)
        formula = row % chunk + 1 + chunk * min(own, window) + summaries * max(0, own - window)
        assert mask[row].sum() == formula


@settings(max_examples=60, deadline=None)
@given(chunk=CHUNKS, summaries=SUMMARIES, window=WINDOWS, num_text=LENGTHS, data=st.data())
def test_bounds_of_loops_are_right_and_tight(chunk, summaries, window, num_text, data):
    pattern = Pattern(chunk, window, summaries, 1.0)
    mask = mask_of(pattern, num_text)[0, :num_text]
    start = data.draw(st.integers(0, num_text - 1))
    stop = data.draw(st.integers(start + 1, num_text))
    text_TN, summary_TN = mask[start:stop, :num_text], mask[start:stop, num_text:]

    first, last = pattern.text_keys(start, stop)
    some = text_TN.any(0).nonzero().flatten().tolist()
    assert some == list(range(first, last))
    first, last = pattern.text_keys_unmasked(start, stop)
    assert text_TN.all(0).nonzero().flatten().tolist() == list(range(first, last))
    all_read, some_read = pattern.summary_keys(start, stop)
    assert summary_TN.all(0).nonzero().flatten().tolist() == list(range(all_read))
    assert summary_TN.any(0).nonzero().flatten().tolist() == list(range(some_read))
    for row in range(num_text):
        assert mask[row, :num_text].nonzero()[0] == chunk * pattern.first_raw_chunk(row)

    first, last = pattern.text_readers(start, stop, num_text)
    readers = mask[:, start:stop].any(1).nonzero().flatten().tolist()
    assert readers == list(range(first, last))
    place = data.draw(st.integers(0, mask.shape[1] - num_text - 1))
    first, last = pattern.summary_readers(place, num_text)
    readers = mask[:, num_text + place :].any(1).nonzero().flatten().tolist()
    assert readers == list(range(first, last))


def test_first_chunks():
    document = torch.tensor([[7, 7, 7, 7, 7, 7, 9], [1, 1, 2, 2, 1, 1, 1]])
    got = first_chunks(document, 2)
    assert got.tolist() == [[0, 0, 0, 3], [0, 1, 2, 2]]
    assert got.dtype == torch.int32
    assert first_chunks(torch.zeros(2, 0).long(), 4).shape == (2, 0)
    assert first_chunks(torch.zeros(0, 5).long(), 4).shape == (0, 2)


@pytest.mark.parametrize(
    ("document", "chunk", "message"),
    [
        (
            torch.tensor([[0, 0, 0, 1]]),
            2,
            "document 1 starts at row 3 of sequence 0, inside a chunk of 2 rows",
        ),
        (torch.tensor([[0, 0], [0, 1]]), 2, "document 1 starts at row 1 of sequence 1, inside"),
        (torch.tensor([0, 0]), 2, r"document: expected whole numbers \(B, T\), got torch.int64 \(2,\)"),
        (torch.zeros(1, 2), 2, r"document: expected whole numbers \(B, T\), got torch.float32"),
        (torch.zeros(1, 2).long(), 0, "chunk: expected a whole number from 1"),
    ],
)
def test_documents_that_do_not_fit_are_named(document, chunk, message):
    with pytest.raises(ValueError, match=message):
        first_chunks(document, chunk)
