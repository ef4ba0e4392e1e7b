"""MaRI (arXiv 2602.23105): re-parameterised twins of ranking models: the user is computed once a request."""

from feedworks.mari.convert import Reparameterised, reparameterise

__all__ = ["Reparameterised", "reparameterise"]
