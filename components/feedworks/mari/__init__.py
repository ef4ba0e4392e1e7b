"""MaRI (arXiv 2602.23105): re-parameterised twins of ranking models: the user is computed once a request."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feedworks.mari.convert import Conversion, Report, reparameterise
    from feedworks.mari.twin import Twin

__all__ = ["Conversion", "Report", "Twin", "reparameterise"]


def __getattr__(name: str) -> Any:
    """Import torch where a name is asked for: the components of this package must load without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'twin' if name == 'Twin' else 'convert'}"), name)
