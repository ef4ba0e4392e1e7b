"""MaRI (arXiv 2602.23105): what the kernel bench needs on a GPU: ceilings, CUDA graphs, a foreign kernel.

Shape letters: N outputs, U columns of the user, I columns of candidates.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from feedworks.errors import ConfigError
from feedworks.metrics.latency import Timing, interleave
from feedworks_kernels import measuring

Provider = Callable[[], Tensor]


def ceilings() -> dict[str, float]:
    """Measure what this GPU gives.

    Returns:
        FLOP/s of a bf16 product of 8192^3, bytes/s of a copy of 4 GB (read and written both count), and the
        seconds of one more launch in a CUDA graph.
    """
    one = torch.zeros(1, device="cuda")
    launch = replayed([{"launch": lambda: one.add_(1)}], repeats=10)["launch"]
    return measuring.ceilings("cuda")._asdict() | {"launch_s": launch.p50_s}


def floor_s(shape: Mapping[str, int], itemsize: int, limits: Mapping[str, float]) -> float:
    """Return the least time: operations, or every byte read or written once, and one launch.

    Args:
        shape: B, R, U, I, N.
        itemsize: bytes of a number.
        limits: what `ceilings` returned.
    """
    rows, requests, user, item, outputs = (shape[letter] for letter in "BRUIN")
    flop = 2 * outputs * (rows * item + requests * user)
    moved = itemsize * (rows * item + requests * user + outputs * (user + item) + rows * outputs)
    return max(flop / limits["flop_per_s"], moved / limits["bytes_per_s"]) + limits["launch_s"]


def replayed(ways: Sequence[Mapping[str, Provider]], repeats: int) -> dict[str, Timing]:
    """Time every provider as a CUDA graph that goes round the sets of buffers; seconds of one call.

    Args:
        ways: provider -> call, once for each set of buffers.
        repeats: timed rounds.
    """
    calls = {name: [way[name] for way in ways] for name in ways[0]}
    graphs = {name: measuring.captured(each) for name, each in calls.items()}
    timings = interleave(
        {name: graph.replay for name, (graph, _) in graphs.items()},
        repeats=repeats,
        synchronise=torch.cuda.synchronize,
    )
    return {
        name: Timing(*(seconds / graphs[name][1] for seconds in timing)) for name, timing in timings.items()
    }


def ikbo_providers(
    path: str, shape: Sequence[int], columns: int, weight_user_NU: Tensor, weight_item_NI: Tensor
) -> dict[str, Provider]:
    """IKBO's kernel and its two library products on inputs of its own layout (candidate, width, column).

    Args:
        path: a copy of FBGEMM's `fbgemm_gpu/experimental/ikbo`.
        shape: candidates, users, U, I, N.
        columns: columns of each candidate.
        weight_user_NU: as ours.
        weight_item_NI: as ours.

    Raises:
        ConfigError: there is no IKBO at `path`.
    """
    # Its module of the Triton kernel also imports the one for Meta's fork of Triton, which only has to parse.
    name = "triton.language.extra.tlx"
    if name not in sys.modules:
        sys.modules[name] = _Anything(name)
    sys.path.insert(0, path)
    try:
        kernel = importlib.import_module("ikbo.ops.triton_ikbo_lce").triton_ikbo_lce
        library = importlib.import_module("ikbo.ops.torch_lce").torch_decomposed_lce
    except ImportError as error:
        folder = "fbgemm_gpu/experimental/ikbo"
        raise ConfigError(f"--ikbo {path}: {error}; expected FBGEMM's folder {folder}") from None
    finally:
        sys.path.remove(path)
    candidates, users, user, item, _ = shape
    options = {"device": weight_item_NI.device, "dtype": weight_item_NI.dtype}
    item_BIC = torch.randn(candidates, item, columns, **options)  # type: ignore[call-overload]
    user_RUC = torch.randn(users, user, columns, **options)  # type: ignore[call-overload]
    index_B = (torch.arange(candidates, device=weight_item_NI.device) * users // candidates).int()
    arguments = (weight_item_NI, weight_user_NU, item_BIC, user_RUC, index_B)
    return {"ikbo_triton": lambda: kernel(*arguments), "ikbo_two_products": lambda: library(*arguments)}


class _Anything(ModuleType):
    """Stands where a module is imported and named in code that never runs."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None
