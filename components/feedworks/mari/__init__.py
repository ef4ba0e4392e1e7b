"""MaRI (arXiv 2602.23105): re-parameterised twins of ranking models: the user is computed once a request."""

from feedworks.mari.convert import Conversion, Report, reparameterise
from feedworks.mari.twin import Twin

__all__ = ["Conversion", "Report", "Twin", "reparameterise"]
