"""MaRI (arXiv 2602.23105): what a conversion found: products that were cut, and those that could not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "shortened", "user_only", "attention", "sum"]
Why = Literal[
    "non-linearity", "multiplication", "columns", "rows", "weight", "attention", "cost", "shape", "no rule"
]


@dataclass(frozen=True)
class Site:
    """A product, or a sum over fields, that costs less in the twin than in the model.

    Attributes:
        node: its name in the exported graph.
        user_width: columns of the user, Du.
        other_width: columns of candidates and crossings, Dr.
        outputs: N.
        positions: rows of the product for one candidate, more than 1 inside sequences.
        kind: `linear`: a product over columns of both sides, cut by side; `shortened`: one of candidates
            only, whose operand is shorter in the twin (a candidate repeated along the history);
            `user_only`: it runs once per request instead of once per row; `attention`: the user's keys and
            values are not repeated for the candidates; `sum`: a sum over fields of both sides, where those
            of the user are summed once.
        helped: what was moved out of the way between the inputs and the product, such as `batch_norm`.
        shared: the node whose product this one is a slice of, where several read the same input; else empty.
        width: columns of the product in the model, D.
    """

    node: str
    user_width: int
    other_width: int
    outputs: int
    positions: int
    kind: Kind = "linear"
    helped: tuple[str, ...] = ()
    shared: str = ""
    width: int = 0

    @property
    def cut(self) -> bool:
        """Whether the weight was cut by side."""
        return self.kind == "linear" and self.user_width > 0 and self.other_width > 0


@dataclass(frozen=True)
class Mixed:
    """Where user and candidate came together for good.

    Attributes:
        node: the operation's name in the exported graph.
        kind: the reason in a word.
        reason: for people.
    """

    node: str
    kind: Why
    reason: str


@dataclass(frozen=True)
class Refusal:
    """A product over numbers of user and candidates that stays whole.

    Attributes:
        node: its name in the exported graph.
        reason: why, for people; it names the operation in the way.
        kind: the reason in a word.
        at: name of the node in the way, or the product's own.
    """

    node: str
    reason: str
    kind: Why = "no rule"
    at: str = ""
