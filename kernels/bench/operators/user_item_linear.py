"""user_item_linear: one layer over users and candidates, against a library's products.

Shape letters: B candidates, R requests, U columns of the user, I columns of candidates, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.registry import OURS, Case, Operator, Plan, Provider, Work, relative_error
from feedworks_kernels.measuring import Call
from feedworks_kernels.testing import TOLERANCE
from feedworks_kernels.user_item_linear import peers

_SHAPES = {
    "2000x(4000+400)x256": {"B": 2000, "R": 1, "U": 4000, "I": 400, "N": 256},
    "2000x(4000+400)x256, 16 users": {"B": 2000, "R": 16, "U": 4000, "I": 400, "N": 256},
    "1000x(512+128)x256": {"B": 1000, "R": 1, "U": 512, "I": 128, "N": 256},
    "4000x(1000+104)x128, 16 users": {"B": 4000, "R": 16, "U": 1000, "I": 104, "N": 128},
}
# Rows of a result that are compared with float64.
_CHECKED_ROWS = 256


class UserItemLinear(Operator):
    """The layer with relu."""

    name = "user_item_linear"
    plan = Plan(
        modes=("forward",),
        shapes={"cpu": _SHAPES, "cuda": _SHAPES},
        quick={"300x(40+8)x16": {"B": 300, "R": 3, "U": 40, "I": 8, "N": 16}},
        check={"70x(20+10)x8": {"B": 70, "R": 3, "U": 20, "I": 10, "N": 8}},
        dtypes={"cpu": ("fp32",), "cuda": ("bf16", "fp32")},
    )

    def inputs(self, case: Case, seed: int) -> peers.Layer:
        """Draw a layer."""
        return peers.draw([case.sizes[letter] for letter in "BRUIN"], case.device, case.kind, seed)

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours, two products, tiling and concatenation, the wide product alone."""
        on_gpu = case.device == "cuda"
        names = [peers.OURS, "two_products", "tile_concat_product", "wide_product_alone"]
        names += ["two_products_compiled"] if on_gpu else ["tile_concat_onednn"]
        return [Provider(OURS if name == peers.OURS else name, _Bind(name)) for name in names]

    def work(self, case: Case) -> Work:
        """Each weight, row and result moves once."""
        rows, requests, user, item, outputs = (case.sizes[letter] for letter in "BRUIN")
        numbers = rows * item + requests * user + outputs * (user + item) + rows * outputs
        return Work(2.0 * outputs * (rows * item + requests * user), numbers * case.kind.itemsize)

    def tolerance(self, case: Case) -> float:
        """fp32 products of a GPU are TF32 where a caller asks for it; here nobody does."""
        return TOLERANCE[case.kind]

    def error(self, case: Case, inputs: peers.Layer, result: Any) -> float:
        """Compare the first rows."""
        return relative_error(result[:_CHECKED_ROWS], peers.exact(inputs, _CHECKED_ROWS))


class _Bind:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, layer: peers.Layer) -> Call:
        run = peers.providers(layer, compiled=self._name.endswith("_compiled"))[self._name]

        def call() -> torch.Tensor:
            with torch.inference_mode():
                return run()

        return call


OPERATOR = UserItemLinear()
