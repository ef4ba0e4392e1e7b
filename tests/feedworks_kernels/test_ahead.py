"""Kernels compiled ahead: a later process finds them all, in a folder that was moved and is only read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from feedworks_kernels.ahead import GPUS, Call, compile_calls, main
from feedworks_kernels.layered_cache import LayeredCache

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATHS = os.pathsep.join(str(path) for path in (ROOT / "kernels", ROOT / "components", HERE))
UNSET = ("TRITON_INTERPRET", "TRITON_CACHE_MANAGER", "FEEDWORKS_KERNELS", "FEEDWORKS_TRITON_AHEAD")
AGAIN = """
import json, sys
from ahead_calls import calls
from feedworks_kernels.ahead import compile_calls
result = compile_calls(calls(training=sys.argv[2] == "training"), int(sys.argv[1]))
print(json.dumps(result))
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "TRITON_LIBCUDA_PATH": "/any"} | more


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *words]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


def ahead(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    options = (
        "--architecture",
        "90",
        "--calls",
        "ahead_calls",
        "--folder",
        str(folder),
        "--jobs",
        "1",
        *words,
    )
    return python("-m", "feedworks_kernels.ahead", *options, **variables)


def layers(below: Path, above: Path) -> dict[str, str]:
    manager = "feedworks_kernels.layered_cache:LayeredCache"
    return {
        "TRITON_CACHE_MANAGER": manager,
        "FEEDWORKS_TRITON_AHEAD": str(below),
        "TRITON_CACHE_DIR": str(above),
    }


def again(below: Path, above: Path, architecture: int = 90, *, training: bool = False, **variables: str):
    """Make the same calls in a process of its own; return the kernels it compiled, and how many it found."""
    kind = "training" if training else "serving"
    result = python("-c", AGAIN, str(architecture), kind, **layers(below, above), **variables)
    assert result.returncode == 0, result.stderr
    compiled, found = json.loads(result.stdout.splitlines()[-1])
    return compiled, found


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A cache that was written in one folder and is read in another."""
    folder = tmp_path_factory.mktemp("built") / "cache"
    result = ahead(folder)
    assert result.returncode == 0, result.stderr
    assert re.search(r"6 kernels compiled, 0 there before, in \d+ s; .* has \d\.\d MB", result.stdout)
    moved = tmp_path_factory.mktemp("image") / "triton"
    folder.rename(moved)
    return moved


def test_a_new_process_compiles_nothing(compiled, tmp_path):
    before = files(compiled)
    assert again(compiled, tmp_path / "above") == ([], 6)
    assert files(compiled) == before
    assert not (tmp_path / "above").exists()


def test_what_is_missing_is_compiled_into_the_upper_layer(compiled, tmp_path):
    before = files(compiled)
    names, found = again(compiled, tmp_path, AHEAD_CODES="64")
    assert (sorted(names), found) == (["extend_kernel"], 5)
    assert files(compiled) == before
    assert [name for name in files(tmp_path) if name.endswith("extend_kernel.cubin")]


@pytest.mark.slow
def test_a_kernel_with_a_lost_file_is_compiled_again(compiled, tmp_path):
    below = shutil.copytree(compiled, tmp_path / "below")
    next(below.rglob("write_kernel.cubin")).unlink()
    assert again(below, tmp_path / "above") == (["write_kernel"], 5)


@pytest.mark.slow
def test_another_architecture_is_compiled_anew(compiled, tmp_path):
    names, found = again(compiled, tmp_path, 80)
    assert (len(names), found) == (6, 0)


@pytest.mark.slow
def test_more_architectures_and_calls_come_to_the_same_folder(compiled, tmp_path):
    folder = shutil.copytree(compiled, tmp_path / "both")
    result = ahead(folder, "--architecture", "80", "--training")
    assert result.returncode == 0, result.stderr
    assert again(folder, tmp_path / "above", AHEAD_CODES="64")[0] == ["extend_kernel"]
    for architecture in (80, 90):
        assert again(folder, tmp_path / "above", architecture, training=True)[0] == []


def libcuda(folder: Path) -> Path:
    """Make a library that can be loaded in the driver's place; calling it would fail."""
    folder.mkdir()
    source = folder / "empty.c"
    source.touch()
    name = "libcuda.so.1"
    subprocess.run(["gcc", source, "-shared", f"-Wl,-soname,{name}", "-o", folder / name], check=True)
    return folder


LOAD = """
import os, sys
sys.setdlopenflags(os.RTLD_LAZY)
from triton.backends.nvidia.driver import CudaUtils
print(CudaUtils().launch)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler here")
@pytest.mark.parametrize("with_file", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_launcher_loads_without_a_compiler(compiled, tmp_path, with_file):
    programs = tmp_path / "programs"
    programs.mkdir()
    if with_file:
        if (program := shutil.which("file")) is None:
            pytest.skip("there is no program `file` here")
        (programs / "file").symlink_to(program)
    variables = {"PATH": str(programs), "LD_LIBRARY_PATH": str(libcuda(tmp_path / "driver"))}
    loaded = python("-c", LOAD, **layers(compiled, tmp_path / "above"), **variables)
    assert "built-in function launch" in loaded.stdout, loaded.stderr
    empty = python("-c", LOAD, **layers(tmp_path / "none", tmp_path / "above"), **variables)
    assert "Failed to find C compiler" in empty.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--architecture", "70"), 2, r"invalid choice: 70 \(choose from 80, 86, 89, 90, 100, 120\)"),
        (("--calls", "nowhere.calls"), 1, "ahead: --calls nowhere.calls: there is no module nowhere"),
        (("--calls", "json"), 1, "ahead: --calls json: the module has no function `calls`"),
        (("--calls", "string"), 1, "ahead: TRITON_LIBCUDA_PATH is not set: set it here and"),
        (("--calls", "colorsys"), 1, "ahead: Triton's launcher cannot be compiled .*: install gcc"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, words, code, message):
    # Modules that are there anyway stand for some of calls.
    for module in ("string", "colorsys"):
        monkeypatch.setattr(f"{module}.calls", lambda *, training: [], raising=False)
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", "" if "string" in words else "/any")
    monkeypatch.setenv("CC", "/none/gcc")
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(pytest.raises(SystemExit)) if code == 2 else None
        options = ["--folder", str(tmp_path / "cache"), *words]
        found = main([*options, *(() if code == 2 else ("--architecture", "90"))])
    assert (found if stop is None else stop.value.code) == code
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not list(tmp_path.rglob("*.so"))


def test_help_and_unknown_architectures(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "TRITON_LIBCUDA_PATH" in capsys.readouterr().out
    with pytest.raises(ValueError, match="architecture 75: expected one of 80, 86"):
        compile_calls([Call("none", int)], 75)
    assert all(number == gpu.capability for number, gpu in GPUS.items())


def test_layers(tmp_path, monkeypatch):
    below, above = tmp_path / "below", tmp_path / "above"
    for name, value in layers(below, above).items():
        monkeypatch.setenv(name, value)
    (below / "KEY").mkdir(parents=True)
    (below / "KEY" / "old.cubin").write_bytes(b"old")
    group = {"child_paths": {"old.cubin": "/where/it/was/KEY/old.cubin"}}
    (below / "KEY" / "__grp__old.json").write_text(json.dumps(group))
    (below / "KEY" / "__grp__torn.json").write_text('{"child_paths"')
    cache = LayeredCache("KEY")
    assert cache.get_group("old.json") == {"old.cubin": str(below / "KEY" / "old.cubin")}
    assert cache.get_file("old.cubin") == str(below / "KEY" / "old.cubin")
    assert (cache.get_file("new.cubin"), cache.get_group("torn.json")) == (None, None)
    assert not above.exists()
    path = cache.put(b"new", "new.cubin")
    assert Path(path).read_bytes() == b"new"
    assert Path(path).is_relative_to(above)
    cache.put_group("new.json", {"new.cubin": path})
    assert cache.get_group("new.json") == {"new.cubin": path}
    (below / "KEY" / "old.cubin").unlink()
    assert cache.get_group("old.json") is None


def test_without_a_lower_layer_it_is_tritons_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("FEEDWORKS_TRITON_AHEAD", raising=False)
    cache = LayeredCache("KEY")
    path = cache.put(b"new", "new.cubin")
    assert cache.get_file("new.cubin") == path
    assert LayeredCache("KEY", dump=True).get_file("new.cubin") is None
