"""The catalogue: paths through the trie, shares within a bucket, unseen items, files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from feedworks.errors import ModelError
from feedworks.recochain.catalogue import FILE, Catalogue

from . import small


def test_nodes_are_where_an_items_path_stands_before_each_code():
    catalogue = small.catalogue()
    sids = [tuple(row) for row in catalogue.trie.sids().tolist()]
    for item, code in enumerate(catalogue.code_NL.tolist()):
        for level in range(3):
            prefixes = sorted({sid[:level] for sid in sids})
            assert catalogue.node_NL[item, level] == prefixes.index(tuple(code[:level]))


def test_shares_by_hand():
    catalogue = Catalogue.build(
        torch.arange(4),
        torch.tensor([[0], [1], [0], [0]]),
        torch.eye(4),
        torch.tensor([5, 3, 2, 0]),
        num_codes=2,
    )
    expected = torch.tensor([6 / 10, 1, 3 / 10, 1 / 10]).log()
    torch.testing.assert_close(catalogue.log_share_N, expected)


def test_unseen_items_stand_at_the_end_and_in_no_bucket():
    catalogue = small.catalogue()
    more = catalogue.with_unseen(torch.tensor([9, 8]), catalogue.code_NL[:2], torch.ones(2, 6))
    assert more.num_known == 40
    assert more.item_id_N[40:].tolist() == [9, 8]
    torch.testing.assert_close(more.vector_NV[40:].norm(dim=1), torch.ones(2))
    assert more.trie is catalogue.trie
    assert all(len(getattr(more, name)) == 42 for name in ("code_NL", "count_N", "node_NL", "log_share_N"))


def test_it_reads_back_what_it_wrote(tmp_path):
    catalogue = small.catalogue()
    catalogue.save(tmp_path)
    again = Catalogue.load(tmp_path)
    for name in ("item_id_N", "code_NL", "vector_NV", "count_N", "node_NL", "log_share_N"):
        assert torch.equal(getattr(catalogue, name), getattr(again, name))
    assert again.num_known == 40
    assert (again.num_levels, again.num_codes) == (3, 5)
    assert torch.equal(again.trie.sids(), catalogue.trie.sids())


@pytest.mark.parametrize("name", ["code_NL", "trie.bucket_item"])
def test_a_file_without_a_tensor_is_refused(tmp_path, name):
    small.catalogue().save(tmp_path)
    tensors = load_file(tmp_path / FILE)
    del tensors[name]
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ModelError, match=f"{name.removeprefix('trie.')}.*assign"):
        Catalogue.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ModelError, match="catalogue"):
        Catalogue.load(tmp_path)
