"""Rules on files: sizes, forbidden text, what a module may import when it is imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .source import ROOT, imports_at_import_time, kept_files, library_modules, parse

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
MAX_ARGUMENTS = 8
# Built from parts, so that this file does not find itself.
FORBIDDEN_TEXT = re.compile(
    "|".join(
        [
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "download" + r"\.pytorch",
            r"(?<![\w.\-/])/(?:" + "|".join(["wo" + "rk", "ho" + "me", "ro" + "ot", "op" + "t"]) + r")/\w",
            "import " + r"pickle|\bpickle\." + "(?:load|dump)",
            "torch" + r"\.(?:load|save)\(",
        ]
    )
)
NOWHERE = "/"  # no file name ends so
MODEL_OF_TRANSFORMERS = (
    *("architecture", "attention", "layer", "rows", "padding", "model", "cache"),
    *("generation", "checkpoint", "cache_bench"),
)
# Loaded inside the function that needs it, or at the top of the one file that exists for it.
HEAVY = {
    "kfp": "component.py",
    "bentoml": "service.py",
    "triton": ("kernel.py", "layered_cache.py"),  # the cache is a class that Triton loads
    "great_expectations": None,
    "feast": ("_store.py", "_response.py"),  # Feast loads them as its plugins
    "faiss": None,
    "sklearn": None,
    "scipy": None,
    # The paper's model is one of transformers' own, by its config, modules and attention interface.
    "transformers": tuple(f"ksa/{name}.py" for name in MODEL_OF_TRANSFORMERS),
    "tokenizers": None,
    "matplotlib": None,
    "duckdb": None,
    "docker": None,
    "ray": None,
    "onnx": None,
    "onnxruntime": None,
}


def _relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("name", _relative(library_modules()))
def test_sizes(name: str) -> None:
    module = parse(ROOT / name)
    assert len((ROOT / name).read_text().splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = MAX_KERNEL_LINES if name.endswith("kernel.py") else MAX_FUNCTION_LINES
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < limit, f"{name}:{node.lineno} {node.name} is too long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            # A kernel takes pointers and strides, a component its artifacts.
            is_free = name.endswith(("kernel.py", "component.py"))
            assert is_free or len(counted) <= MAX_ARGUMENTS, f"{name}:{node.lineno} {node.name}"


def test_pipelines_are_wiring_only() -> None:
    for path in (ROOT / "pipelines").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 85, path


def test_no_hosts_machine_paths_or_pickles() -> None:
    found = []
    for path in kept_files():
        text = path.read_bytes().decode(errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in FORBIDDEN_TEXT.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    "text",
    ["see py" + "pi.org/simple", 'open("/wo' + 'rk/main/x")', "torch" + ".load(path)", "import " + "pickle"],
)
def test_forbidden_text_is_seen(text: str) -> None:
    assert FORBIDDEN_TEXT.search(text)


def test_heavy_libraries_are_imported_where_needed() -> None:
    found = []
    for path in library_modules():
        for name in imports_at_import_time(parse(path)):
            top = name.partition(".")[0]
            if top in HEAVY and not path.as_posix().endswith(HEAVY[top] or NOWHERE):
                found.append(f"{path.relative_to(ROOT)} imports {name} at its top")
    assert not found


def test_import_time_names_are_seen() -> None:
    module = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\ntry:\n    import c\nexcept ImportError:\n    import e\n"
        "def f():\n    import d\nclass C:\n    import g\n    def m(self):\n        import h\n"
    )
    assert set(imports_at_import_time(module)) == {"a", "c", "e", "g"}


def test_every_folder_of_modules_is_a_package() -> None:
    """Without an __init__.py the import arrows and the type checker would not see its modules."""
    folders = {path.parent for path in library_modules()}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_no_package_in_a_source_root() -> None:
    """An __init__.py there would make `kernels` an importable package and hide the field's own."""
    assert not [root for root in ("components", "kernels") if (ROOT / root / "__init__.py").exists()]


def test_components_only_hand_over() -> None:
    """The bodies travel in the YAML, where no test or type checker sees them again."""
    for path in library_modules():
        if path.name == "component.py":
            for node in parse(path).body:
                if isinstance(node, ast.FunctionDef):
                    first, last = node.body[0], node.body[-1]
                    assert first.end_lineno is not None
                    assert last.end_lineno is not None
                    assert last.end_lineno - first.end_lineno <= 15, f"{path.name}: {node.name}"
