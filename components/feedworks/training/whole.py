"""A part of a batch that gives what the whole batch would: its noise, its means, its normalisation.

Several processes, or parts one after the other, see some rows of a batch each. Left alone they would draw
other noise than one process does, take means over fewer labels, and normalise by fewer rows. What is here
makes the loss of a step the same to rounding, however its batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from feedworks.training.batches import Part, num_rows

BatchT = TypeVar("BatchT")


class _Share(NamedTuple):
    """Rows `begin` to `begin + rows` of the `total` rows of `batch`; not `counted` where they stand in."""

    batch: Any
    begin: int
    rows: int
    total: int
    counted: bool
    cut_noise: bool


_SHARE: ContextVar[_Share | None] = ContextVar("share", default=None)


@contextmanager
def part_of(batch: Any, part: Part, module: nn.Module, *, cut_noise: bool) -> Iterator[None]:
    """Compute a part of a batch inside the block as the whole batch would have it.

    Args:
        batch: the whole of it, on the CPU.
        part: some of its rows.
        module: what is trained; its batch normalisations take the rows of all processes.
        cut_noise: draw dropout for the whole batch and keep the part's rows. The cost grows with the number
            of parts, so that this is for CPUs.
    """
    share = _Share(batch, part.begin, num_rows(part.batch), num_rows(batch), part.weight > 0, cut_noise)
    token = _SHARE.set(share)
    try:
        with ExitStack() as stack:
            if cut_noise:
                stack.enter_context(_CutNoise())  # type: ignore[no-untyped-call]
            if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
                stack.enter_context(_SharedNormalisation())
            yield
    finally:
        _SHARE.reset(token)


@contextmanager
def only_rows(kept: Callable[[Any], Tensor], batch: Any) -> Iterator[None]:
    """Say that the block computes some rows only.

    Args:
        kept: batch -> bool, which of its rows.
        batch: the part at hand.
    """
    share = _SHARE.get()
    if share is None:
        yield
        return
    kept_B = kept(share.batch)
    begin, total = int(kept_B[: share.begin].sum()), int(kept_B.sum())
    token = _SHARE.set(share._replace(begin=begin, rows=int(kept(batch).sum()), total=total))
    try:
        yield
    finally:
        _SHARE.reset(token)


def draw_rows(draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Draw numbers whose first dimension is the rows of the batch; on a CPU the same in any part.

    Args:
        draw: shape -> random numbers from torch's global stream.
        shape: what is wanted.
    """
    share = _SHARE.get()
    if share is None or not share.cut_noise or shape[0] != share.rows:
        return draw(shape)
    return draw((share.total, *shape[1:]))[share.begin : share.begin + share.rows]


def of_whole(mean: Tensor, count: Callable[[BatchT], Tensor], batch: BatchT) -> Tensor:
    """Scale a mean over anything but rows so that parts, weighed by their rows, give the mean of the whole.

    Args:
        mean: over what `count` counts in `batch`, 0 where there is none.
        count: batch -> the number of terms of the mean, from the batch alone.
        batch: the part at hand.
    """
    share = _SHARE.get()
    if share is None:
        return mean
    terms = count(share.batch).clamp(min=1).to(mean.device)
    return mean * (count(batch) * num_rows(share.batch) / (num_rows(batch) * terms))  # type: ignore[arg-type]


class _CutNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws dropout for all rows of the batch and keeps those of the part."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        share = _SHARE.get()
        if func is torch.ops.aten.bernoulli_.float and share and args[0].shape[:1] == (share.rows,):
            noise = args[0]
            # An equal order of the dimensions in memory takes the stream's numbers in an equal order.
            order = list(range(noise.ndim))
            if not noise.is_contiguous():
                order.sort(key=lambda place: -noise.stride(place))
            whole = torch.empty_permuted(
                (share.total, *noise.shape[1:]), order, dtype=noise.dtype, device=noise.device
            )
            whole.bernoulli_(*args[1:], **(kwargs or {}))
            return noise.copy_(whole[share.begin : share.begin + share.rows])
        return func(*args, **(kwargs or {}))


class _SharedNormalisation(TorchFunctionMode):
    """Batch normalisation over the rows of all processes; PyTorch's SyncBatchNorm wants a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    share = _SHARE.get()
    if not training or share is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    # A column that hardly varies makes much of rounding; the CPU's own kernel adds up in float64, too.
    wide = x.double() if x.device.type == "cpu" else x.float()
    own = float(share.counted)
    count = _over_processes(wide.new_tensor(own * x.numel() / x.shape[1]))
    if count < 2:
        raise ValueError("batch normalisation needs two rows or more in a training batch")
    mean = _over_processes(wide.sum(dims) * own) / count
    centred = wide - mean.view(shape)
    var = _over_processes(centred.square().sum(dims) * own) / count
    with torch.no_grad():
        for running, value in ((running_mean, mean), (running_var, var * count / (count - 1))):
            if running is not None:
                running.lerp_(value.to(running.dtype), momentum)
    y = centred * (var + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, for values and for gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _over_processes(value: Tensor) -> Tensor:
    return cast("Tensor", _Sum.apply(value))  # type: ignore[no-untyped-call]


def _summed(value: Tensor) -> Tensor:
    total = value.clone()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
