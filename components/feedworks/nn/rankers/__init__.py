"""Ranking models that score a candidate for a user: plain PyTorch, one file each.

All read the ids of the user's and of the item's fields, and numbers beside them where there are some. They
return logits.
"""

from feedworks.nn.rankers.dcn import DCNv2
from feedworks.nn.rankers.din import DIN
from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.mlp import MLP
from feedworks.nn.rankers.mmoe import MMoE
from feedworks.nn.rankers.ppnet import PPNet
from feedworks.nn.rankers.tower import Tower

__all__ = ["DIN", "MLP", "DCNv2", "Features", "JoinedEmbedding", "MMoE", "PPNet", "Tower"]
