"""Imports what tasks or services import, so that Python writes the bytecode of that and of nothing else.

A third of an environment is bytecode that nobody reads; without any of it, and with a read-only root, every
start would compile anew. Use: bytecode.py NAME..., modules or packages; of our packages, all modules. Of
torch.export what it imports at its first use, too.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import sys


def main(names: list[str]) -> None:
    """Import each module, and each module of a package of ours; what an image lacks is left out."""
    for name in names:
        module = importlib.import_module(name)
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
            if not name.startswith("feedworks"):
                break
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                print(f"left out {found.name}: {error}", file=sys.stderr)
    if "torch.export" in names:
        _write_and_read_a_program()


def _write_and_read_a_program() -> None:
    import torch

    model = torch.nn.Linear(1, 1)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (torch.ones(1, 1),)), file)
    file.seek(0)
    torch.export.load(file)


if __name__ == "__main__":
    main(sys.argv[1:])
