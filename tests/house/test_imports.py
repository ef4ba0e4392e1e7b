"""What an import costs, and that each role runs with its own extra alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .source import ROOT, library_modules

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])}
# Libraries of the extra [train], and those of all the others.
TRAIN = {
    "torch",
    "lightning",
    "safetensors",
    "faiss",
    "sklearn",
    "scipy",
    "matplotlib",
    "transformers",
    "tokenizers",
}
OTHERS = {"kfp", "kfp_kubernetes", "feast", "duckdb", "great_expectations", "bentoml", "kubernetes"}
ORCHESTRATION = {
    "component.py",
    "serving.py",
    "submit.py",
    "local_pipeline.py",
    "service.py",
    "peer_service.py",
    "_store.py",
    "_response.py",
}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(module: str) -> set[str]:
    result = python(f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def module_name(path: Path) -> str:
    root = ROOT / path.relative_to(ROOT).parts[0]
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("feedworks", TRAIN | OTHERS | {"numpy", "click"}),
        ("feedworks.cli", TRAIN | OTHERS | {"numpy", "pandas", "pyarrow"}),
        ("feedworks.images", TRAIN | OTHERS | {"numpy"}),
        ("feedworks.recochain.component", TRAIN | (OTHERS - {"kfp", "kubernetes"}) | {"pandas", "pyarrow"}),
        ("feedworks.mari.component", TRAIN | (OTHERS - {"kfp", "kubernetes"}) | {"pandas", "pyarrow"}),
        ("feedworks.contracts", TRAIN | OTHERS),
        ("feedworks.features.reading", TRAIN | OTHERS),
        ("feedworks_kernels", OTHERS | TRAIN - {"torch"}),
    ],
)
def test_an_import_loads_no_more_than_its_role(module: str, forbidden: set[str]) -> None:
    assert not loaded_by(module) & forbidden


BLOCK = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set(sys.argv[1].split(",")):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_the_block_blocks() -> None:
    assert "blocked: kfp" in python(BLOCK + "import kfp", "kfp").stderr


def test_every_module_of_the_train_role_imports_without_the_others() -> None:
    skipped = (*ORCHESTRATION, "kernel.py", "layered_cache.py", "__main__.py")
    names = [module_name(path) for path in library_modules() if not path.name.endswith(skipped)]
    code = BLOCK + "for name in sys.argv[2:]: importlib.import_module(name)"
    result = python(code, ",".join(sorted(OTHERS | {"triton"})), *names)
    assert result.returncode == 0, result.stderr


def test_the_train_extra_alone_trains_a_model(tmp_path: Path) -> None:
    code = BLOCK + (
        "from pathlib import Path\n"
        "from feedworks.contracts.synthetic import write_synthetic\n"
        "from feedworks.recochain import chain, config\n"
        "out = Path(sys.argv[2])\n"
        "write_synthetic(out / 'data', num_users=120, num_items=100, seed=0)\n"
        "settings = config.resolve('tiny', sys.argv[3:])\n"
        "chain.run(out / 'data', out / 'run', settings)\n"
    )
    result = python(code, ",".join(sorted(OTHERS)), str(tmp_path), *QUICK)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert list((tmp_path / "run" / "model").glob("*.safetensors"))


QUICK = ["generator.epochs=1", "joint.epochs=1", "sasrec_training.epochs=1"]
