"""Texts of unequal lengths in one batch: chunks count from a text's first token, so padding goes last.

Shape letters: B batch, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Alignment(NamedTuple):
    """How far each row's text stands from the left, None where none does; and its length."""

    shift_B: Tensor | None
    length_B: Tensor

    @classmethod
    def of(cls, input_ids_BT: Tensor, mask_BT: Tensor | None) -> Alignment:
        """Read a padding mask, 1 for tokens.

        Raises:
            ValueError: the mask does not fit, a row is empty, or padding stands inside a text.
        """
        batch, num_text = input_ids_BT.shape
        if mask_BT is None:
            return cls(None, torch.full((batch,), num_text, device=input_ids_BT.device))
        if mask_BT.shape != input_ids_BT.shape:
            raise ValueError(
                f"attention_mask: expected {tuple(input_ids_BT.shape)}, got {tuple(mask_BT.shape)}"
            )
        token_BT = mask_BT.bool()
        length_B, shift_B = token_BT.sum(1), token_BT.int().argmax(1)
        place_T = torch.arange(num_text, device=mask_BT.device)
        expected_BT = (place_T >= shift_B[:, None]) & (place_T < (shift_B + length_B)[:, None])
        if not bool((length_B > 0).all()) or not torch.equal(expected_BT, token_BT):
            raise ValueError(
                "attention_mask: expected in each row one run of ones, padding on its left or right"
            )
        return cls(shift_B if bool(shift_B.any()) else None, length_B)

    def lengths(self) -> list[int]:
        """Return the tokens of each row."""
        found: list[int] = self.length_B.tolist()
        return found

    def align(self, rows_BT: Tensor) -> Tensor:
        """Move each row's text to the left; what was padding comes behind it."""
        return rows_BT if self.shift_B is None else self._roll(rows_BT, self.shift_B)

    def restore(self, rows_BTD: Tensor) -> Tensor:
        """Undo `align` on (B, T, D)."""
        return rows_BTD if self.shift_B is None else self._roll(rows_BTD, -self.shift_B)

    @staticmethod
    def _roll(rows: Tensor, shift_B: Tensor) -> Tensor:
        num_text = rows.shape[1]
        index_BT = (torch.arange(num_text, device=rows.device) + shift_B[:, None]) % num_text
        return rows[torch.arange(len(rows), device=rows.device)[:, None], index_BT]
