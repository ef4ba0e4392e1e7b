"""What a compiler makes of a Triton kernel for a GPU that need not be here: registers, spills, instructions.

A gate for tests: a kernel that is right can still be slow because its tile spills or its loads are narrow,
and that stands in the machine code. Triton's wheel carries the assembler's tools.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# "@!P0 LDG.E.128.CONSTANT R4, ..." begins with an optional predicate; then comes the instruction.
_INSTRUCTION = re.compile(r"^\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\b", re.MULTILINE)
_ADDRESS = re.compile(r"/\*[0-9a-f]+\*/")


class MachineCode(NamedTuple):
    """What the compiler reports of one kernel, and how often each instruction stands in it."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: Counter[str]

    def total(self, prefix: str) -> int:
        """Return how many instructions begin with `prefix`, such as `HGMMA` or `LDG.E.128`."""
        return sum(number for name, number in self.instructions.items() if name.startswith(prefix))

    def spills(self) -> bool:
        """Tell whether registers ran out and local memory, which is slow, holds the rest."""
        return self.stack_bytes > 0 or self.total("STL") + self.total("LDL") > 0


def compile_for_gpu(
    function: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    integers: tuple[str, ...] = (),
    strides: tuple[str, ...] = (),
    floats: tuple[str, ...] = (),
    capability: int = 90,
    **options: Any,
) -> MachineCode:
    """Compile a `triton.jit` function and read its machine code.

    Args:
        function: the kernel; of an autotuned one, its `fn`.
        pointers: argument -> type, such as `*bf16`; addresses are taken to be multiples of 16.
        constants: `tl.constexpr` argument -> value. Arguments named nowhere are None.
        integers: arguments that are int32.
        strides: arguments that are int32 and multiples of 16, as the runtime finds out by itself.
        floats: arguments that are fp32.
        capability: 90 for Hopper.
        options: of the compiler, such as `num_warps` and `num_stages`.

    Raises:
        ModuleNotFoundError: triton is not installed.
        subprocess.CalledProcessError: a tool of the wheel cannot read the result.
    """
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(function.arg_names)
    types = dict.fromkeys((*integers, *strides), "i32") | dict.fromkeys(floats, "fp32") | dict(pointers)
    values = {name: constants.get(name) for name in names if name not in types}
    source = ASTSource(
        function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in values.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *strides)},
    )
    kernel = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", file.name)
        listing = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    instructions = Counter(_INSTRUCTION.findall(_ADDRESS.sub("", listing)))
    registers, stack_bytes = (int(number) for number in found.groups())
    return MachineCode(registers, stack_bytes, int(kernel.metadata.shared), instructions)


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
