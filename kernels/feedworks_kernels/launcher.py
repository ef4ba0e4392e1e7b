"""Triton's launcher for NVIDIA GPUs, built ahead: a C module that machines without a compiler can load.

Triton compiles it when the first kernel is launched, links it with the driver's library and keeps it in its
cache. Here a library of the same name and without content stands for the driver's.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIBCUDA = "TRITON_LIBCUDA_PATH"
_DRIVER = "libcuda.so.1"


def compile_launcher(folder: Path) -> None:
    """Compile it into a cache folder, if it is not there.

    Args:
        folder: of the cache.

    Raises:
        ModuleNotFoundError: triton is not installed.
        RuntimeError: `TRITON_LIBCUDA_PATH` is not set, or there is no C compiler or it fails.
    """
    if not os.environ.get(LIBCUDA):
        raise RuntimeError(
            f"{LIBCUDA} is not set: set it here and where the cache is used to the folder in which GPU "
            f"machines have {_DRIVER}, such as /usr/lib/x86_64-linux-gnu; it is part of the launcher's key"
        )
    from triton import knobs
    from triton.backends.nvidia import driver
    from triton.runtime import build

    def key_of(linkage: str) -> str:
        return ",".join([platform.machine(), platform.system(), platform.architecture()[0], linkage])

    before = build.platform_key, build._load_module_from_path
    with knobs.cache.scope(), knobs.build.scope():
        knobs.cache.dir = str(folder.resolve())
        knobs.cache.manager_class = None
        knobs.build.impl = _build
        build._load_module_from_path = lambda name, path: _NotLoaded()
        try:
            # Python asks the program `file` how programs are linked and says nothing where there is none: the
            # machine that builds may have it and the one that runs not.
            for linkage in ("ELF", ""):
                build.platform_key = lambda linkage=linkage: key_of(linkage)
                # Each release compiles by another function; its own constructor knows which.
                driver.CudaUtils.__init__(SimpleNamespace())
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"Triton's launcher cannot be compiled ({error}): install gcc") from None
        finally:
            build.platform_key, build._load_module_from_path = before


class _NotLoaded:
    """Stands for the module, which loads only where there is a driver."""

    def __getattr__(self, name: str) -> None:
        return None


def _compiler() -> str:
    """Return the compiler that Triton takes."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise FileNotFoundError("neither CC, gcc nor clang")
    return found


def _build(
    name: str,
    source: str,
    folder: str,
    library_dirs: list[str],
    include_dirs: list[str],
    libraries: list[str],
) -> str:
    """Compile as Triton does, against a library of the driver's name."""
    from triton import knobs
    from triton.runtime import build

    stub, empty = Path(folder) / "driver", Path(folder) / "empty.c"
    stub.mkdir()
    empty.touch()
    words = ["-shared", "-fPIC", f"-Wl,-soname,{_DRIVER}", "-o"]
    subprocess.run([_compiler(), str(empty), *words, str(stub / _DRIVER)], check=True)
    # Some compilers leave out libraries that nothing is taken from, as nothing is from an empty one.
    needed = ["-Wl,--no-as-needed", f"-l:{_DRIVER}"]
    knobs.build.impl = None
    try:
        path: Any = build._build(
            name, source, folder, [str(stub), *library_dirs], include_dirs, libraries, needed
        )
    finally:
        knobs.build.impl = _build
    return str(path)
