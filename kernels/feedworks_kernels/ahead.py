"""Compile Triton kernels for GPUs that need not be here, into a cache that a GPU's process finds them in.

    python -m feedworks_kernels.ahead --architecture 90 --folder FOLDER --calls MODULE

A module of calls has a function `calls(training: bool)` that yields `Call`s: uses of the operators over CPU
tensors, of which only types, sizes and strides matter. They run as they would on a GPU, but nothing is
launched: each kernel that would be is compiled. So the keys in the cache are those of a real call. Of a tuned
kernel every form is compiled that tuning may choose; the choice is measured on the GPU.

What else is part of the keys, and how a container uses the cache: ../README.md.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from feedworks_kernels._device import Gpu, pretended
from feedworks_kernels.testing import forced

LIBCUDA = "TRITON_LIBCUDA_PATH"
# Compute capability -> the sizes of the GPU of that kind which serves most. Another one of the kind takes the
# same kernels, but may split work into another number of parts.
GPUS = {
    80: Gpu(80, 163 << 10, 108),  # A100
    86: Gpu(86, 99 << 10, 84),  # A40, RTX 3090
    89: Gpu(89, 99 << 10, 142),  # L40S, L4
    90: Gpu(90, 227 << 10, 132),  # H100, H200
    100: Gpu(100, 227 << 10, 148),  # B200
    120: Gpu(120, 99 << 10, 188),  # RTX PRO 6000
}


class Call(NamedTuple):
    """One use of an operator: its name for the log, and what launches its kernels."""

    name: str
    run: Callable[[], object]


class Compiled(NamedTuple):
    """What calls asked for.

    Attributes:
        compiled: names of the kernels that were compiled now.
        found: number of kernels that the cache had.
    """

    compiled: tuple[str, ...]
    found: int


class _NoGpu:
    """What Triton asks its driver for until it launches. The device's number is the architecture."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        return self._architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._architecture, 32)


def compile_calls(calls: Iterable[Call], architecture: int) -> Compiled:
    """Compile what calls launch, into Triton's cache as the environment has it; launch nothing.

    Args:
        calls: over CPU tensors.
        architecture: one of `GPUS`.

    Raises:
        ValueError: the architecture is unknown.
        ModuleNotFoundError: triton is not installed.
        RuntimeError: Triton's interpreter is on.
    """
    if architecture not in GPUS:
        raise ValueError(f"architecture {architecture}: expected one of {', '.join(map(str, GPUS))}")
    compiled: list[str] = []
    found: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        (found if cache_hit else compiled).append(src.name)

    with _compiling(architecture, listen):
        for call in calls:
            call.run()
    return Compiled(tuple(compiled), len(found))


@contextmanager
def _compiling(architecture: int, listen: Callable[..., None]) -> Iterator[None]:
    from triton import knobs
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: unset it, the interpreter compiles nothing")
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool, **named: Any) -> Any:
        return run(self, *arguments, warmup=True, **named)

    def compile_all(self: Any, *arguments: Any, warmup: bool = True, **named: Any) -> None:
        self.warmup(*arguments, **named)

    with ExitStack() as stack:
        for owner, name, value in (
            (JITFunction, "run", compile_only),
            (Autotuner, "run", compile_all),
            (driver, "_active", _NoGpu(architecture)),
            (knobs.compilation, "listener", listen),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.enter_context(forced("triton"))
        stack.enter_context(pretended(GPUS[architecture]))
        yield


def calls_of(module: str, *, training: bool) -> list[Call]:
    """Return the calls of a module.

    Raises:
        ValueError: there is no such module, or it has no `calls`.
    """
    try:
        found = importlib.import_module(module).calls
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"--calls {module}: there is no module {error.name}") from None
    except AttributeError:
        raise ValueError(f"--calls {module}: the module has no function `calls`") from None
    return list(found(training=training))


def _work(module: str, architecture: int, training: bool, folder: str) -> Compiled:
    """Compile one module's calls for one architecture, in a process of its own."""
    os.environ.pop("TRITON_CACHE_MANAGER", None)
    # Only the machine code is loaded at run time: the stages before it are three quarters of the bytes.
    os.environ.update(TRITON_CACHE_DIR=folder, TRITON_STORE_BINARY_ONLY="1")
    return compile_calls(calls_of(module, training=training), architecture)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m feedworks_kernels.ahead",
        description="Compile Triton kernels ahead of time, for GPUs that need not be here.",
        epilog=f"{LIBCUDA} is to be set, here and where the cache is used, to the folder in which the GPU's "
        "machines have libcuda.so.1: it is part of the launcher's key.",
    )
    parser.add_argument(
        "--architecture",
        type=int,
        choices=sorted(GPUS),
        action="append",
        required=True,
        help="compute capability without the point, such as 80 (A100) or 90 (H100); may be repeated",
    )
    parser.add_argument(
        "--calls", action="append", required=True, metavar="MODULE", help="module of calls; may be repeated"
    )
    parser.add_argument("--folder", type=Path, required=True, help="the cache to write; what it has is kept")
    parser.add_argument("--training", action="store_true", help="also what training and evaluation launch")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parsed(arguments)
    start_s = time.perf_counter()
    try:
        for module in options.calls:
            calls_of(module, training=options.training)
        from feedworks_kernels.launcher import compile_launcher

        compile_launcher(options.folder)
        results = _compile_all(options)
    except (ModuleNotFoundError, OSError, RuntimeError, ValueError) as error:
        print(f"ahead: {error}", file=sys.stderr)
        return 1
    num_compiled = sum(len(result.compiled) for result in results)
    num_found = sum(result.found for result in results)
    num_bytes = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    seconds = time.perf_counter() - start_s
    print(
        f"{num_compiled} kernels compiled, {num_found} there before, in {seconds:.0f} s; "
        f"{options.folder} has {num_bytes / 1e6:.1f} MB"
    )
    return 0


def _compile_all(options: argparse.Namespace) -> list[Compiled]:
    folder = str(options.folder.resolve())
    results: list[Compiled] = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(_work, module, architecture, options.training, folder): (module, architecture)
            for architecture in dict.fromkeys(options.architecture)
            for module in dict.fromkeys(options.calls)
        }
        for done in as_completed(waiting):
            module, architecture = waiting[done]
            result = done.result()
            results.append(result)
            print(
                f"{len(results)}/{len(waiting)}  sm_{architecture}  {module}: "
                f"{len(result.compiled)} kernels compiled, {result.found} there before",
                flush=True,
            )
    return results


if __name__ == "__main__":
    sys.exit(main())
