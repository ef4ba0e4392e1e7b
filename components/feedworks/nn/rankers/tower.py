"""The stack of dense layers at the end of every ranker.

Shape legend: B rows, D width of the input, H width of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Tower:
    """How the dense layers of a ranker are built.

    Attributes:
        hidden: H of each layer.
        dropout: probability after each activation.
        batch_norm: normalise over the batch between product and activation.
    """

    hidden: tuple[int, ...]
    dropout: float = 0.0
    batch_norm: bool = False

    def layer(self, width: int, number: int) -> nn.Sequential:
        """One layer from `width` to `hidden[number]`: product, normalisation, ReLU, dropout."""
        hidden = self.hidden[number]
        norm = [nn.BatchNorm1d(hidden)] if self.batch_norm else []
        dropout = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(nn.Linear(width, hidden), *norm, nn.ReLU(), *dropout)

    def layers(self, width: int) -> nn.ModuleList:
        """All layers for an input `(B, width)`."""
        widths = (width, *self.hidden)
        return nn.ModuleList(self.layer(widths[number], number) for number in range(len(self.hidden)))

    def output_width(self, width: int) -> int:
        """Width after the last layer; without layers that of the input."""
        return self.hidden[-1] if self.hidden else width


class Dense(nn.Module):
    """Layers of a tower, and a product down to `outputs` numbers where they are asked for.

    Args:
        width: D.
        tower: the layers.
        outputs: width of the last product, which has no activation; 0 for none.
    """

    def __init__(self, width: int, tower: Tower, outputs: int = 0) -> None:
        super().__init__()
        self.layers = tower.layers(width)
        self.width = outputs or tower.output_width(width)
        self.last = nn.Linear(tower.output_width(width), outputs) if outputs else nn.Identity()

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return `(B, outputs)`, or the last layer's `(B, H)`."""
        for layer in self.layers:
            x_BD = layer(x_BD)
        last: Tensor = self.last(x_BD)
        return last
