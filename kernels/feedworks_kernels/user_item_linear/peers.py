"""The same layer from a library's products, for benches, and layers drawn at random.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs, W = U + I.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels import onednn
from feedworks_kernels.user_item_linear import user_item_linear

OURS = "user_item_linear"
Provider = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The arguments of one call."""

    user_RU: Tensor
    item_BI: Tensor
    weight_NW: Tensor
    weight_user_NU: Tensor  # its columns, cut out once as at conversion
    weight_item_NI: Tensor
    bias_N: Tensor
    request_B: Tensor | None


def draw(sizes: Sequence[int], device: str, dtype: torch.dtype, seed: int) -> Layer:
    """Draw a layer's arguments of sizes B, R, U, I, N; candidates of one request lie side by side."""
    num_rows, num_requests, user, item, outputs = sizes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    weight_NW = normal(outputs, user + item) * (user + item) ** -0.5
    request_B = torch.randint(0, num_requests, (num_rows,), generator=generator, device=device).sort().values
    return Layer(
        user_RU=normal(num_requests, user),
        item_BI=normal(num_rows, item),
        weight_NW=weight_NW,
        weight_user_NU=weight_NW[:, :user].contiguous(),
        weight_item_NI=weight_NW[:, user:].contiguous(),
        bias_N=normal(outputs),
        request_B=request_B if num_requests > 1 else None,
    )


def exact(layer: Layer, num_rows: int) -> Tensor:
    """The first rows of the layer with relu in float64."""
    item_BI = layer.item_BI[:num_rows]
    request_B = torch.zeros(len(item_BI), dtype=torch.int64, device=item_BI.device)
    request_B = request_B if layer.request_B is None else layer.request_B[:num_rows]
    whole = torch.cat([layer.user_RU.index_select(0, request_B), item_BI], dim=1).double()
    return torch.relu(F.linear(whole, layer.weight_NW.double(), layer.bias_N.double()))


def providers(layer: Layer, compiled: bool) -> dict[str, Provider]:
    """Ours, two products of the library, tiling and concatenation, the wide product alone; more by device."""
    user_RU, item_BI, bias_N, request_B = layer.user_RU, layer.item_BI, layer.bias_N, layer.request_B
    weight_user_NU, weight_item_NI, weight_NW = layer.weight_user_NU, layer.weight_item_NI, layer.weight_NW

    def two_products() -> Tensor:
        partial_RN = F.linear(user_RU, weight_user_NU, bias_N)
        bias = partial_RN[0] if request_B is None else partial_RN.index_select(0, request_B)
        return torch.relu(torch.addmm(bias, item_BI, weight_item_NI.T))

    def tiled() -> Tensor:
        user_BU = (
            user_RU.expand(len(item_BI), -1) if request_B is None else user_RU.index_select(0, request_B)
        )
        return torch.cat([user_BU, item_BI], dim=1)

    ready_BW = tiled()
    ways: dict[str, Provider] = {
        OURS: lambda: user_item_linear(
            user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation="relu"
        ),
        "two_products": two_products,
        "tile_concat_product": lambda: torch.relu(F.linear(tiled(), weight_NW, bias_N)),
        "wide_product_alone": lambda: torch.relu(F.linear(ready_BW, weight_NW, bias_N)),
    }
    if onednn.can_multiply(item_BI):
        # addmm (MKL) is the slower product of fp32 on some CPUs; ours takes oneDNN, so the peer gets it too.
        ways["tile_concat_onednn"] = lambda: onednn.linear(tiled(), weight_NW, bias_N, "relu")
    if compiled:
        ways["two_products_compiled"] = torch.compile(two_products, dynamic=False)
    return ways
