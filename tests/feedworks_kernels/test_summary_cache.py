"""SummaryCache against brute force in any order of calls; its bytes, and that a step looks at no number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from feedworks_kernels import CacheLayout, Rows, SummaryCache, cache_attention
from feedworks_kernels.summary_attention import eager_text
from feedworks_kernels.summary_decode import extension
from feedworks_kernels.testing import assert_close, forced, poisoned_memory

H, G, D = 4, 2, 4
FLOAT = torch.float64


def poison(cache):
    """Rows that nothing wrote must not matter: stale ones lie there once slots are used again."""
    cache.key_NGLD.fill_(torch.nan)
    cache.value_NGLD.fill_(torch.nan)


class Sequence:
    """All rows of one sequence, in order, and the definition of what its next rows read."""

    def __init__(self, layout):
        self.layout = layout
        self.text, self.summary = ([torch.zeros(G, 0, D, dtype=FLOAT)] * 2 for _ in range(2))

    def __len__(self):
        return self.text[0].shape[1]

    def attend(self, query_HD, text_rows, summary_rows):
        key, value = (
            torch.cat([text[:, text_rows], summary[:, summary_rows]], dim=1).repeat_interleave(H // G, dim=0)
            for text, summary in zip(self.text, self.summary, strict=True)
        )
        weight = (torch.einsum("hd,hld->hl", query_HD, key) * D**-0.5).softmax(dim=1)
        return torch.einsum("hl,hld->hd", weight, value)

    def append(self, text, summary):
        """Add rows (T and S of them); return nothing."""
        self.text = [torch.cat(pair, dim=1) for pair in zip(self.text, text, strict=True)]
        self.summary = [torch.cat(pair, dim=1) for pair in zip(self.summary, summary, strict=True)]

    def text_row(self, query_HD):
        chunk = (len(self) - 1) // self.layout.chunk
        window = chunk if self.layout.window is None else self.layout.window
        raw = max(0, chunk - window)
        return self.attend(
            query_HD, slice(raw * self.layout.chunk, None), slice(0, raw * self.layout.summaries)
        )

    def summary_row(self, query_HD, j):
        first = len(self) // self.layout.chunk - 1
        own = first * self.layout.summaries
        return self.attend(query_HD, slice(first * self.layout.chunk, None), slice(own, own + j + 1))


class Machine(RuleBasedStateMachine):
    """Prompts, tokens, cancellations and growth in any order, slots in any state."""

    @initialize(
        chunk=st.sampled_from([1, 2, 4]),
        window=st.sampled_from([0, 1, 2, 9, None]),
        summaries=st.sampled_from([1, 2]),
        seed=st.integers(0, 2**31),
        form=st.sampled_from(["eager", "reference"]),
    )
    def start(self, chunk, window, summaries, seed, form):
        self.generator = torch.Generator().manual_seed(seed)
        layout = CacheLayout(chunk, window, 6 * chunk + 3, summaries)
        self.cache = SummaryCache(layout, 3, G, D, dtype=FLOAT)
        poison(self.cache)
        self.sequences = [Sequence(layout) for _ in range(3)]
        self.form = form

    def rows(self, batch, number):
        shapes = [(batch, heads, number, D) for heads in (H, G, G)]
        return Rows(*(torch.randn(shape, generator=self.generator, dtype=FLOAT) for shape in shapes))

    @precondition(lambda self: any(not len(each) for each in self.sequences))
    @rule(lengths=st.lists(st.integers(0, 27), min_size=1, max_size=3), spare=st.integers(0, 2))
    def prefill(self, lengths, spare):
        layout = self.cache.layout
        slots = [i for i, each in enumerate(self.sequences) if not len(each)][: len(lengths)]
        lengths = [min(length, layout.capacity) for length in lengths[: len(slots)]]
        # Right of a prompt may be anything.
        num_text = max(lengths) + spare
        text = self.rows(len(slots), num_text)
        summary = self.rows(len(slots), layout.summaries * -(-num_text // layout.chunk))
        self.cache.prefill(slots, text, summary, lengths)
        for b, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            kept = length // layout.chunk * layout.summaries
            self.sequences[slot].append(
                [x[b, :, :length] for x in text[1:]], [x[b, :, :kept] for x in summary[1:]]
            )

    @rule(choice=st.lists(st.sampled_from([0, 1, 2, -1]), min_size=1, max_size=5), given=st.integers(0, 2))
    def step(self, choice, given):
        layout = self.cache.layout
        slots = [s for i, s in enumerate(choice) if s == -1 or s not in choice[:i]]
        slots = [-1 if s == -1 or len(self.sequences[s]) == layout.capacity else s for s in slots]
        ends = [s >= 0 and len(self.sequences[s]) % layout.chunk == layout.chunk - 1 for s in slots]
        # Summaries of all, of some that hold those needed, or of none where none is needed.
        ending = [b for b, end in enumerate(ends) if end or (given == 1 and b % 2)]
        with_all = given == 2 or (given == 0 and any(ends))
        text = self.rows(len(slots), 1)
        summary = self.rows(len(slots) if with_all else len(ending), layout.summaries)
        ending = list(range(len(slots))) if with_all else ending
        names = {} if with_all or not ending else {"ending_S": torch.tensor(ending)}
        with forced(self.form):
            out = self.cache.step(text, summary if ending else None, slot_B=torch.tensor(slots), **names)
        for b in range(len(slots)):
            place = ending.index(b) if b in ending else None
            mine = [] if place is None else [x[place] for x in summary]
            self.check(slots[b], ends[b], [x[b] for x in text], mine, out, b, place)

    def check(self, slot, ends, text, summary, out, b, place):
        if slot == -1:
            assert not out.text_BHQD[b].any()
        else:
            nothing = [x[:, :0] for x in text[1:]]
            self.sequences[slot].append(text[1:], summary[1:] if ends else nothing)
            expected = self.sequences[slot].text_row(text[0][:, 0])
            assert_close(out.text_BHQD[b, :, 0], expected, FLOAT)
        for j in range(self.cache.layout.summaries if place is not None else 0):
            got = out.summary_BHmD[place, :, j]
            expected = (
                self.sequences[slot].summary_row(summary[0][:, j], j) if ends else torch.zeros_like(got)
            )
            assert_close(got, expected, FLOAT)

    @rule(slot=st.integers(0, 2), number=st.integers(1, 15), by_blocks=st.booleans())
    def extend(self, slot, number, by_blocks):
        layout, sequence = self.cache.layout, self.sequences[slot]
        number = min(number, layout.capacity - len(sequence))
        if not number:
            return
        ended = (len(sequence) + number) // layout.chunk - len(sequence) // layout.chunk
        text, summary = self.rows(1, number), self.rows(1, ended * layout.summaries)
        plan = extension_by(by_blocks, self.cache, len(sequence), number)
        out = self.cache.extend(slot, text, summary, plan)
        for t in range(number):
            sequence.append([x[0, :, t : t + 1] for x in text[1:]], [x[0, :, :0] for x in summary[1:]])
            expected = sequence.text_row(text.query_BHTD[0, :, t])
            assert_close(out.text_BHQD[0, :, t], expected, FLOAT)
            if len(sequence) % layout.chunk:
                continue
            done = len(sequence) // layout.chunk - (len(sequence) - t - 1) // layout.chunk - 1
            new = slice(done * layout.summaries, (done + 1) * layout.summaries)
            sequence.append([x[0, :, :0] for x in text[1:]], [x[0, :, new] for x in summary[1:]])
            for j in range(layout.summaries):
                got = out.summary_BHmD[0, :, new][:, j]
                assert_close(got, sequence.summary_row(summary.query_BHTD[0, :, new][:, j], j), FLOAT)

    @rule(slot=st.integers(0, 2))
    def reset(self, slot):
        self.cache.reset([slot])
        self.sequences[slot] = Sequence(self.cache.layout)
        for cache in (self.cache.key_NGLD, self.cache.value_NGLD):
            cache[slot] = torch.nan  # a row that the next one reads before writing it shows

    @rule(more=st.integers(0, 7))
    def reserve(self, more):
        if self.cache.layout.capacity < 50:
            self.cache.reserve(self.cache.layout.capacity + more)
            for each in self.sequences:
                each.layout = self.cache.layout

    @invariant()
    def holds_what_it_says(self):
        if hasattr(self, "cache"):
            assert self.cache.length_N.tolist() == [len(each) for each in self.sequences]
            rows = sum(
                len(each) % each.layout.chunk
                + each.layout.chunk * min(len(each) // each.layout.chunk, each.layout.ring_chunks)
                + (each.layout.window is not None) * each.summary[0].shape[1]
                for each in self.sequences
            )
            assert self.cache.used_bytes() == 2 * 8 * G * D * rows


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAnyOrder = Machine.TestCase


def extension_by(by_blocks, cache, length, number):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "_LEAST_TEXT", 1 if by_blocks else 10**9)
        return cache.extension(length, number)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 0.3), (torch.float64, 0.3), (torch.bfloat16, 0.3), (torch.float64, 300.0)],
)  # the last one's sums of weights would overflow without each row's maximum
@pytest.mark.parametrize(("window", "summaries"), [(0, 1), (3, 2), (20, 1), (10**6, 1), (None, 1)])
def test_many_tokens_go_by_blocks_as_by_one_product(window, summaries, scale, dtype):
    torch.manual_seed(0)
    layout = CacheLayout(8, window, 1200, summaries)
    caches = [SummaryCache(layout, 1, G, D, dtype=dtype) for _ in range(2)]
    length = 0
    for number in (5, 299, 64, 7, 500, 3, 290):  # the ring goes round, chunks are left unfinished
        ended = (length + number) // 8 - length // 8
        new = rows(1, number, dtype), rows(1, ended * summaries, dtype)
        outs = [
            cache.extend(0, *new, extension_by(by_blocks, cache, length, number), scale=scale)
            for by_blocks, cache in zip((True, False), caches, strict=True)
        ]
        for got, expected in zip(*outs, strict=True):
            assert_close(got, expected, dtype)
        length += number


def test_masks_of_narrow_tiles_are_not_mixed_up(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(eager_text, "_COLUMNS", 64)
    caches = [SummaryCache(CacheLayout(8, 3, 1200), 1, G, D, dtype=FLOAT) for _ in range(2)]
    length = 0
    for number in (300, 299, 500):
        new = rows(1, number, FLOAT), rows(1, (length + number) // 8 - length // 8, FLOAT)
        outs = [
            cache.extend(0, *new, extension_by(by_blocks, cache, length, number))
            for by_blocks, cache in zip((True, False), caches, strict=True)
        ]
        for got, expected in zip(*outs, strict=True):
            assert_close(got, expected, FLOAT)
        length += number


def rows(batch, number, dtype=torch.float32, device="cpu", heads=(H, G, G), width=D):
    return Rows(*(torch.randn(batch, n, number, width, dtype=dtype, device=device) for n in heads))


def test_an_extension_says_what_is_wrong():
    cache = SummaryCache(CacheLayout(4, 1, 16), 2, G, D)
    plan = cache.extension(0, 6)
    text, summary = rows(1, 6), rows(1, 1)
    with pytest.raises(ValueError, match="12 tokens behind 5: expected at least 1, and together at most 16"):
        cache.extension(5, 12)
    cache.extend(1, text, summary, plan)
    with pytest.raises(ValueError, match="slot 1 holds 6 tokens: the extension is for 0"):
        cache.extend(1, text, summary, plan)
    with pytest.raises(ValueError, match=r"summary query: expected torch.float32 \(1, 4, 1, 4\)"):
        cache.extend(0, text, rows(1, 2), plan)
    with pytest.raises(ValueError, match="slot 2"):
        cache.extend(2, text, summary, plan)
    assert cache.length_N.tolist() == [0, 6]


def test_order_of_the_rows_does_not_matter():
    cache = SummaryCache(CacheLayout(4, 3, 100, 2), 1, G, D, dtype=FLOAT)
    cache.prefill([0], rows(1, 70, FLOAT), rows(1, 36, FLOAT))
    places = cache.places(summaries=False)
    start, stop = int(places.start_BQ), int(places.stop_BQ)
    order = torch.arange(cache.layout.num_rows)
    order[start:stop] = start + torch.randperm(stop - start)
    query = torch.randn(1, H, 1, D, dtype=FLOAT)
    slices = torch.tensor([[start]]), torch.tensor([[stop]])
    expected = cache_attention(query, cache.key_NGLD, cache.value_NGLD, *slices)
    got = cache_attention(query, cache.key_NGLD[:, :, order], cache.value_NGLD[:, :, order], *slices)
    assert_close(got, expected, FLOAT)


# Tokens; how often a cache of these layers, or of three of four of them, fits into one of the whole text:
# published figures for W 128, k 8, m 1 (working space included).
@pytest.mark.parametrize(
    ("num_tokens", "pure", "hybrid"),
    [
        (4096, 2.65, 1.88),
        (8192, 3.98, 2.28),
        (16384, 5.32, 2.56),
        (32768, 6.39, 2.72),
        (65536, 7.10, 2.81),
        (131072, 7.53, 2.86),
        (100_003, None, None),
    ],
)
def test_bytes_are_the_formula(num_tokens, pure, hybrid):
    near = SummaryCache(CacheLayout(8, 128, num_tokens), 2, 8, 128, dtype=torch.bfloat16, device="meta")
    full = SummaryCache(CacheLayout(8, None, num_tokens), 2, 8, 128, dtype=torch.bfloat16, device="meta")
    row_bytes = 2 * 8 * 128 * 2
    kept = num_tokens % 8 + 8 * min(num_tokens // 8, 128) + num_tokens // 8
    assert near.used_bytes([num_tokens] * 2) == 2 * row_bytes * kept
    assert full.used_bytes([num_tokens] * 2) == 2 * row_bytes * num_tokens
    for cache, used in ((near, kept), (full, num_tokens)):
        assert cache.num_bytes == cache.key_NGLD.nbytes + cache.value_NGLD.nbytes
        assert 1 <= cache.num_bytes / (2 * row_bytes * used) <= 1.01
    if pure:
        plain = full.used_bytes([num_tokens] * 2)
        assert plain / near.num_bytes == pytest.approx(pure, abs=0.006)
        assert 4 * plain / (3 * near.num_bytes + plain) == pytest.approx(hybrid, abs=0.006)


def test_a_step_looks_at_no_number():
    """A tensor of the meta device has none: whatever looks fails, as `prefill` does."""
    cache = SummaryCache(CacheLayout(4, 2, 64, 2), 3, G, D, device="meta")
    text, summary = rows(3, 1, device="meta"), rows(3, 2, device="meta")
    with forced("eager"):
        assert cache.step(text, summary).text_BHQD.shape == (3, H, 1, D)
        ending = torch.empty(3, dtype=torch.int64, device="meta")
        assert cache.step(text, summary, ending_S=ending).summary_BHmD.shape == (3, H, 2, D)
        assert cache.step(text, slot_B=ending).summary_BHmD is None
    prompt = rows(1, 9, device="meta"), rows(1, 6, device="meta")
    cache.prefill([0], *prompt, trusted=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        cache.prefill([0], *prompt)


@pytest.mark.parametrize(
    ("summaries", "backend"),
    [(True, "aot_eager"), (False, "aot_eager"), pytest.param(True, "inductor", marks=pytest.mark.slow)],
)
def test_a_step_of_all_slots_compiles_to_one_graph(summaries, backend):
    layout = CacheLayout(3, 2, 30, 1)
    caches = [SummaryCache(layout, 2, G, D) for _ in range(2)]
    prompt = rows(2, 10), rows(2, 4)
    for cache in caches:
        cache.prefill([0, 1], *prompt, [10, 9])

    def step(cache, text, summary, slot):
        return cache.step(text, summary, slot_B=slot)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(8 if summaries else 1):
        new = rows(2, 1), rows(2, 1) if summaries else None
        slot = torch.tensor([1, 0])
        with torch.no_grad():
            expected, got = step(caches[0], *new, slot), compiled(caches[1], *new, slot)
        assert_close(got.text_BHQD, expected.text_BHQD, torch.float32)
        if summaries:
            assert_close(got.summary_BHmD, expected.summary_BHmD, torch.float32)
    assert caches[0].length_N.tolist() == caches[1].length_N.tolist()


def test_places_serve_all_layers():
    layout = CacheLayout(3, 2, 30, 1)
    layers = [SummaryCache(layout, 3, G, D) for _ in range(4)]
    for _ in range(12):
        new = rows(2, 1), rows(2, 1)
        places = layers[0].places(torch.tensor([2, 0]))
        shared = [layer.step(*new, places=places) for layer in layers[:2]]
        own = [layer.step(*new, slot_B=torch.tensor([2, 0])) for layer in layers[2:]]
        for out in (*shared, *own):
            assert torch.equal(out.text_BHQD, own[0].text_BHQD)
            assert torch.equal(out.summary_BHmD, own[0].summary_BHmD)
    assert all(layer.length_N.tolist() == [12, 0, 12] for layer in layers)


def test_a_new_cache_holds_zeros_whatever_the_memory_held():
    """NaN left in fresh memory changed the last bits of a step: it took another way round them."""
    layout = CacheLayout(chunk=4, window=3, summaries=1, capacity=20)
    with poisoned_memory():
        cache = SummaryCache(layout, 2, G, D, dtype=FLOAT)
        cache.reserve(40)
    assert not cache.key_NGLD.any()
    assert not cache.value_NGLD.any()
