"""user_item_linear: one layer over users and candidates, against a library's products.

Shape letters: B candidates, R requests, U columns of the user, I columns of candidates, N outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.registry import OURS, Case, Operator, Plan, Provider, Work, difference, relative_error, worst_error
from feedworks_kernels import user_item_linear
from feedworks_kernels.measuring import Call
from feedworks_kernels.testing import TOLERANCE, concatenated_linear, random_layer
from feedworks_kernels.user_item_linear import ACTIVATIONS, peers

_SHAPES = {
    "2000x(4000+400)x256": {"B": 2000, "R": 1, "U": 4000, "I": 400, "N": 256},
    "2000x(4000+400)x256, 16 users": {"B": 2000, "R": 16, "U": 4000, "I": 400, "N": 256},
    "1000x(512+128)x256": {"B": 1000, "R": 1, "U": 512, "I": 128, "N": 256},
    "4000x(1000+104)x128, 16 users": {"B": 4000, "R": 16, "U": 1000, "I": 104, "N": 128},
}
_FLOATS = ("user_RU", "item_BI", "weight_user_NU", "weight_item_NI", "bias_N")
_RESULTS = ("forward", *(f"d {name.rpartition('_')[0].replace('_', ' ')}" for name in _FLOATS))
_SWEPT = (
    (64, 1, 64, 64, 64),
    (150, 3, 70, 45, 40),
    (130, 50, 24, 100, 63),
    (1, 1, 5, 3, 2),
    (70, 7, 600, 16, 8),
)
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

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw widths that are no multiples of anything."""
        most = {"B": 300, "R": 9, "U": 200, "I": 150, "N": 130}
        return {letter: draw.randint(1, size) for letter, size in most.items()}

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

    def sweep(self, device: str) -> Iterable[Case]:
        """One request and several, whole tiles and ragged ones, every activation."""
        for number, activation in enumerate(ACTIVATIONS):
            for place, (rows, requests, user, item, outputs) in enumerate(_SWEPT):
                sizes = {"B": rows, "R": requests, "U": user, "I": item, "N": outputs, "activation": number}
                shape = f"B {rows}, R {requests}, U {user}, I {item}, N {outputs}, {activation}"
                dtype = ("fp32", "bf16", "fp16")[(place + number) % 3]
                yield Case(self.name, "all", shape, sizes, dtype, device)

    def errors(self, case: Case) -> list[tuple[str, float, float]]:
        """Forward and the gradients of all five arguments."""
        if "activation" not in case.sizes:
            return super().errors(case)
        activation = ACTIVATIONS[case.sizes["activation"]]
        sizes = [case.sizes[letter] for letter in "BRUIN"]
        sizes[1] *= sizes[1] > 1  # one request: no index
        layer = random_layer(torch.Generator().manual_seed(3), (sizes[0], *sizes[1:]), case.kind)  # type: ignore[arg-type]
        layer = {name: None if part is None else part.to(case.device) for name, part in layer.items()}
        plain = partial(concatenated_linear, activation=activation)
        exact = _with_gradients(plain, layer, torch.float64)
        # A sum near zero in bf16 falls to either side of relu's corner: the plain expression says how often.
        theirs = _with_gradients(plain, layer, case.kind)
        ours = [_with_gradients(partial(_ours, activation=activation), layer, case.kind) for _ in range(2)]
        allowed = self.tolerance(case)
        found = [
            (name, worst_error([part], [right]), max(allowed, 2 * worst_error([peer], [right])))
            for name, part, peer, right in zip(_RESULTS, ours[0], theirs, exact, strict=True)
        ]
        # The gradient of a user's row is a sum over its candidates, by atomics in any order.
        return [
            *found,
            ("forward, repeated", difference(ours[0][0], ours[1][0]), 0.0),
            ("backward, repeated", difference(ours[0][1:], ours[1][1:]), 0.1 * allowed),
        ]

    def error(self, case: Case, inputs: peers.Layer, result: Any) -> float:
        """Compare the first rows."""
        return relative_error(result[:_CHECKED_ROWS], peers.exact(inputs, _CHECKED_ROWS))


def _ours(layer: Mapping[str, Any], activation: str) -> Tensor:
    return user_item_linear(**layer, activation=activation)


def _with_gradients(
    run: Callable[[Mapping[str, Any]], Tensor], layer: Mapping[str, Tensor | None], kind: torch.dtype
) -> list[Tensor]:
    """Return the output and the gradients of all floats."""
    leaves = {
        name: part.to(kind).requires_grad_()
        for name, part in layer.items()
        if name in _FLOATS and part is not None
    }
    out = run({**layer, **leaves})
    # Rounded to bf16, so that it is the same number in every type.
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grad = grad.to(out.device, kind)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)]


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
