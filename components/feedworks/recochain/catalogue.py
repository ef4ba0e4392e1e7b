"""RecoChain (arXiv 2604.25787): the items a model can recommend: ids, codes, vectors and the trie of SIDs.

Items are numbered by falling popularity in the training split, so item 0 is the most popular one and the
items of a bucket stand in order of popularity.
Shape legend: N items, L levels, V width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks.errors import ModelError
from feedworks.recochain.trie import Trie
from feedworks.training.checkpoint import read_tensors, save_tensors

FILE = "catalogue.safetensors"
_COLUMNS = ("item_id_N", "code_NL", "vector_NV", "count_N", "node_NL", "log_share_N")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Everything about the items that training, search and serving share.

    Attributes:
        item_id_N: the contract's item ids.
        code_NL: semantic IDs, int64.
        vector_NV: item vectors of length 1 (or 0 where an item has none).
        count_N: events in the training split.
        node_NL: the trie node that an item's path stands on before each of its codes.
        log_share_N: log of the item's share in its bucket's training events, each item counted once more:
            what an item's probability is, given its semantic ID.
        trie: the set of existing semantic IDs.
        num_known: items that were there in training; `with_unseen` appends others.
        block_widths: widths of the parts of a vector, one for each source.
    """

    item_id_N: Tensor
    code_NL: Tensor
    vector_NV: Tensor
    count_N: Tensor
    node_NL: Tensor
    log_share_N: Tensor
    trie: Trie
    num_known: int
    block_widths: tuple[int, ...]

    @classmethod
    def build(
        cls,
        item_id_N: Tensor,
        code_NL: Tensor,
        vector_NV: Tensor,
        count_N: Tensor,
        num_codes: int,
        block_widths: Sequence[int] | None = None,
    ) -> Catalogue:
        """Index the semantic IDs of all items; without widths a vector is one block."""
        trie = Trie.build(code_NL, num_codes)
        node_N = trie.find(code_NL)
        log_share_N = _log_share(node_N, count_N, trie.num_sids)
        nodes = []
        for level in reversed(trie.levels):
            node_N = torch.searchsorted(level.child_start, node_N.int(), right=True) - 1
            nodes.append(node_N)
        node_NL = torch.stack(nodes[::-1], dim=1)
        known = len(code_NL)
        widths = tuple(block_widths or (vector_NV.shape[1],))
        return cls(item_id_N, code_NL, vector_NV, count_N, node_NL, log_share_N, trie, known, widths)

    @property
    def num_codes(self) -> int:
        """C, codes of one level."""
        return self.trie.num_codes

    @property
    def num_levels(self) -> int:
        """L, codes of one semantic ID."""
        return self.trie.num_levels

    def save(self, folder: Path) -> None:
        """Write one safetensors file into `folder`."""
        tensors = {f"trie.{name}": tensor for name, tensor in self.trie.tensors().items()}
        for name in _COLUMNS:
            tensors[name] = getattr(self, name)
        tensors["block_widths"] = torch.tensor(self.block_widths)
        save_tensors(folder / FILE, tensors)

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, damaged or incomplete.
        """
        tensors = read_tensors(folder / FILE)
        trie = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("trie.")}
        try:
            columns = [tensors[name] for name in _COLUMNS]
        except KeyError as error:
            raise ModelError(
                f"{folder / FILE}: tensor {error} is missing; assign semantic IDs again"
            ) from None
        item_id_N, code_NL, vector_NV, count_N, node_NL, log_share_N = columns
        index, known = Trie.from_tensors(trie), len(item_id_N)
        widths = tuple(tensors["block_widths"].tolist())
        return cls(item_id_N, code_NL, vector_NV, count_N, node_NL, log_share_N, index, known, widths)

    def to(self, device: torch.device | str) -> Catalogue:
        """Return the same catalogue on `device`."""
        moved: dict[str, Tensor] = {name: getattr(self, name).to(device) for name in _COLUMNS}
        return Catalogue(
            **moved, trie=self.trie.to(device), num_known=self.num_known, block_widths=self.block_widths
        )

    def with_unseen(self, item_id_M: Tensor, code_ML: Tensor, vector_MV: Tensor) -> Catalogue:
        """Append items that may stand in a history but are never recommended."""
        return Catalogue(
            torch.cat((self.item_id_N, item_id_M)),
            torch.cat((self.code_NL, code_ML)),
            torch.cat((self.vector_NV, F.normalize(vector_MV, dim=1))),
            torch.cat((self.count_N, torch.zeros_like(item_id_M))),
            torch.cat((self.node_NL, torch.zeros_like(code_ML))),
            torch.cat((self.log_share_N, torch.zeros_like(vector_MV[:, 0]))),
            trie=self.trie,
            num_known=self.num_known,
            block_widths=self.block_widths,
        )


def _log_share(leaf_N: Tensor, count_N: Tensor, num_sids: int) -> Tensor:
    weight_N = count_N.float() + 1
    total_S = torch.zeros(num_sids).index_add_(0, leaf_N, weight_N)
    return (weight_N / total_S[leaf_N]).log()
