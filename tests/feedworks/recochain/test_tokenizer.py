"""Residual k-means: the error falls level by level, a seed gives one result, codes lead back to items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedworks.errors import ModelError
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import TokenizerConfig
from feedworks.recochain.tokenizer import BALANCE_SLACK, Tokenizer

from . import small

CONFIG = TokenizerConfig(levels=4, codes=8, iterations=8)


def vectors(num_items: int = 300, seed: int = 0) -> np.ndarray:
    """Unequal clusters, so that balancing has something to do."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((20, 8))
    member = np.minimum(rng.geometric(0.2, num_items) - 1, 19)
    table = centre[member] + 0.3 * rng.standard_normal((num_items, 8))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_property_1_the_error_falls_with_every_level(balanced, normalise, seed):
    table = vectors(seed=seed)
    tokenizer = Tokenizer.fit(table, replace(CONFIG, balanced=balanced, normalise=normalise), seed)
    assert tokenizer.codebooks_LCV.shape == (4, 8, 8)
    if normalise:  # the residual is scaled up to length 1 before each level: the angle is what shrinks
        assert tokenizer.errors(torch.from_numpy(table))[0] < 1
        return
    errors = tokenizer.errors(torch.from_numpy(table))
    assert all(after < before for before, after in zip([1.0, *errors], errors, strict=False))
    by_hand = torch.from_numpy(table)
    codes = tokenizer.encode(by_hand)
    for level in range(4):
        distance = torch.cdist(by_hand, tokenizer.codebooks_LCV[level])
        assert (distance.gather(1, codes[:, level, None])[:, 0] <= distance.min(dim=1).values + 1e-5).all()
        by_hand = by_hand - tokenizer.codebooks_LCV[level][codes[:, level]]
        assert by_hand.square().sum(dim=1).mean().item() == pytest.approx(errors[level], rel=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_property_1_a_seed_gives_one_tokenizer(balanced):
    config = replace(CONFIG, balanced=balanced, sample_size=200)
    first, again = (Tokenizer.fit(vectors(), config, 3) for _ in range(2))
    assert torch.equal(first.codebooks_LCV, again.codebooks_LCV)
    other = Tokenizer.fit(vectors(), config, 4)
    assert not torch.equal(first.codebooks_LCV, other.codebooks_LCV)


def test_property_1_codes_lead_to_buckets_and_buckets_to_items():
    table = torch.from_numpy(vectors())
    tokenizer = Tokenizer.fit(table.numpy(), replace(CONFIG, levels=2), 0)
    codes = tokenizer.encode(table)
    catalogue = Catalogue.build(torch.arange(300), codes, table, torch.ones(300).long(), tokenizer.num_codes)
    leaf = catalogue.trie.find(codes)
    place, item = catalogue.trie.expand(leaf)
    assert catalogue.trie.num_sids < 64 < 300
    for row in range(300):
        bucket = item[place == row]
        assert row in bucket
        assert (codes[bucket] == codes[row]).all()
    _, every = catalogue.trie.expand(torch.arange(catalogue.trie.num_sids))
    assert sorted(every.tolist()) == list(range(300))


def test_a_sample_is_enough_to_encode_all():
    table = torch.from_numpy(vectors())
    tokenizer = Tokenizer.fit(table.numpy(), replace(CONFIG, sample_size=100), 0)
    assert tokenizer.encode(table).shape == (300, 4)
    errors = tokenizer.errors(table)
    assert errors[3] < errors[0] < 1


def test_balancing_evens_out_the_clusters():
    table = torch.from_numpy(vectors())

    def largest(balanced: bool) -> int:
        made = Tokenizer.fit(table.numpy(), replace(CONFIG, levels=1, balanced=balanced), 0)
        return int(np.bincount(made.encode(table)[:, 0]).max())

    assert largest(True) < largest(False)
    assert largest(True) <= 2 * BALANCE_SLACK * 300 / 8


def test_fewer_items_than_codes_lower_the_codes():
    table = vectors(5)
    tokenizer = Tokenizer.fit(table, CONFIG, 0)
    assert tokenizer.num_codes == 5
    assert tokenizer.errors(torch.from_numpy(table))[0] == pytest.approx(0, abs=1e-6)


def test_it_reads_back_what_it_wrote(tmp_path):
    tokenizer = Tokenizer.fit(vectors(), replace(CONFIG, normalise=True), 0)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.normalise
    table = torch.from_numpy(vectors())
    assert torch.equal(tokenizer.encode(table), again.encode(table))


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer.load(tmp_path)
    small.catalogue().save(tmp_path)
    (tmp_path / "catalogue.safetensors").rename(tmp_path / "tokenizer.safetensors")
    with pytest.raises(ModelError, match="is not a tokenizer; fit it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer.load(tmp_path)
