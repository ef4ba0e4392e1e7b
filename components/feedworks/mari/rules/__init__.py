"""MaRI (arXiv 2602.23105): which operations keep the parts of a value apart, and how.

Importing this package fills the tables of `feedworks.mari.sweep`.
"""

from feedworks.mari.rules import attention, bags, elementwise, layout, linear, rowwise, sums, wraps

__all__ = ["attention", "bags", "elementwise", "layout", "linear", "rowwise", "sums", "wraps"]
