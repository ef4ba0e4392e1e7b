"""What a bench knows of an operator: its shapes, inputs, providers, work, and how wrong a result is.

`operators/` holds one module for each; `operators()` lists them. The runner (timing.py) does the rest: it
checks every provider against float64, then times those that are right, side by side.
"""

from __future__ import annotations

import importlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from feedworks_kernels.measuring import Call
from feedworks_kernels.testing import TOLERANCE, forced

OURS = "feedworks"
Sizes = Mapping[str, int]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# The quick ones first: a run that runs out of time has the most rows.
_MODULES = ("user_item_linear", "residual_quantize", "beam_step", "summary_decode", "summary_attention")


class Case(NamedTuple):
    """One measurement: all providers do this."""

    op: str
    mode: str
    shape: str
    sizes: Sizes
    dtype: str
    device: str

    @property
    def kind(self) -> torch.dtype:
        """The type of the floats."""
        return DTYPES[self.dtype]

    def label(self) -> str:
        """Name the case for people."""
        return f"{self.op} {self.mode} {self.shape} {self.dtype}"


class Work(NamedTuple):
    """What a perfect program has to do: each input byte read and each output byte written once."""

    flops: float
    num_bytes: float


class Provider(NamedTuple):
    """One way to do a case.

    Attributes:
        name: stands in the results; `OURS` is ours.
        bind: inputs -> a call that does the whole operation once and returns its result; may compile.
        missing: why it cannot run here; empty if it can.
        tolerance: largest error; None: what the operator allows in this type.
        computes: set where it computes something else (a baseline): then `error` is not asked.
        read: (inputs, what the call returned) -> the operator's result, outside the clock.
    """

    name: str
    bind: Callable[[Any], Call]
    missing: str = ""
    tolerance: float | None = None
    computes: str = ""
    read: Callable[[Any, Any], Any] | None = None


class Plan(NamedTuple):
    """What of an operator is measured.

    Attributes:
        modes: such as forward, backward, decode.
        shapes: device -> name -> sizes that are timed.
        quick: sizes that take about a second together.
        check: small and awkward sizes that stand before every timing.
        dtypes: device -> types.
    """

    modes: tuple[str, ...]
    shapes: Mapping[str, Mapping[str, Sizes]]
    quick: Mapping[str, Sizes]
    check: Mapping[str, Sizes]
    dtypes: Mapping[str, tuple[str, ...]]


class Operator(ABC):
    """One operator. Subclasses set the two attributes and answer the four questions."""

    name: str
    plan: Plan

    def cases(self, device: str, quick: bool) -> list[Case]:
        """List what is timed on a device."""
        shapes = self.plan.quick if quick else self.plan.shapes[device]
        return [
            Case(self.name, mode, name, sizes, dtype, device)
            for mode in self.plan.modes
            for dtype in self.plan.dtypes[device]
            for name, sizes in shapes.items()
            if self.wanted(mode, name, device)
        ]

    def checks(self, case: Case) -> list[Case]:
        """List the small cases that stand before a timed one."""
        return [case._replace(shape=name, sizes=sizes) for name, sizes in self.plan.check.items()]

    def wanted(self, mode: str, shape: str, device: str) -> bool:
        """Tell whether a shape is timed in a mode; some would take too long."""
        del mode, shape, device
        return True

    def tolerance(self, case: Case) -> float:
        """Return the largest relative error that the type explains."""
        return TOLERANCE[case.kind]

    def sweep(self, device: str) -> Iterable[Case]:
        """List the cases of the exactness table."""
        return [
            Case(self.name, mode, name, sizes, dtype, device)
            for mode in self.plan.modes
            for dtype in self.plan.dtypes[device]
            for name, sizes in {**self.plan.check, **self.plan.quick}.items()
        ]

    def random_case(self, draw: random.Random, device: str) -> Case:
        """Draw a case for `errors`."""
        sizes = self.random_sizes(draw)
        shape = ", ".join(f"{name} {size}" for name, size in sizes.items())
        mode, dtype = draw.choice(self.plan.modes), draw.choice(self.plan.dtypes[device])
        return Case(self.name, mode, shape, sizes, dtype, device)

    @abstractmethod
    def random_sizes(self, draw: random.Random) -> Sizes:
        """Draw sizes of a small case, awkward ones among them."""

    def errors(self, case: Case) -> list[tuple[str, float, float]]:
        """Return (result, its error against float64, what is allowed) of ours for a case of `sweep`."""
        inputs = self.inputs(case, seed=7)
        ours = next(each for each in self.providers(case) if each.name == OURS)
        call = ours.bind(inputs)
        first, again = (_read(ours, inputs, call()) for _ in range(2))
        return [
            (case.mode, self.error_of(case, ours, inputs), self.tolerance(case)),
            (f"{case.mode}, repeated", difference(first, again), self.repeat_tolerance(case)),
        ]

    def repeat_tolerance(self, case: Case) -> float:
        """Return how much two runs on the same inputs may differ: not at all, without atomic sums."""
        del case
        return 0.0

    def error_of(self, case: Case, provider: Provider, inputs: Any) -> float:
        """Run a provider once and compare; NaN where it computes something else."""
        result = provider.bind(inputs)()
        if provider.computes:
            return math.nan
        return self.error(case, inputs, _read(provider, inputs, result))

    @abstractmethod
    def inputs(self, case: Case, seed: int) -> Any:
        """Draw one set of inputs."""

    @abstractmethod
    def providers(self, case: Case) -> Sequence[Provider]:
        """List ours and the peers, also those that cannot run here."""

    @abstractmethod
    def work(self, case: Case) -> Work:
        """Count operations and bytes by formula; masked pairs are no work."""

    @abstractmethod
    def error(self, case: Case, inputs: Any, result: Any) -> float:
        """Compare a result with float64; of a large result a sample."""


def operators(names: Sequence[str] = ()) -> list[Operator]:
    """Return the operators of these names, all without a name.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = set(names) - set(_MODULES)
    if unknown:
        raise ValueError(f"unknown operator {sorted(unknown)[0]!r}: expected one of {', '.join(_MODULES)}")
    found = []
    for name in names or _MODULES:
        operator: Operator = importlib.import_module(f"bench.operators.{name}").OPERATOR
        found.append(operator)
    return found


def our_providers(bind: Callable[[Any], Call], device: str) -> list[Provider]:
    """Ours as the dispatch rule chooses it, and on a GPU the form in PyTorch operators beside it."""
    ours = [Provider(OURS, bind)]
    if device == "cuda":
        ours.append(Provider(f"{OURS}_eager", partial(_as_eager, bind)))
    return ours


def _as_eager(bind: Callable[[Any], Call], inputs: Any) -> Call:
    with forced("eager"):
        call = bind(inputs)

    def run() -> object:
        with forced("eager"):
            return call()

    return run


def _read(provider: Provider, inputs: Any, result: Any) -> Any:
    return provider.read(inputs, result) if provider.read else result


def difference(first: Any, again: Any) -> float:
    """Largest difference of two results, over the largest number; a moving result is a race."""
    pairs = [(first, again)] if isinstance(first, torch.Tensor) else zip(first, again, strict=True)
    worst = 0.0
    for left, right in pairs:
        if left is None or not left.numel() or torch.equal(left, right):
            continue
        gap = (left.double() - right.double()).abs().max() / left.double().abs().max()
        worst = max(worst, float(gap.nan_to_num(nan=float("inf"))))
    return worst


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """|got - exact| / |exact| in float64; infinite where something is missing or not a number."""
    if got.shape != exact.shape or not got.isfinite().all():
        return float("inf")
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def worst_error(got: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Largest |got - exact| / |exact| of the tensors; one of nearly zeros counts as numbers of 0.01."""
    errors = [0.0]
    for left, right in zip(got, exact, strict=True):
        if left.shape != right.shape or not left.isfinite().all():
            return float("inf")
        if right.numel():
            size = right.norm().clamp_min(0.01 * right.numel() ** 0.5)
            errors.append(float((left.double() - right).norm() / size))
    return max(errors)
